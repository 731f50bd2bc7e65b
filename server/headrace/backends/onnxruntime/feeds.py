"""Tensors that are fed to a session by name, and what comes back: for models that cannot be bound to buffers."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from headrace.datatypes import DATATYPES
from headrace.pipeline import bytes_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.messages import Buffer, Signature, TensorSpec

    Array = np.ndarray[Any, Any]

BFLOAT16 = 16
"""onnx.TensorProto.BFLOAT16"""


def run_by_name(
    session: ort.InferenceSession,
    signature: Signature,
    run_options: ort.RunOptions | None,
    inputs: Sequence[Sequence[Buffer]],
    shapes: Sequence[tuple[int, ...]],
    outputs: Sequence[int],
) -> list[Array]:
    """See `backends.base.Instance.run`."""
    feeds = {
        spec.name: tensor_of(spec, parts, shape)
        for spec, parts, shape in zip(signature.inputs, inputs, shapes, strict=True)
    }
    specs = [signature.outputs[index] for index in outputs]
    names = [spec.name for spec in specs]
    if any(spec.datatype == "BF16" for spec in specs):
        values = {k: v if isinstance(v, ort.OrtValue) else ort_value_of(v) for k, v in feeds.items()}
        return [numpy_of(value) for value in session.run_with_ort_values(names, values, run_options)]
    results: list[Array] = session.run(names, feeds, run_options)
    return results


def tensor_of(spec: TensorSpec, parts: Sequence[Buffer], shape: tuple[int, ...]) -> Array | ort.OrtValue:
    """A tensor to feed by name; of a single part that is aligned, without a copy."""
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    if spec.datatype == "BYTES":
        # ONNX Runtime takes strings as `str`; admitted requests hold UTF-8 alone.
        elements = bytes_tensor.decode(data, math.prod(shape))
        return np.array([element.decode() for element in elements], dtype=object).reshape(shape)
    numbers = array_of(spec, data, shape)
    return ort_value_of(numbers, spec) if spec.datatype == "BF16" else numbers


def array_of(spec: TensorSpec, data: Buffer, shape: tuple[int, ...]) -> Array:
    """The numbers of a request; where they lie, if that is where the processor can read them."""
    numbers: Array = np.frombuffer(data, DATATYPES[spec.datatype].numpy).reshape(shape)
    return numbers if numbers.flags.aligned else numbers.copy()


def ort_value_of(numbers: Array, spec: TensorSpec | None = None) -> ort.OrtValue:
    """An OrtValue over the array's own memory."""
    if spec is not None and spec.datatype == "BF16":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(numbers, BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(numbers)


def numpy_of(value: ort.OrtValue) -> Array:
    """A copy of a tensor; BF16, which ONNX Runtime does not hand to NumPy, as its bit patterns."""
    if value.element_type() != BFLOAT16:
        numbers: Array = value.numpy()
        return numbers
    shape = tuple(value.shape())
    data = ctypes.string_at(value.data_ptr(), math.prod(shape) * DATATYPES["BF16"].itemsize)
    return np.frombuffer(data, np.uint16).reshape(shape)
