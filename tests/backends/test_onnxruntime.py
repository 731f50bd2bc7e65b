import logging
import weakref
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace.backends.buffers import COPY_EACH_BYTES
from headrace.backends.onnxruntime import cpu as backend
from headrace.backends.onnxruntime import feeds, sessions
from headrace.datatypes import DATATYPES
from headrace.errors import ModelLoadError
from headrace.messages import Signature, TensorSpec
from headrace.pipeline import bytes_tensor
from headrace.sparing import Sparing

NUMERIC = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
}


@pytest.fixture
def load(tmp_path):
    """Writes a model of the given nodes, inputs and outputs (name, type, shape) and loads it."""

    def load(nodes, inputs, outputs, weights=(), *, max_batch=None, threads=1, **options):
        def info(tensors):
            return [helper.make_tensor_value_info(*tensor) for tensor in tensors]

        graph = helper.make_graph(nodes, "g", info(inputs), info(outputs), weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, tmp_path / "model.onnx")
        return backend.OnnxRuntimeBackend().load(tmp_path, max_batch=max_batch, threads=threads, options=options)

    return load


@pytest.fixture
def identity(load):
    def identity(datatype, shape, **options):
        return load(
            [helper.make_node("Identity", ["x"], ["y"])], [("x", datatype, shape)], [("y", datatype, shape)], **options
        )

    return identity


@pytest.fixture
def pair(load):
    """Sum and difference of two inputs."""

    def pair(shape=("N", 2), **options):
        return load(
            [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])],
            [("a", TensorProto.FLOAT, shape), ("b", TensorProto.FLOAT, shape)],
            [("sum", TensorProto.FLOAT, shape), ("difference", TensorProto.FLOAT, shape)],
            **options,
        )

    return pair


def perceptron(load, **options):
    rng = np.random.default_rng(0)
    sizes = [32, 64, 64, 2]
    nodes, weights, last = [], [], "x"
    for layer, shape in enumerate(pairwise(sizes)):
        weights.append(numpy_helper.from_array(rng.standard_normal(shape, np.float32), f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"h{layer}"]))
        nodes.append(helper.make_node("Relu", [f"h{layer}"], [f"r{layer}"]))
        last = f"r{layer}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    ports = [("x", TensorProto.FLOAT, ["N", 32])], [("y", TensorProto.FLOAT, ["N", 2])]
    model = load(nodes, *ports, weights, **options)
    arrays = [numpy_helper.to_array(weight) for weight in weights]

    def expected(x):
        for array in arrays:
            x = np.maximum(x @ array, 0)
        return x

    return model, expected


def parts_of(array, sizes):
    """The rows of an array as requests of the given sizes, at odd addresses as they come off the wire."""
    bounds = np.cumsum([0, *sizes])
    return [memoryview(b"x" + array[a:b].tobytes())[1:] for a, b in pairwise(bounds)]


# --- signature ------------------------------------------------------------------------------------------------------


def test_a_dynamic_first_dimension_can_batch(pair):
    model = pair()
    specs = [TensorSpec(name, "FP32", (2,)) for name in ("a", "b", "sum", "difference")]
    assert model.signature == Signature(tuple(specs[:2]), tuple(specs[2:]), 64)
    assert model.platform == "onnxruntime_onnx"
    assert pair(max_batch=7).signature.max_batch == 7


def test_without_batching_every_dimension_is_the_models_own(identity):
    assert identity(TensorProto.FLOAT, [3, 2]).signature.max_batch == 0
    signature = identity(TensorProto.FLOAT, ["N", 2], max_batch=0).signature
    assert signature.max_batch == 0
    assert signature.inputs[0].shape == (-1, 2)
    assert identity(TensorProto.FLOAT, []).signature == Signature(
        (TensorSpec("x", "FP32", ()),), (TensorSpec("y", "FP32", ()),), 0
    )


def test_an_output_without_the_batch_dimension_prevents_batching(load):
    model = load(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        [("x", TensorProto.FLOAT, ["N", 2])],
        [("y", TensorProto.FLOAT, [])],
    )
    assert model.signature.max_batch == 0


def test_a_batch_that_no_memory_holds(identity):
    model = identity(TensorProto.FLOAT, ["N", 1 << 44], max_batch=1 << 20)
    with pytest.raises(ModelLoadError, match="there is no memory for batches of max_batch = 1048576 rows"):
        model.make_instance(0)


