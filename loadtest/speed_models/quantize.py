"""INT8 by ONNX Runtime's own tool: Q and DQ nodes, symmetric, signed, a scale for each channel of the weights.

The bias stays in float: TensorRT's parser takes no other form. The result runs on ONNX Runtime's CPU provider too.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from onnx import ModelProto

    Array = np.ndarray[Any, Any]


class NoQuantizer(Exception):
    """This environment cannot quantize. The message says what is missing."""


def quantized(model: ModelProto, feeds: Iterable[dict[str, Array]]) -> ModelProto:
    """The INT8 form of an FP32 model; the ranges of its activations are the extremes seen while it runs `feeds`.

    Raises NoQuantizer where onnxruntime.quantization cannot be imported.
    """
    try:
        from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
        from onnxruntime.quantization import quantize_static as quantize
    except ImportError as error:
        raise NoQuantizer(f"onnxruntime.quantization cannot be imported: {error}") from error

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> dict[str, Array] | None:
            return next(self._feeds, None)

    with tempfile.TemporaryDirectory() as scratch:
        source, result = Path(scratch, "float.onnx"), Path(scratch, "int8.onnx")
        onnx.save(model, source)
        quantize(
            str(source),
            str(result),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
        return onnx.load(result)
