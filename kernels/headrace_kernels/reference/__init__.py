"""What each kernel computes, in NumPy: the CPU path, and what the kernels are tested against.

images: `image_batch`, `transform_images`. ragged: `gather`, `scatter`. quantize: `quantize`, `dequantize`.
topk: `top_k`. statistics: `feature_statistics`, `FeatureStatistics`.
"""

from headrace_kernels.images import ImageTransform, pack, placements
from headrace_kernels.reference.images import image_batch, transform_images
from headrace_kernels.reference.quantize import dequantize, quantize
from headrace_kernels.reference.ragged import Padded, gather, offsets_of, scatter
from headrace_kernels.reference.statistics import FeatureStatistics, feature_statistics
from headrace_kernels.reference.topk import TopK, top_k

__all__ = [
    "FeatureStatistics",
    "ImageTransform",
    "Padded",
    "TopK",
    "dequantize",
    "feature_statistics",
    "gather",
    "image_batch",
    "offsets_of",
    "pack",
    "placements",
    "quantize",
    "scatter",
    "top_k",
    "transform_images",
]