@pytest.mark.parametrize("shape", [[3, 2], []])
def test_max_batch_needs_a_file_that_can_batch(identity, shape):
    with pytest.raises(ModelLoadError, match=r"max_batch = 8, but the file cannot batch: .* 'x' has shape \[.*\]"):
        identity(TensorProto.FLOAT, shape, max_batch=8)


def test_what_the_protocol_cannot_carry_is_refused_by_name(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelLoadError, match=r"output 'y' is seq\(tensor\(float\)\), which the protocol cannot carry"):
        backend.OnnxRuntimeBackend().load(tmp_path, max_batch=None, threads=1, options={})


# --- running --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[1], [16], [1] * 64, [3, 1, 7]])
def test_rows_of_many_requests_are_one_batch(load, sizes):
    model, expected = perceptron(load)
    instance = model.make_instance(0)
    x = np.random.default_rng(1).standard_normal((sum(sizes), 32), np.float32)
    for batch in (x, x + 1):  # the second run reuses what the first one bound
        (y,) = instance.run([parts_of(batch, sizes)], [batch.shape], [0])
        np.testing.assert_allclose(y, expected(batch), rtol=1e-4, atol=1e-4)
    assert repr(instance) == "<OnnxInstance bound, 1 bindings>"


@pytest.mark.parametrize("shape", [("N", 2), ("N", "M")], ids=["bound", "by name"])
def test_outputs_come_as_asked_for(pair, shape):
    instance = pair(shape).make_instance(0)
    a, b = np.array([[1, 2], [3, 4]], np.float32), np.array([[10, 20], [30, 40]], np.float32)
    for outputs in ([0, 1], [1, 0], [1], [0]):
        results = instance.run([parts_of(a, [1, 1]), parts_of(b, [1, 1])], [a.shape, b.shape], outputs)
        for index, result in zip(outputs, results, strict=True):
            np.testing.assert_array_equal(result, (a + b, a - b)[index])
            assert result.flags.c_contiguous


@pytest.mark.parametrize("last", [2, "M"], ids=["bound", "by name"])
@pytest.mark.parametrize("datatype", NUMERIC)
def test_numeric_datatypes_keep_their_bits(identity, datatype, last):
    model = identity(NUMERIC[datatype], ["N", last])
    assert model.signature.inputs[0].datatype == model.signature.outputs[0].datatype == datatype
    x = np.array([[0, 1], [1, 0], [1, 1]], DATATYPES[datatype].numpy)
    (y,) = model.make_instance(0).run([parts_of(x, [1, 2])], [x.shape], [0])
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x)


def test_bfloat16_with_an_onnx_runtime_that_does_not_tell_sizes(identity, monkeypatch):
    monkeypatch.delattr(onnxruntime.OrtValue, "tensor_size_in_bytes", raising=False)  # as 1.22
    (y,) = identity(TensorProto.BFLOAT16, ["N", "M"]).make_instance(0).run([[b"abcdefgh"]], [(2, 2)], [0])
    assert (y.shape, y.tobytes()) == ((2, 2), b"abcdefgh")


def test_bfloat16_is_bfloat16_to_the_model(load):
    ports = [("x", TensorProto.BFLOAT16, ["N"])], [("y", TensorProto.FLOAT, ["N"])]
    instance = load([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)], *ports).make_instance(0)
    (y,) = instance.run([[b"\x80\x3f", b"\x00\x40"]], [(2,)], [0])
    assert y.tolist() == [1.0, 2.0]


def test_strings(identity):
    model = identity(TensorProto.STRING, ["N", 2])
    assert model.signature.inputs[0].datatype == "BYTES"
    x = np.array([["a", ""], ["\u20ac\0", "d"], ["e", "f"]], dtype=object)
    parts = [bytes_tensor.encode(x[:1]), bytes_tensor.encode(x[1:])]
    (y,) = model.make_instance(0).run([parts], [x.shape], [0])
    assert y.tolist() == x.tolist()
    assert bytes_tensor.encode(y) == b"".join(parts)


@pytest.mark.parametrize("shape", [(3, 2), ()])
def test_models_without_a_batch_dimension(identity, shape):
    x = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    instance = identity(TensorProto.FLOAT, list(shape)).make_instance(0)
    (y,) = instance.run([[x.tobytes()]], [shape], [0])
    assert y.shape == shape
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("shape", [("N", 2), (2, 2)])
def test_an_output_that_is_an_input_as_it_came(load, shape):
    ports = [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, shape), ("x", TensorProto.FLOAT, shape)]
    instance = load([helper.make_node("Neg", ["x"], ["y"])], *ports).make_instance(0)
    for x in np.random.default_rng(0).random((2, 2, 2), np.float32):
        y, same = instance.run([[x.tobytes()]], [x.shape], [0, 1])
        np.testing.assert_array_equal(y, -x)
        np.testing.assert_array_equal(same, x)


