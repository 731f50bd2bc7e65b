"""What can be computed, described once for the host and for a GPU: arrays, launches, bytes moved.

An operation is a frozen description of shapes, dtypes and parameters; it holds no memory. `interface.Kernels.bind` puts
it together with memory.
"""

from headrace_kernels.operations.base import Array, Launch, Operation
from headrace_kernels.operations.images import TransformImages
from headrace_kernels.operations.quantize import Dequantize, Quantize
from headrace_kernels.operations.ragged import GatherRows, ScatterRows
from headrace_kernels.operations.statistics import UpdateStatistics
from headrace_kernels.operations.topk import SelectTop

__all__ = [
    "Array",
    "Dequantize",
    "GatherRows",
    "Launch",
    "Operation",
    "Quantize",
    "ScatterRows",
    "SelectTop",
    "TransformImages",
    "UpdateStatistics",
]
