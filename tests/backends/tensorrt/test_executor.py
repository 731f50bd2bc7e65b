"""Batches through engines, on a device in the host's memory; what comes out is compared with ONNX's own evaluator."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from backends.tensorrt import networks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, reference

from headrace.backends.device import DeviceError, DeviceLost, DeviceOutOfMemory
from headrace.backends.tensorrt.executor import break_even, quickest
from headrace.datatypes import DATATYPES
from headrace.errors import ModelLoadError
from headrace.testing.device import FakeDevice, FakeStream


def scaled(kind=TensorProto.FLOAT, width=4, factor=3):
    """Rows of numbers, times a factor."""
    factor = helper.make_tensor("f", kind, [], [factor])
    node = helper.make_node("Mul", ["x", "f"], ["y"])
    return networks.model([node], [("x", kind, ["N", width])], [("y", kind, ["N", width])], [factor])


def copied(kind):
    node = helper.make_node("Identity", ["x"], ["y"])
    return networks.model([node], [("x", kind, ["N", 3])], [("y", kind, ["N", 3])])


def run(instance, *arrays, cuts=(), outputs=(0,)):
    """Runs arrays whose rows come from several requests, cut at `cuts`."""
    parts = [[np.ascontiguousarray(part).tobytes() for part in np.split(array, cuts)] for array in arrays]
    return [result.copy() for result in instance.run(parts, [array.shape for array in arrays], outputs)]


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def expected(made, **inputs):
    return reference.ReferenceEvaluator(made).run(None, inputs)


def test_a_batch_comes_out_as_it_should(load):
    model = load(networks.conv_net(), max_batch=4)
    x = floats(3, 3, 16, 16)
    (found,) = run(model.make_instance(0), x, cuts=[1])
    np.testing.assert_allclose(found, expected(networks.conv_net(), x=x)[0], rtol=1e-5)


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(data=st.data())
def test_whatever_batches_come(load, trt, graphs, data):
    """Each row comes back where it was, of however many rows and requests a batch is."""
    most = data.draw(st.integers(1, 9), "max_batch")
    buckets = data.draw(st.sets(st.integers(1, most)).map(lambda some: sorted(some | {most})), "buckets")
    model = load(networks.two_inputs(), max_batch=most, batch_buckets=buckets, cuda_graphs=graphs)
    instance = model.make_instance(0)
    for rows in data.draw(st.lists(st.integers(1, most), min_size=1, max_size=6), "batches"):
        cuts = sorted(data.draw(st.sets(st.integers(1, rows)), "cuts") - {rows})
        outputs = data.draw(st.permutations([0, 1]).flatmap(lambda p: st.sampled_from([p, p[:1]])), "outputs")
        a, b = floats(rows, 2, seed=rows), floats(rows, 2, seed=rows + 100)
        trt.runs.clear()
        found = run(instance, a, b, cuts=cuts, outputs=outputs)
        for index, result in zip(outputs, found, strict=True):
            np.testing.assert_array_equal(result, (a + b, a - b)[index])
        (seen,) = trt.runs
        padded = len(seen["inputs"]["a"])
        assert seen["captured"] == graphs
        assert padded == (next(size for size in buckets if size >= rows) if graphs else rows)
        assert not seen["inputs"]["a"][rows:].any()
    instance.close()


@pytest.mark.parametrize(
    ("kind", "datatype"),
    [
        (TensorProto.FLOAT, "FP32"),
        (TensorProto.FLOAT16, "FP16"),
        (TensorProto.BFLOAT16, "BF16"),
        (TensorProto.INT8, "INT8"),
        (TensorProto.INT32, "INT32"),
        (TensorProto.INT64, "INT64"),
        (TensorProto.UINT8, "UINT8"),
        (TensorProto.BOOL, "BOOL"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_datatypes(load, kind, datatype):
    model = load(copied(kind), max_batch=2)
    (spec,) = model.signature.inputs
    assert (spec.name, spec.datatype, spec.shape) == ("x", datatype, (3,))
    assert model.signature.outputs[0].datatype == datatype
    x = np.array([[0, 1, 0], [1, 1, 0]], DATATYPES[datatype].numpy)
    (found,) = run(model.make_instance(0), x)
    assert found.dtype == DATATYPES[datatype].numpy
    np.testing.assert_array_equal(found, x)


def test_what_the_protocol_cannot_carry_is_told(load):
    with pytest.raises(ModelLoadError, match="input 'x' of the engine is FP8, which the protocol cannot carry"):
        load(copied(TensorProto.FLOAT8E4M3FN), max_batch=2)


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_rows_of_any_length_run_as_they_are(load, trt):
    model = load(networks.any_length(), max_batch=4, profiles={"x": {"min": [2], "opt": [4], "max": [8]}})
    assert model.signature.inputs[0].shape == (-1,)
    instance = model.make_instance(0)
    for rows, length in ((1, 2), (3, 8), (4, 5), (3, 8)):
        x = floats(rows, length)
        (found,) = run(instance, x)
        np.testing.assert_array_equal(found, x + x)
    assert not any(seen["captured"] for seen in trt.runs)
    assert repr(instance) == "<Executor of m 1, 0 of 0 buckets recorded, 0 ways known>"  # there may be any number
    with pytest.raises(ValueError, match=r"shapes \[\[1, 9\]\], for which the engine has no profile"):
        run(instance, floats(1, 9))
    with pytest.raises(ValueError, match=r"shapes \[\[1, 1\]\], for which the engine has no profile"):
        run(instance, floats(1, 1))
    (found,) = run(instance, floats(2, 2))
    assert found.shape == (2, 2)


def test_shapes_that_tensorrt_refuses_are_not_remembered(load, trt):
    """One of two inputs had its new shape by then."""
    node = helper.make_node("Concat", ["a", "b"], ["y"], axis=1)
    inputs = [(name, TensorProto.FLOAT, ["N", "L"]) for name in "ab"]
    made = networks.model([node], inputs, [("y", TensorProto.FLOAT, ["N", "M"])])
    lengths = {"min": [1], "opt": [4], "max": [8]}
    instance = load(made, 4, profiles={"a": lengths, "b": lengths}).make_instance(0)
    few, many = floats(2, 3), floats(2, 5)
    assert run(instance, few, few)[0].shape == (2, 6)
    trt.fail["shape"] = "as the test wants"
    with pytest.raises(ValueError, match=r"does not take shape \[2, 5\] of input 'b': as the test wants"):
        run(instance, many, many)
    trt.fail.clear()
    np.testing.assert_array_equal(run(instance, few, few)[0], np.concatenate([few, few], axis=1))


def test_rows_that_are_not_the_same_for_all_inputs(load):
    instance = load(networks.two_inputs(), max_batch=4).make_instance(0)
    with pytest.raises(ValueError, match=r"input 'b' has shape \[3, 2\], expected \[2, 2\]"):
        run(instance, floats(2, 2), floats(3, 2))


def test_a_model_without_a_batch_dimension(load, trt):
    model = load(networks.conv_net(batch=1))
    assert model.signature.max_batch == 0
    assert model.signature.inputs[0].shape == (1, 3, 16, 16)
    x = floats(1, 3, 16, 16)
    (found,) = run(model.make_instance(0), x)
    np.testing.assert_allclose(found, expected(networks.conv_net(), x=x)[0], rtol=1e-5)
    assert trt.runs[-1]["captured"]


def test_a_first_dimension_that_is_not_to_be_batched(load):
    shape = {"min": [1, 4], "opt": [2, 4], "max": [3, 4]}
    model = load(scaled(), max_batch=0, profiles={"x": shape})
    assert model.signature.inputs[0].shape == (-1, 4)
    instance = model.make_instance(0)
    for rows in (1, 3):
        (found,) = run(instance, floats(rows, 4))
        np.testing.assert_array_equal(found, floats(rows, 4) * 3)
    with pytest.raises(ValueError, match="no profile"):
        run(instance, floats(4, 4))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 5), r"input 'x' has shape \[3, 5\], expected \[3, 4\]"),
        ((3, 4, 1), r"input 'x' has shape \[3, 4, 1\], expected"),
        ((9, 4), "batch of 9 rows, from 1 to 8 fit"),
        ((0, 4), "batch of 0 rows, from 1 to 8 fit"),
    ],
)
def test_what_does_not_fit_is_refused(load, shape, message):
    instance = load(scaled(), max_batch=8).make_instance(0)
    with pytest.raises(ValueError, match=message):
        run(instance, floats(*shape))
    np.testing.assert_array_equal(run(instance, floats(2, 4))[0], floats(2, 4) * 3)


def test_bytes_that_are_not_those_of_the_shape(load, trt):
    instance = load(scaled(), max_batch=8).make_instance(0)
    with pytest.raises(ValueError):  # noqa: PT011  -- a memoryview has a text of its own
        instance.run([[bytes(16), bytes(12)]], [(2, 4)], [0])
    with pytest.raises(ValueError):  # noqa: PT011
        instance.run([[bytes(16)]], [(2, 4)], [0])


def test_outputs_whose_size_depends_on_values(load):
    node = helper.make_node("NonZero", ["x"], ["y"])
    made = networks.model([node], [("x", TensorProto.FLOAT, [2, 2])], [("y", TensorProto.INT64, [2, "n"])])
    with pytest.raises(ModelLoadError, match=r"output 'y' has shape \[-1, -1\]: its size depends on values"):
        load(made)


def test_outputs_without_the_rows_of_the_batch(load):
    node = helper.make_node("Flatten", ["x"], ["y"], axis=0)
    made = networks.model([node], [("x", TensorProto.FLOAT, ["N", 4])], [("y", TensorProto.FLOAT, ["M", "K"])])
    with pytest.raises(ModelLoadError, match=r"output 'y' has shape \[1, \d+\] for a batch of \d+ rows"):
        load(made, max_batch=4)


# --- graphs -----------------------------------------------------------------------------------------------------------


def test_each_bucket_is_recorded_once(load, trt):
    instance = load(scaled(), max_batch=4).make_instance(0)
    assert not any(seen["inputs"]["x"].any() for seen in trt.runs)  # whatever else may be an index out of bounds
    assert repr(instance) == "<Executor of m 1, 3 of 3 buckets recorded, 0 ways known>"
    assert len({seen["context"] for seen in trt.runs if seen["captured"]}) == 3
    trt.fail["execute"] = "a graph needs no TensorRT any more"
    for rows in (3, 2, 3):
        np.testing.assert_array_equal(run(instance, floats(rows, 4))[0], floats(rows, 4) * 3)
    assert repr(instance) == "<Executor of m 1, 3 of 3 buckets recorded, 2 ways known>"


def test_what_cannot_be_recorded_runs_without(load, trt, logged):
    trt.fail["capture"] = "operation not permitted when stream is capturing"
    instance = load(scaled(), max_batch=4).make_instance(0)
    (said,) = [text for text in logged() if "3 to 4 rows run without a CUDA graph" in text]
    assert "operation not permitted when stream is capturing" in said
    for rows in (1, 2, 3, 4):
        np.testing.assert_array_equal(run(instance, floats(rows, 4))[0], floats(rows, 4) * 3)
    assert len(trt.runs[-1]["inputs"]["x"]) == 4
    assert not trt.runs[-1]["captured"]


def test_a_driver_that_records_nothing(load, trt, logged, monkeypatch):
    def capture(self, work):
        raise DeviceError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")

    monkeypatch.setattr(FakeStream, "capture", capture)
    instance = load(scaled(), max_batch=1).make_instance(0)
    assert [text for text in logged() if "CAPTURE_UNSUPPORTED" in text]
    np.testing.assert_array_equal(run(instance, floats(1, 4))[0], floats(1, 4) * 3)


def test_where_padding_costs_more_batches_run_as_they_are(load, trt, monkeypatch):
    """A run costs its rows here, and recorded one less: 3 rows and more go into 4, 7 and more into 8."""

    def quickest(stream, work):
        work()
        stream.synchronize()
        return len(trt.runs[-1]["inputs"]["x"]) - trt.runs[-1]["captured"]

    monkeypatch.setattr("headrace.backends.tensorrt.executor.quickest", quickest)
    instance = load(scaled(), batch_buckets=[4, 8]).make_instance(0)
    ran = []
    for rows in range(1, 9):
        np.testing.assert_array_equal(run(instance, floats(rows, 4))[0], floats(rows, 4) * 3)
        ran.append(len(trt.runs[-1]["inputs"]["x"]))
    assert ran == [1, 2, 4, 4, 5, 6, 8, 8]


def test_shapes_that_a_context_has_are_not_set_again(load, trt):
    """Else the ways whose times are compared do not do the same."""
    (recorded,) = load(scaled(), max_batch=1).make_instance(0)._recorded
    found, before = recorded.context.shape(recorded.bucket.inputs), recorded.context._context.generation
    for shapes in (recorded.bucket.inputs, list(recorded.bucket.inputs)):
        assert recorded.context.shape(shapes) == found
    assert recorded.context._context.generation == before


def test_the_quickest_of_several_runs_counts_but_not_the_first():
    times = [1.0, 9.0, 5.0, 4.0, 6.0, 7.0]
    events = [SimpleNamespace(synchronize=lambda: None, milliseconds_since=lambda _: times.pop(0), close=lambda: None)]
    worked = []
    found = quickest(SimpleNamespace(record=lambda timed: events[0]), lambda: worked.append(1))
    assert (found, times, len(worked)) == (4.0, [], 6)


@pytest.mark.parametrize(
    ("few", "full", "padded", "rows"),
    [(2, 2, 1, 5), (2, 8, 2, 5), (2, 8, 5, 7), (2, 8, 6.1, 8), (2, 8, 9, 8), (2, 1, 3, 8), (0, 0, 0, 5)],
)
def test_where_padding_begins_to_pay(few, full, padded, rows):
    assert break_even(5, 8, few, full, padded) == rows


# --- lanes ------------------------------------------------------------------------------------------------------------


def test_two_batches_are_in_flight(load, devices, monkeypatch):
    """The second runs to its end while the first is on its way: they share neither memory nor streams."""
    model = load(scaled(), max_batch=4)
    assert model.executors_per_instance == 2
    first, second = model.make_instance(0), model.make_instance(1)
    stream = devices[0].streams[-2]
    on_its_way, go_on = threading.Event(), threading.Event()
    synchronize = FakeStream.synchronize

    def wait(self):
        if self is stream:
            on_its_way.set()
            assert go_on.wait(10)
        synchronize(self)

    monkeypatch.setattr(FakeStream, "synchronize", wait)
    results = []
    thread = threading.Thread(target=lambda: results.append(run(first, floats(3, 4, seed=1))[0]))
    thread.start()
    assert on_its_way.wait(10)
    np.testing.assert_array_equal(run(second, floats(4, 4, seed=2))[0], floats(4, 4, seed=2) * 3)
    assert not results
    go_on.set()
    thread.join()
    np.testing.assert_array_equal(results[0], floats(3, 4, seed=1) * 3)


@pytest.mark.parametrize("busy", [False, True])
def test_a_lane_is_waited_for_as_model_toml_says(load, devices, busy):
    load(scaled(), max_batch=4, busy_wait=busy).make_instance(0)
    assert devices[0].streams[-1].busy_wait is busy


def test_contexts_of_a_lane_share_memory_and_those_of_others_do_not(load, trt):
    model = load(scaled(), max_batch=8)
    places, instances = [], []
    for index in range(2):
        trt.contexts.clear()
        instances.append(model.make_instance(index))
        places.append({context.scratch.ctypes.data for context in trt.contexts})
        assert len(trt.contexts) == 4  # for each bucket one that is recorded; nothing runs as it is
    assert [len(place) for place in places] == [1, 1]
    assert places[0] != places[1]


def test_instances_are_on_all_devices_in_turn(load, devices):
    model = load(scaled(), max_batch=4, devices=[0, 1], in_flight=3)
    assert model.executors_per_instance == 6
    instances = [model.make_instance(index) for index in range(6)]
    assert [instance.device.index for instance in instances] == [0, 1, 0, 1, 0, 1]
    for instance in instances:
        np.testing.assert_array_equal(run(instance, floats(4, 4))[0], floats(4, 4) * 3)


def test_memory_is_given_and_given_back(load, devices):
    model = load(scaled(), max_batch=4)
    weights = model.memory["cpu:0"]
    assert weights > 0
    assert not devices[0].allocated
    instances = [model.make_instance(index) for index in range(2)]
    lane = 4 * 16 + 4 * 16 + 4 * 64  # input, output, activations
    assert model.memory == {"cpu:0": weights + 2 * lane}
    assert devices[0].memory_info()[0] == devices[0].memory_info()[1] - 2 * lane
    for instance in instances:
        instance.close()
    assert model.memory == {"cpu:0": weights}
    assert not devices[0].allocated
    assert not any(stream.open for stream in devices[0].streams)
    assert len(devices[0].graphs) == 6
    assert not any(graph.open for graph in devices[0].graphs)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_run_that_tensorrt_refuses(load, trt):
    instance = load(scaled(), max_batch=4, cuda_graphs=False).make_instance(0)
    trt.fail["execute"] = "as the test wants"
    with pytest.raises(RuntimeError, match="TensorRT does not run: as the test wants"):
        run(instance, floats(2, 4))
    trt.fail.clear()
    np.testing.assert_array_equal(run(instance, floats(2, 4))[0], floats(2, 4) * 3)


def test_a_run_that_finds_no_memory_loses_the_instance(load, trt):
    instance = load(scaled(), max_batch=4, cuda_graphs=False).make_instance(0)
    trt.fail["execute"] = "Error Code 1: Cuda Runtime (out of memory)"
    with pytest.raises(DeviceOutOfMemory, match="out of memory"):
        run(instance, floats(2, 4))


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
def test_a_lost_device_loses_the_instance(load, devices, graphs):
    instance = load(scaled(), max_batch=4, cuda_graphs=graphs).make_instance(0)
    devices[0].lost = True
    with pytest.raises(DeviceLost):
        run(instance, floats(2, 4))
    instance.close()
    assert not devices[0].allocated


def test_a_device_that_is_lost_in_the_middle(load, trt, devices):
    """TensorRT only says that it does not run; the device says why."""
    instance = load(scaled(), max_batch=4, cuda_graphs=False).make_instance(0)

    class Fails(dict):
        def __contains__(self, what):
            devices[0].lost = True
            return True

        def __getitem__(self, what):
            return "an illegal memory access was encountered"

    trt.fail = Fails()
    with pytest.raises(DeviceLost):
        run(instance, floats(2, 4))


def test_a_device_that_is_lost_while_a_graph_is_recorded(load, trt, devices):
    model = load(scaled(), max_batch=1)

    def during(context):
        devices[0].lost = True
        raise RuntimeError("an illegal memory access was encountered")

    trt.during = during
    with pytest.raises(ModelLoadError, match="gets no further instance on cpu:0: the device was lost"):
        model.make_instance(0)
    assert not devices[0].allocated


def test_a_recording_that_breaks_off_leaves_nothing_behind(load, devices, monkeypatch):
    def quickest(stream, work):
        raise DeviceLost("as the test wants")

    monkeypatch.setattr("headrace.backends.tensorrt.executor.quickest", quickest)
    with pytest.raises(ModelLoadError, match="as the test wants"):
        load(scaled(), max_batch=4).make_instance(0)
    assert devices[0].graphs
    assert not any(graph.open for graph in devices[0].graphs)
    assert not devices[0].allocated


def test_an_instance_for_which_there_is_no_memory(load, devices):
    model = load(scaled(width=1000), max_batch=8)
    others = devices[0].allocate(devices[0].memory_info()[0] - 100_000)
    first = model.make_instance(0)
    with pytest.raises(ModelLoadError, match=r"m 1 gets no further instance on cpu:0: .* bytes are asked for"):
        model.make_instance(1)
    taken = devices[0].memory_info()[0]
    np.testing.assert_array_equal(run(first, floats(8, 1000))[0], floats(8, 1000) * 3)
    first.close()
    assert devices[0].memory_info()[0] > taken
    assert devices[0].allocated == {others}


def test_a_device_that_refuses(load, devices, monkeypatch):
    model = load(scaled(), max_batch=8)

    def pin(self, nbytes):
        raise DeviceError("CUDA_ERROR_NOT_SUPPORTED")

    monkeypatch.setattr(FakeDevice, "pin", pin)
    with pytest.raises(ModelLoadError, match="gets no further instance on cpu:0: CUDA_ERROR_NOT_SUPPORTED"):
        model.make_instance(0)
    assert not devices[0].allocated


def test_a_context_that_is_not_made(load, trt, devices):
    model = load(scaled(), max_batch=8)
    trt.fail["context"] = "no more contexts"
    with pytest.raises(ModelLoadError, match=r"no context for profile 0: no more contexts"):
        model.make_instance(0)
    assert not devices[0].allocated