def test_variable_dimensions(identity):
    instance = identity(TensorProto.FLOAT, ["N", "M"]).make_instance(0)
    for shape in [(1, 3), (2, 5), (2, 0)]:
        x = np.random.default_rng(0).random(shape, np.float32)
        (y,) = instance.run([[x.tobytes()]], [shape], [0])
        np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "odd"])
def test_one_large_request_is_run_where_it_lies(identity, offset, monkeypatch):
    columns = backend.IN_PLACE_BYTES // 4
    instance = identity(TensorProto.FLOAT, ["N", columns], max_batch=4).make_instance(0)
    seen = []
    tensor = feeds.tensor_of
    monkeypatch.setattr(feeds, "tensor_of", lambda *args: seen.append(tensor(*args)) or seen[-1])
    x = np.random.default_rng(0).random((2, columns), np.float32)
    part = memoryview(bytes(offset) + x.tobytes())[offset:]
    (y,) = instance.run([[part]], [x.shape], [0])
    np.testing.assert_array_equal(y, x)
    assert np.shares_memory(seen[0], np.frombuffer(part, np.uint8)) == (offset == 0)
    assert seen[0].flags.aligned
    (y,) = instance.run([parts_of(x, [1, 1])], [x.shape], [0])  # several large ones are laid together
    np.testing.assert_array_equal(y, x)
    assert len(seen) == 1


def test_buffers_begin_at_a_cache_line(identity):
    instance = identity(TensorProto.INT8, ["N", 3]).make_instance(0)
    (y,) = instance.run([[b"abc"]], [(1, 3)], [0])
    assert y.ctypes.data % 64 == 0
    assert all(buffer.ctypes.data % 64 == 0 for buffer in instance._inputs)


def test_bindings_are_bounded(identity, monkeypatch):
    monkeypatch.setattr(backend, "MAX_BINDINGS", 3)
    instance = identity(TensorProto.INT8, ["N"]).make_instance(0)
    for rows in (1, 2, 3, 4, 1, 4):
        (y,) = instance.run([[bytes(range(rows))]], [(rows,)], [0])
        assert y.tolist() == list(range(rows))
    assert repr(instance) == "<OnnxInstance bound, 3 bindings>"


@pytest.mark.parametrize(
    ("parts", "shape"),
    [
        ([b"abc"], (2, 2)),
        ([b"abc", b"de"], (2, 2)),
        ([b"abcd"], (2, 3)),
        ([bytes(10)], (5, 2)),
        ([b"abcd"], (4,)),
    ],
)
def test_bytes_that_do_not_make_the_shape_fail_and_the_next_batch_runs(identity, parts, shape):
    instance = identity(TensorProto.INT8, ["N", 2], max_batch=4).make_instance(0)
    with pytest.raises(ValueError, match=r"."):
        instance.run([parts], [shape], [0])
    (y,) = instance.run([[b"ab", b"cd"]], [(2, 2)], [0])
    assert y.tobytes() == b"abcd"


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (1, 4, 2, 1)])
@pytest.mark.parametrize("outputs", [(0,), (1, 0)])
def test_large_requests_give_the_same_together_and_one_by_one(pair, sizes, outputs, monkeypatch):
    monkeypatch.setattr(backend, "IN_PLACE_BYTES", 8)
    instance = pair(max_batch=8).make_instance(0)
    rows = sum(sizes)
    a, b = np.random.default_rng(0).random((2, rows, 2), np.float32)
    inputs = [parts_of(a, sizes), [part.tobytes() for part in parts_of(b, sizes)]]
    expected = [(a + b, a - b)[index] for index in outputs]
    ways = []
    for way in (instance._run_joined, instance._run_each, instance.run, instance.run, instance.run):
        got = way(inputs, [a.shape, b.shape], outputs)
        assert [output.tobytes() for output in got] == [output.tobytes() for output in expected]
        assert [output.shape for output in got] == [output.shape for output in expected]
        ways.append(repr(instance._quicker))
    assert ways[-3:] != ways[:3]
    assert set(instance._quicker._costs) == {0, 1}


