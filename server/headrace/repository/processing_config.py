"""What a model's `model.toml` may have done to its inputs and outputs: `[preprocess.NAME]`, `[postprocess.NAME]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from typing import Self

LARGEST_SIDE = 32767
MAX_CHANNELS = 1 << 20

_Finite = Annotated[float, Field(allow_inf_nan=False, strict=False)]
_PerChannel = Annotated[tuple[_Finite, ...], Field(strict=False)]
_Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ImageConfig(_Table):
    """Clients send images, UINT8 [height, width, channels] of any size; the model gets them resized and normalised.

    An element becomes (pixel * scale - mean[c]) / std[c].
    """

    kind: Literal["image"]
    size: Annotated[tuple[_Side, _Side], Field(strict=False)] | None = Field(
        None,
        description="height and width of what the model gets; default: as its file says",
        json_schema_extra={"allowed": f"height and width, each an integer from 1 to {LARGEST_SIDE}"},
    )
    fit: Literal["stretch", "letterbox", "crop"] = Field(
        "stretch",
        description="stretch: to the size, whatever the aspect; letterbox: keep the aspect and fill up with `pad`; "
        "crop: keep it and cut the centre out",
    )
    shorter: _Side | None = Field(
        None, description="with fit crop: the shorter side before the centre is cut out; default: so that it just fits"
    )
    align: Literal["centre", "top-left"] = Field("centre", description="where a letterbox has its image")
    antialias: bool = Field(True, description="as Pillow and torchvision resize; false: plain bilinear, as OpenCV does")
    order: Literal["RGB", "BGR"] = Field("RGB", description="of the model's channels; clients send RGB")
    scale: _Finite = Field(1 / 255, description="what pixels, 0 to 255, are multiplied with; 1/255 by default")
    mean: _PerChannel = Field((), description="what is subtracted then, for each channel of the model; default: 0")
    std: _PerChannel = Field((), description="what is divided by then, for each channel of the model; default: 1")
    pad: float = Field(0.0, ge=0, le=255, description="the pixel value that fills a letterbox up")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.shorter is not None and self.fit != "crop":
            raise ValueError(f"shorter is for fit = 'crop', and fit is '{self.fit}'")
        if self.align != "centre" and self.fit != "letterbox":
            raise ValueError(f"align is for fit = 'letterbox', and fit is '{self.fit}'")
        if any(value == 0 for value in self.std):
            raise ValueError("std has a 0, which cannot be divided by")
        return self


class _Linear(_Table):
    """A scale and a zero point, for the whole tensor or for each channel."""

    scale: _Finite | _PerChannel = Field(description="of a quantized step, or that of each channel; above 0")
    zero_point: int | Annotated[tuple[int, ...], Field(strict=False)] = Field(
        0, description="the quantized value that means 0, or that of each channel"
    )
    axis: int | None = Field(
        None, description="the dimension of the channels, counted from 0 with the batch's, or from the end as -1"
    )

    @model_validator(mode="after")
    def _per_channel(self) -> Self:
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        if not scales or len(scales) > MAX_CHANNELS or min(scales) <= 0:
            raise ValueError("scale has a value that is not above 0, or none")
        lists = [name for name in ("scale", "zero_point") if isinstance(getattr(self, name), tuple)]
        if lists and self.axis is None:
            raise ValueError(f"{lists[0]} is a list; axis says which dimension its channels are")
        return self

    @property
    def per_channel(self) -> tuple[float | tuple[float, ...], int | tuple[int, ...]]:
        """Scale and zero point, both for each channel if one of them is."""
        scale, zero_point = self.scale, self.zero_point
        if isinstance(scale, tuple) and not isinstance(zero_point, tuple):
            return scale, (zero_point,) * len(scale)
        if isinstance(zero_point, tuple) and not isinstance(scale, tuple):
            return (scale,) * len(zero_point), zero_point
        return scale, zero_point


class QuantizeConfig(_Linear):
    """Clients send FP32; the model gets INT8 or UINT8, as its file says: saturate(round(x / scale) + zero_point)."""

    kind: Literal["quantize"]


class DequantizeConfig(_Linear):
    """The model gives INT8 or UINT8; clients get FP32: (q - zero_point) * scale."""

    kind: Literal["dequantize"]


class TopKConfig(_Table):
    """In place of an output of logits [..., classes] clients get the k greatest and where they were, [..., k] each."""

    kind: Literal["top_k"]
    k: int = Field(ge=1, description="how many; the greatest comes first")
    softmax: bool = Field(True, description="probabilities; false: the values as they are")
    values: str = Field("", description="name of the output with the values, FP32; default: NAME_values")
    indices: str = Field("", description="name of the output with their classes, INT32; default: NAME_indices")


PreprocessConfig = Annotated[ImageConfig | QuantizeConfig, Field(discriminator="kind")]
PostprocessConfig = Annotated[TopKConfig | DequantizeConfig, Field(discriminator="kind")]
