import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from headrace.backends.onnxruntime.weights import Weights, digest_of, external_files, read_weights, weights_in
from headrace.errors import ModelLoadError
from headrace.pipeline.wire import Malformed


def graph(initializers=(), nodes=(), **more):
    return helper.make_graph(nodes, "g", [], [], list(initializers), **more)


def weights(made):
    return weights_in(memoryview(helper.make_model(made).SerializeToString()))


def tensor(datatype, dims):
    return TensorProto(data_type=datatype, dims=dims)


@pytest.mark.parametrize("datatype", [number for name, number in TensorProto.DataType.items() if name != "UNDEFINED"])
def test_bytes_of_each_datatype(datatype):
    found = weights(graph([tensor(datatype, [3, 5])])).nbytes
    if datatype == TensorProto.STRING:
        assert found == 0
        return
    bits = {TensorProto.UINT4: 4, TensorProto.INT4: 4, TensorProto.FLOAT4E2M1: 4, TensorProto.UINT2: 2,
            TensorProto.INT2: 2}.get(datatype)  # fmt: skip
    if "FLOAT6" in TensorProto.DataType.Name(datatype):
        bits = 6
    if bits is None:
        bits = helper.tensor_dtype_to_np_dtype(datatype).itemsize * 8
    assert found == (15 * bits + 7) // 8


@given(st.lists(st.lists(st.integers(0, 1000), max_size=4), max_size=5))
def test_tensors_add_up(shapes):
    expected = sum(4 * int(np.prod(dims, dtype=object)) for dims in shapes)
    assert weights(graph([tensor(TensorProto.FLOAT, dims) for dims in shapes])) == Weights(expected, ())


def test_dimensions_that_are_not_packed():
    # fields 1 (dims) twice as single varints, 2 (data_type) FLOAT
    one = bytes([0x08, 3, 0x08, 5, 0x10, 1])
    model = bytes([0x3A, len(one) + 2, 0x2A, len(one)]) + one
    assert weights_in(memoryview(model)).nbytes == 60


def test_tensors_in_constants_in_branches_and_sparse_ones_count():
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.zeros(7, np.float32)))
    branch = graph([tensor(TensorProto.INT64, [2])], [constant])
    node = helper.make_node("If", ["b"], ["y"], then_branch=branch, else_branch=branch)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.zeros(3, np.float32), "v"), numpy_helper.from_array(np.zeros(3, np.int64), "i"), [9]
    )
    assert weights(graph([], [node], sparse_initializer=[sparse])).nbytes == 2 * (28 + 16) + 12 + 24


@pytest.fixture
def external(tmp_path):
    made = helper.make_model(graph([numpy_helper.from_array(np.zeros(1000, np.float32), "w")]))
    onnx.save(made, tmp_path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    return tmp_path / "model.onnx"


def test_weights_in_another_file(external):
    assert read_weights(external) == Weights(4000, ("w.bin",))
    assert external_files(external) == [external.parent / "w.bin"]


def test_the_digest_covers_weights_in_another_file(external):
    before = digest_of(external, "a", "b")
    assert digest_of(external, "ab") != before
    data = bytearray((external.parent / "w.bin").read_bytes())
    data[100] ^= 1
    (external.parent / "w.bin").write_bytes(data)
    assert digest_of(external, "a", "b") != before
    (external.parent / "w.bin").unlink()
    with pytest.raises(ModelLoadError, match=r"w\.bin cannot be read: No such file"):
        digest_of(external)


@pytest.mark.parametrize("location", ["/etc/passwd", "../w.bin", "a/../../w.bin", "."])
def test_weights_elsewhere_are_refused(external, location):
    model = onnx.load(external, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    external.write_bytes(model.SerializeToString())
    with pytest.raises(ModelLoadError, match="no file beside it"):
        external_files(external)


def test_other_files(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"this is no model, \xff\xff")
    with pytest.raises(ModelLoadError, match="is not an ONNX file"):
        read_weights(tmp_path / "m.onnx")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        read_weights(tmp_path / "n.onnx")
    (tmp_path / "empty.onnx").touch()
    assert read_weights(tmp_path / "empty.onnx").nbytes == 0
    (tmp_path / "m.ort").write_bytes(bytes(99))
    assert read_weights(tmp_path / "m.ort") == Weights(99, ())


def test_graphs_in_graphs_without_end():
    content = b""
    for number in [7, *[1, 5, 6] * 100][::-1]:
        size = len(content)
        length = bytearray()
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        content = bytes([number << 3 | 2]) + bytes([*length, size]) + content
    with pytest.raises(Malformed, match="messages are more than"):
        weights_in(memoryview(content))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_model_or_malformed(data):
    try:
        weights_in(memoryview(data))
    except Malformed:
        return
