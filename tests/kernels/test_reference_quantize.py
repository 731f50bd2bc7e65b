"""The reference for quantization: against ONNX Runtime's CPU provider."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx import helper
from onnx.helper import np_dtype_to_tensor_dtype as onnx_type

from headrace_kernels.reference import dequantize, quantize
from headrace_kernels.reference.quantize import AT_ONCE

SHAPES = [((0,), None), ((1,), None), ((7,), None), ((3, 5), 0), ((3, 5), 1), ((2, 3, 4, 5), 1), ((2, 3, 80), -2)]

halves = st.sampled_from([-1.5, -0.5, 0.5, 2.5, np.nan, np.inf])


def by_onnx_runtime(operator, x, scale, zero, axis, result):
    tensors = [(name, np.asarray(value)) for name, value in (("scale", scale), ("zero", zero))]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "scale", "zero"], ["y"], axis=axis if axis is not None else 0)],
        "g",
        [helper.make_tensor_value_info("x", onnx_type(x.dtype), x.shape)],
        [helper.make_tensor_value_info("y", onnx_type(np.dtype(result)), x.shape)],
        [helper.make_tensor(name, onnx_type(value.dtype), value.shape, value.tobytes(), raw=True)
         for name, value in tensors],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def parameters(shape, axis, dtype):
    channels = () if axis is None else (shape[axis],)
    rng = np.random.default_rng(sum(shape))
    limits = np.iinfo(dtype)
    return rng.uniform(0.01, 2, channels).astype(np.float32), rng.integers(limits.min, limits.max, channels, dtype)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@given(data=st.data())
def test_quantizes_as_onnx_runtime_does(shape, axis, dtype, data):
    x = data.draw(npst.arrays(np.float32, shape, elements=st.floats(width=32) | halves, fill=halves))
    scale, zero = parameters(shape, axis, dtype)
    expected = by_onnx_runtime("QuantizeLinear", x, scale, zero, axis, dtype)
    np.testing.assert_array_equal(quantize(x, scale, zero, axis=axis, dtype=dtype), expected)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_dequantizes_as_onnx_runtime_does(shape, axis, dtype):
    limits = np.iinfo(dtype)
    q = np.random.default_rng(1).integers(limits.min, limits.max, shape, dtype, endpoint=True)
    scale, zero = parameters(shape, axis, dtype)
    expected = by_onnx_runtime("DequantizeLinear", q, scale, zero, axis, np.float32)
    np.testing.assert_array_equal(dequantize(q, scale, zero, axis=axis), expected)
    assert (dequantize(q, scale, zero, axis=axis, dtype=np.float16) == expected.astype(np.float16)).all()


def test_rounds_half_to_even_and_divides():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, np.nan, np.inf, -np.inf], np.float32)
    assert quantize(x, 1.0).tolist() == [0, 2, 2, 0, -2, -128, 127, -128]
    assert quantize(x.astype(np.float16), 1.0, 3, dtype=np.uint8).tolist() == [3, 5, 5, 3, 1, 0, 255, 0]
    product = np.float32(0.1) * np.float32(1 / 0.1)
    x = np.array([0.05, 0.15, 0.25, 0.35], np.float32) * product
    assert quantize(x, np.float32(0.1)).tolist() == np.rint(x / np.float32(0.1)).astype(np.int8).tolist()


@pytest.mark.parametrize("shape", [(3, AT_ONCE), (AT_ONCE // 3 + 7, 3), (5, 3, 30_000), (2 * AT_ONCE + 1, 1)])
@pytest.mark.parametrize("axis", [None, 1])
def test_blocks_add_up_to_the_whole(shape, axis):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    channels = shape[1] if axis else 1
    scale = np.random.default_rng(1).uniform(0.01, 0.1, channels).astype(np.float32)
    broadcast = scale.reshape(1, channels, *[1] * (len(shape) - 2)) if axis else scale
    expected = np.clip(np.rint(x / broadcast), -128, 127)
    out = np.empty(shape, np.int8)
    assert quantize(x, scale, axis=axis, out=out) is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(dequantize(out, scale, axis=axis), expected.astype(np.float32) * broadcast)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, q: quantize(q, 1.0), "not int8"),
        (lambda x, q: quantize(x, 1.0, dtype=np.int16), "not int16"),
        (lambda x, q: dequantize(x, 1.0), "not float32"),
        (lambda x, q: dequantize(q, 1.0, dtype=np.int8), "not int8"),
        (lambda x, q: quantize(x, 1.0, axis=2), "axis 2"),
        (lambda x, q: quantize(x, [1.0, 2.0]), "scale has 2 values for 1 channels"),
        (lambda x, q: quantize(x, [1.0, 2.0, 3.0], [0, 0], axis=1), "zero_point has 2 values for 3"),
        (lambda x, q: quantize(x, 0.0), "positive and finite"),
        (lambda x, q: quantize(x, np.nan), "positive and finite"),
        (lambda x, q: quantize(x, 1.0, 128), "from -128 to 127"),
        (lambda x, q: quantize(x, 1.0, 0.5), "integers"),
        (lambda x, q: quantize(x, 1.0, out=np.empty((3, 2), np.int8)), "out is int8"),
    ],
)
def test_refuses_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.int8))
