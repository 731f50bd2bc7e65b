"""Where each image of a batch lies in its output: decided on the host, once, for the reference and the kernel alike.

An image is resized to `resized_height` x `resized_width` and laid with its corner at (`top`, `left`) of the output, of
which it covers what lies inside; negative corners crop it. All ways of fitting an image are such a placement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Fit = Literal["stretch", "letterbox", "crop"]

PLACEMENT = ("offset", "height", "width", "resized_height", "resized_width", "top", "left")
"""The columns of a placement table, INT64 [N, 7]. offset: of the image's first byte in the buffer of pixels; height,
width: of the image; the others are pixels of the output. An image without rows or columns leaves only padding."""

LARGEST = 32767
"""Pixels that an image may have on a side, before and after resizing: the kernel's arithmetic is of 32 bits."""

CHANNELS = (1, 3)


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """From UINT8 images [height, width, channels] of any size to a floating-point batch [N, channels, height, width].

    height, width: of the output. channels: 1 or 3. fit: `stretch`; `letterbox` keeps the aspect and fills up with
    `pad`; `crop` resizes the shorter side to `shorter` (None: so that the crop just fits) and cuts the centre out, as
    torchvision's Resize and CenterCrop do. centre: where a letterbox has its image: in the middle, or at the top left.
    antialias: when shrinking, the triangle filter of Pillow's and torchvision's BILINEAR; False: plain bilinear
    interpolation (OpenCV's INTER_LINEAR, torchvision's antialias=False). Sample points are pixel centres (half-pixel).
    swap: output channels in reverse order (RGB to BGR or back). pad: a pixel value, 0 to 255, normalised like any.
    dtype: float32 or float16. An output element is (pixel * scale - mean[c]) / std[c], c counted in the output.
    Raises ValueError if any of it makes no sense.
    """

    height: int
    width: int
    channels: int = 3
    fit: Fit = "stretch"
    shorter: int | None = None
    centre: bool = True
    antialias: bool = True
    swap: bool = False
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    pad: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not (1 <= self.height <= LARGEST and 1 <= self.width <= LARGEST):
            raise ValueError(f"an output has 1 to {LARGEST} pixels on a side, not {self.height} x {self.width}")
        if self.channels not in CHANNELS:
            raise ValueError(f"images have {' or '.join(map(str, CHANNELS))} channels, not {self.channels}")
        if self.fit not in ("stretch", "letterbox", "crop"):
            raise ValueError(f"fit is stretch, letterbox or crop, not {self.fit!r}")
        if self.shorter is not None and (self.fit != "crop" or not 1 <= self.shorter <= LARGEST):
            raise ValueError(f"shorter is for fit='crop' and 1 to {LARGEST}; it is {self.shorter}, fit {self.fit!r}")
        if self.dtype not in ("float32", "float16"):
            raise ValueError(f"images become float32 or float16, not {self.dtype}")
        for name in ("mean", "std"):
            values: tuple[float, ...] = getattr(self, name)
            if len(values) not in (0, self.channels):
                raise ValueError(f"{name} has a value for each of {self.channels} channels, not {len(values)}")
        if not all(self.std) and self.std:
            raise ValueError(f"std must not be 0: {self.std}")

    def factors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Two FP32 [channels], a and b, so that an output element is pixel * a + b."""
        std = np.array(self.std or (1.0,) * self.channels)
        mean = np.array(self.mean or (0.0,) * self.channels)
        return (self.scale / std).astype(np.float32), (-mean / std).astype(np.float32)

    def place(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Resized height and width, top, left: where an image of these sizes lies in the output."""
        if not height or not width:
            return 0, 0, 0, 0
        if self.fit == "stretch":
            return self.height, self.width, 0, 0
        if self.fit == "letterbox":
            ratio = min(self.height / height, self.width / width)
            tall, wide = max(1, round(height * ratio)), max(1, round(width * ratio))
            if not self.centre:
                return tall, wide, 0, 0
            return tall, wide, (self.height - tall) // 2, (self.width - wide) // 2
        tall, wide = self._covering(height, width)
        return tall, wide, _corner(self.height, tall), _corner(self.width, wide)

    def _covering(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image before its centre is cut out."""
        if self.shorter is None:
            ratio = max(self.height / height, self.width / width)
            return max(self.height, round(height * ratio)), max(self.width, round(width * ratio))
        if height <= width:
            return self.shorter, int(self.shorter * width / height)
        return int(self.shorter * height / width), self.shorter


def _corner(room: int, size: int) -> int:
    """Where that which is centred begins; negative if it is larger than the room. Rounds as torchvision does."""
    return (room - size) // 2 if size < room else -round((size - room) / 2)


def placements(
    sizes: Sequence[tuple[int, int]], transform: ImageTransform, offsets: Sequence[int] | None = None, rows: int = 0
) -> NDArray[np.int64]:
    """The placement table (PLACEMENT) of images of these (height, width).

    offsets: of the first byte of each; None: they lie one behind the other. rows: of the table, if it is to have more,
    for a batch that is filled up; the rows beyond the images leave padding alone. Raises ValueError for an image that
    is larger than LARGEST, before or after resizing.
    """
    table = np.zeros((max(rows, len(sizes)), len(PLACEMENT)), np.int64)
    end = 0
    for index, (height, width) in enumerate(sizes):
        place = transform.place(height, width)
        if min(height, width) < 0 or max(height, width, *place[:2]) > LARGEST:
            raise ValueError(
                f"image {index} of {height} x {width} would be resized to {place[0]} x {place[1]}; "
                f"0 to {LARGEST} pixels on a side are possible"
            )
        table[index] = (end if offsets is None else offsets[index], height, width, *place)
        end += height * width * transform.channels
    return table


def check_table(table: NDArray[np.int64], buffer_bytes: int, transform: ImageTransform) -> None:
    """Raises ValueError unless the table is one of PLACEMENT whose images lie inside a buffer of that many bytes."""
    if table.ndim != 2 or table.shape[1] != len(PLACEMENT) or table.dtype != np.int64:
        raise ValueError(f"a placement table is int64 [N, {len(PLACEMENT)}], not {table.dtype} {list(table.shape)}")
    if not table.size:
        return
    offset, height, width, tall, wide = table.T[:5]
    sides = table[:, 1:5]
    end = offset + height * width * transform.channels
    bad = (sides < 0).any(axis=1) | (sides > LARGEST).any(axis=1) | (offset < 0) | (end > buffer_bytes)
    bad |= (height * width > 0) & (tall * wide == 0)
    if bad.any():
        row = int(np.argmax(bad))
        values = ", ".join(f"{name} {value}" for name, value in zip(PLACEMENT, table[row].tolist(), strict=True))
        raise ValueError(
            f"row {row} of the placement table ({values}) does not fit a buffer of {buffer_bytes} bytes "
            f"and sides of 0 to {LARGEST} pixels"
        )


def pack(images: Sequence[NDArray[Any]]) -> tuple[NDArray[np.uint8], list[tuple[int, int]]]:
    """Images, UINT8 [height, width, channels] each, as one buffer of bytes, and their (height, width)."""
    flat = [np.ascontiguousarray(image, np.uint8).reshape(-1) for image in images]
    return np.concatenate(flat) if flat else np.empty(0, np.uint8), [image.shape[:2] for image in images]
