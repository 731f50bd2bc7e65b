"""Images of differing sizes to a normalised batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from headrace_kernels.images import PLACEMENT
from headrace_kernels.operations.base import LARGEST_GRID, Array, Launch, Operation, array, ceil_div, i32
from headrace_kernels.reference.images import image_batch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from headrace_kernels.images import ImageTransform

BLOCK = (32, 8, 1)
TOGETHER = 8  # pixels of a thread, if there are many: two groups
MANY = 1 << 22  # pixels: a large GPU has threads for a sixteenth of them


@dataclass(frozen=True, slots=True)
class TransformImages(Operation):
    """`reference.image_batch` of a table of `images` rows and a buffer of `pixel_bytes`.

    Arrays: pixels UINT8 [pixel_bytes]; table INT64 [images, 7] (`images.placements`), which must have been checked
    against the buffer (`images.check_table`), for a kernel cannot; out [images, channels, height, width].
    """

    transform: ImageTransform
    images: int
    pixel_bytes: int

    source: ClassVar[str] = "images"

    def __post_init__(self) -> None:
        if not 0 <= self.images <= LARGEST_GRID:
            raise ValueError(f"a batch has 0 to {LARGEST_GRID} images, not {self.images}")

    def arrays(self) -> tuple[Array, ...]:
        """Pixels, table, out."""
        to = self.transform
        return (
            array("pixels", (self.pixel_bytes,), np.uint8, "in"),
            array("table", (self.images, len(PLACEMENT)), np.int64, "in"),
            array("out", (self.images, to.channels, to.height, to.width), to.dtype, "out"),
        )

    def launches(self) -> tuple[Launch, ...]:
        """A thread for each output pixel, or for a few of a line."""
        if not self.images:
            return ()
        to = self.transform
        kernel = f"image_batch_c{to.channels}_{'f16' if to.dtype == 'float16' else 'f32'}"
        across = BLOCK[0] * (TOGETHER if self.images * to.height * to.width >= MANY else 1)
        grid = (ceil_div(to.width, across), ceil_div(to.height, BLOCK[1]), self.images)
        factor, shift = (np.resize(values, 3) for values in to.factors())
        numbers = (i32(to.height), i32(to.width), i32(to.antialias), i32(to.swap), np.float32(to.pad))
        return (Launch(kernel, grid, BLOCK, 0, ("pixels", "table", "out", *numbers, *factor, *shift)),)

    def compute(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """With NumPy."""
        image_batch(arrays["pixels"], arrays["table"], self.transform, arrays["out"])
