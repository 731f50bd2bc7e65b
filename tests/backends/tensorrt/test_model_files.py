from contextlib import suppress

import numpy as np
import onnx
import pytest
from backends.tensorrt import networks
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from headrace.backends.tensorrt import model_files
from headrace.errors import ModelLoadError
from headrace.pipeline.wire import Malformed, length_prefixed


def outside(location, name="w"):
    """A tensor whose values lie in a file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def with_weights(*tensors):
    return networks.model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["N", 2])],
        [("y", TensorProto.FLOAT, ["N", 2])],
        tensors,
    )


@pytest.fixture
def read(tmp_path):
    def read(model, **files):
        for name, content in files.items():
            (tmp_path / f"{name}.bin").write_bytes(content)
        return model_files.read(networks.save(model, tmp_path / "model.onnx"))

    return read


def test_the_field_numbers_are_onnxs():
    """The walk's table against the messages of the onnx package: what it enters, and that it enters all that can hold
    a tensor.
    """
    names = {n: f"{n}Proto" for n in ("Model", "Graph", "Node", "Attribute", "Tensor", "SparseTensor", "Function")}
    names |= {"Training": "TrainingInfoProto", "Value": "ValueInfoProto", "Entry": "StringStringEntryProto"}
    short = {f"onnx.{long}": name for name, long in names.items()}
    for name, inside in model_files._INSIDE.items():
        fields = onnx.__dict__[names[name]].DESCRIPTOR.fields
        meant = {f.number: short.get(f.message_type.full_name) for f in fields if f.message_type is not None}
        for number, entered in inside.items():
            assert meant[number] == entered
        left_out = {kind for number, kind in meant.items() if number not in inside and kind is not None}
        assert left_out <= {"Entry", "Value"}, name


def test_weights_are_found_wherever_they_are():
    branch = helper.make_graph([], "then", [], [helper.make_tensor_value_info("t", 1, [2])], [outside("branch.bin")])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=outside("constant.bin")),
        helper.make_node("If", ["b"], ["i"], then_branch=branch, else_branch=branch),
    ]
    weights = [outside("graph.bin"), outside("graph.bin")]
    model = networks.model(nodes, [("x", 1, ["N", 2])], [("y", 1, ["N", 2])], weights)
    function = model.functions.add(name="f", domain="d")
    function.node.append(helper.make_node("Constant", [], ["c"], value=outside("function.bin")))
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(outside("values.bin"))
    sparse.indices.CopyFrom(outside("indices.bin"))
    assert model_files.walk(model.SerializeToString()).locations == tuple(
        sorted(f"{name}.bin" for name in ("branch", "constant", "graph", "function", "values", "indices"))
    )


def test_nothing_outside(read, tmp_path):
    files = read(networks.conv_net())
    assert files.external == ()
    assert files.model == (tmp_path / "model.onnx").read_bytes()
    files.check_unchanged()


def test_the_digest_covers_the_weights(read):
    model = with_weights(outside("a.bin"), outside("b.bin", "v"))
    digests = {
        read(model, a=b"1", b=b"2").digest,
        read(model, a=b"1", b=b"3").digest,
        read(model, a=b"2", b=b"1").digest,
        read(model, a=b"12", b=b"").digest,
        read(model, a=b"", b=b"12").digest,
        read(with_weights(outside("a.bin"), outside("a.bin", "v")), a=b"1").digest,
    }
    assert len(digests) == 6
    assert read(model, a=b"1", b=b"2").digest == read(model, a=b"1", b=b"2").digest


@pytest.mark.parametrize("location", ["../other/weights.bin", "/etc/passwd", "a/../../b", "", "."])
def test_weights_from_elsewhere_are_refused(read, location):
    with pytest.raises(ModelLoadError, match="which is no file beside it"):
        read(with_weights(outside(location)))


def test_weights_that_are_missing(read):
    with pytest.raises(ModelLoadError, match=r"absent\.bin, which .*model\.onnx wants weights from, cannot be read"):
        read(with_weights(outside("absent.bin")))


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(ModelLoadError, match=r"model\.onnx cannot be read: No such file"):
        model_files.read(tmp_path / "model.onnx")


def test_a_change_is_seen(read, tmp_path):
    files = read(with_weights(outside("a.bin")), a=b"1")
    files.check_unchanged()
    (tmp_path / "a.bin").write_bytes(b"22")
    with pytest.raises(ModelLoadError, match="changed while an engine was built"):
        files.check_unchanged()
    (tmp_path / "a.bin").unlink()
    with pytest.raises(ModelLoadError, match="changed while an engine was built"):
        files.check_unchanged()


def test_texts_are_refused(read):
    with pytest.raises(
        ModelLoadError, match=r"'x' of .*model\.onnx is of datatype BYTES, which TensorRT does not have"
    ):
        read(networks.texts())


def test_other_types_are_not():
    for kind in (TensorProto.FLOAT, TensorProto.INT64, TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN):
        model = networks.model([], [("x", kind, ["N"])], [("y", kind, None)])
        assert model_files.walk(model.SerializeToString()).strings == ()


def test_graphs_in_graphs_have_an_end():
    def nested(graphs):
        graph = b""
        for _ in range(graphs):
            for field in (6, 5, 1):  # graph of an attribute, attribute of a node, node of a graph
                graph = length_prefixed(field, graph)
        return length_prefixed(7, graph)

    assert model_files.walk(nested(60)).locations == ()
    with pytest.raises(Malformed, match="more than 64 deep"):
        model_files.walk(nested(70))


@given(st.binary(max_size=200))
def test_any_bytes_are_walked_or_malformed(data):
    with suppress(Malformed):
        mentions = model_files.walk(data)
        assert all(isinstance(name, str) for name in (*mentions.locations, *mentions.strings))


@given(st.data())
def test_a_model_that_is_cut_or_changed_is_walked_or_malformed(data):
    whole = networks.conv_net().SerializeToString()
    cut = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    if cut:
        cut[data.draw(st.integers(0, len(cut) - 1))] = data.draw(st.integers(0, 255))
    with suppress(Malformed):
        mentions = model_files.walk(bytes(cut))
        assert all(isinstance(name, str) for name in (*mentions.locations, *mentions.strings))


def test_numpys_weights_are_inside():
    model = with_weights(numpy_helper.from_array(np.zeros(2, np.float32), "w"))
    assert model_files.walk(model.SerializeToString()) == model_files.Mentions((), (), 0)