def test_large_requests_leave_nothing_behind(identity, monkeypatch):
    """A binding would keep the memory of the last request that it was used for."""
    monkeypatch.setattr(backend, "IN_PLACE_BYTES", 8)
    instance = identity(TensorProto.INT8, ["N", 64], max_batch=4).make_instance(0)
    parts = [np.zeros(64, np.int8) for _ in range(4)]
    alive = [weakref.ref(part) for part in parts]
    instance._run_each([[part.data for part in parts]], [(4, 64)], [0])
    del parts
    assert [part() for part in alive] == [None] * 4


@pytest.mark.parametrize("second", [63, 128, 192])
def test_large_requests_that_do_not_make_the_batch_fail_one_by_one_too(identity, second, monkeypatch):
    monkeypatch.setattr(backend, "IN_PLACE_BYTES", 8)
    instance = identity(TensorProto.INT8, ["N", 64], max_batch=3).make_instance(0)
    with pytest.raises(ValueError, match=r"."):
        instance._run_each([[bytes(64), bytes(second)]], [(2, 64)], [0])
    (y,) = instance._run_each([[b"a" * 64, b"b" * 64]], [(2, 64)], [0])
    assert y.tobytes() == b"a" * 64 + b"b" * 64


def test_large_parts_that_do_not_fill_the_batch_fail(identity):
    instance = identity(TensorProto.INT8, ["N", COPY_EACH_BYTES], max_batch=4).make_instance(0)
    for second in (COPY_EACH_BYTES - 1, 1, COPY_EACH_BYTES + 1):
        with pytest.raises(ValueError, match=r"expected|broadcast"):
            instance.run([[bytes(COPY_EACH_BYTES), bytes(second)]], [(2, COPY_EACH_BYTES)], [0])


def test_instances_are_apart(identity):
    model = identity(TensorProto.INT8, ["N"])
    one, two = model.make_instance(0), model.make_instance(1)
    assert one._session is not two._session
    (first,) = one.run([[b"a"]], [(1,)], [0])
    (second,) = two.run([[b"b"]], [(1,)], [0])
    assert (first.tobytes(), second.tobytes()) == (b"a", b"b")


def test_close_frees_the_session_and_the_buffers(identity):
    instance = identity(TensorProto.INT8, ["N"]).make_instance(0)
    instance.run([[b"a"]], [(1,)], [0])
    instance.close()
    assert repr(instance) == "<OnnxInstance closed, 0 bindings>"
    assert instance._inputs == instance._outputs == []


# --- loading --------------------------------------------------------------------------------------------------------


def test_sessions_are_configured_for_serving(identity):
    one = identity(TensorProto.FLOAT, ["N"]).make_instance(0)._session.get_session_options()
    assert (one.intra_op_num_threads, one.inter_op_num_threads) == (1, 1)
    assert one.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    two = identity(TensorProto.FLOAT, ["N"], threads=2).make_instance(0)._session.get_session_options()
    assert two.intra_op_num_threads == 2
    assert two.get_session_config_entry("session.intra_op.spin_duration_us") == "500"


def test_options(identity):
    session = {"session.set_denormal_as_zero": "1", "session.intra_op.allow_spinning": "1"}
    model = identity(TensorProto.FLOAT, ["N"], graph_optimization_level="basic", arena=False, session=session)
    options = model.make_instance(0)._session.get_session_options()
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert not options.enable_cpu_mem_arena
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arean": True}, "unknown key 'arean' (in backend_options of model.toml); did you mean 'arena'?"),
        ({"arena": 1}, "arena = 1 (in backend_options of model.toml): expected true or false"),
        (
            {"graph_optimization_level": 99},
            "graph_optimization_level = 99 (in backend_options of model.toml): "
            'expected one of "disabled", "basic", "extended", "all"',
        ),
    ],
)
def test_bad_options(identity, options, message):
    with pytest.raises(ModelLoadError) as error:
        identity(TensorProto.FLOAT, ["N"], **options)
    assert str(error.value) == message


def test_more_options_of_sessions(identity):
    options = {"memory_pattern": False, "execution_mode": "parallel", "inter_op_threads": 2}
    chosen = identity(TensorProto.FLOAT, ["N", 2], threads=0, **options).make_instance(0)._session.get_session_options()
    assert not chosen.enable_mem_pattern
    assert (chosen.intra_op_num_threads, chosen.inter_op_num_threads) == (0, 2)
    assert chosen.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL


@pytest.mark.parametrize(("datatype", "shape"), [(TensorProto.FLOAT, ("N", 2)), (TensorProto.FLOAT, ("N", "D")),
                                                (TensorProto.BFLOAT16, ("N", "D"))])  # fmt: skip
def test_options_of_runs_are_given_to_each(identity, datatype, shape):
    key = "memory.enable_memory_arena_shrinkage"
    instance = identity(datatype, shape, run={key: "cpu:0"}).make_instance(0)
    assert instance._run_options.get_run_config_entry(key) == "cpu:0"
    row = bytes(8 if datatype == TensorProto.FLOAT else 4)
    assert instance.run([[row]], [(1, 2)], [0])[0].shape == (1, 2)
    broken = identity(datatype, shape, run={key: "gpu:7"}).make_instance(0)
    with pytest.raises(Exception, match="arena"):
        broken.run([[row]], [(1, 2)], [0])


def test_instances_may_share_a_session(identity):
    for share in (True, False):
        model = identity(TensorProto.FLOAT, ["N", 2], share_session=share)
        one, two = (model.make_instance(index) for index in range(2))
        assert (one._session is two._session) is share
        one.close()
        assert two.run([[bytes(8)]], [(1, 2)], [0])[0].tolist() == [[0, 0]]


def test_the_file_may_have_another_name_or_be_a_directory(identity, tmp_path):
    identity(TensorProto.FLOAT, ["N", 2])
    opened = backend.OnnxRuntimeBackend()
    file = tmp_path / "model.onnx"
    for name in ("net.onnx", "parts/net.onnx", "model.onnx/model.onnx"):
        target = tmp_path / name
        moved = file.rename(tmp_path / "aside")
        target.parent.mkdir(exist_ok=True)
        file = moved.rename(target)
        options = {} if name.startswith("model") else {"file": name}
        loaded = opened.load(tmp_path, max_batch=None, threads=1, options=options)
        assert loaded.signature.max_batch == 64
    with pytest.raises(ModelLoadError, match=r"there is no .*other\.onnx"):
        opened.load(tmp_path, max_batch=None, threads=1, options={"file": "other.onnx"})
    for outside in ("../model.onnx", "/etc/passwd", ""):
        with pytest.raises(ModelLoadError, match=r"file: .* is no file within the version directory"):
            opened.load(tmp_path, max_batch=None, threads=1, options={"file": outside})


def test_a_library_of_operators_that_is_not_there(identity):
    with pytest.raises(ModelLoadError, match=r"ONNX Runtime cannot load .*libabsent\.so"):
        identity(TensorProto.FLOAT, ["N", 2], op_libraries=["libabsent.so"])


def test_files_that_are_no_models(tmp_path):
    load = backend.OnnxRuntimeBackend().load
    with pytest.raises(ModelLoadError, match=r"there is no .*model.onnx"):
        load(tmp_path, max_batch=None, threads=1, options={})
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelLoadError, match=r"ONNX Runtime cannot load .*model.onnx: "):
        load(tmp_path, max_batch=None, threads=1, options={})


@pytest.mark.parametrize(
    ("level", "severity"),
    [(logging.DEBUG, 1), (logging.INFO, 2), (logging.WARNING, 2), (logging.ERROR, 3), (logging.CRITICAL, 4)],
)
def test_onnxruntime_logs_as_we_do(caplog, level, severity):
    with caplog.at_level(level, sessions.log.name):
        assert sessions.ort_severity() == severity
        sessions._on_ort_message(4, "ort", "digits/1", "file.cc:1", "on fire")
    assert [record.getMessage() for record in caplog.records] == ["digits/1: on fire"]


def test_errors_of_onnxruntime_are_told_once_a_second_from_each_place(caplog, monkeypatch):
    now = [10**12]
    monkeypatch.setattr(sessions, "_errors", Sparing(lambda: now[0]))
    for _ in range(5):
        sessions._on_ort_message(3, "ort", "digits/1", "file.cc:1", "idx=77")
        sessions._on_ort_message(2, "ort", "digits/1", "file.cc:2", "a warning")
    sessions._on_ort_message(3, "ort", "digits/1", "file.cc:2", "another")
    sessions._on_ort_message(3, "ort", "other/1", "file.cc:1", "idx=78")
    now[0] += 10**9
    sessions._on_ort_message(3, "ort", "digits/1", "file.cc:1", "idx=79")
    assert [line for line in caplog.messages if "warning" not in line] == [
        "digits/1: idx=77", "digits/1: another", "other/1: idx=78",
        "digits/1: idx=79; 4 more like it were not logged",
    ]  # fmt: skip
    assert sum("warning" in line for line in caplog.messages) == 5
