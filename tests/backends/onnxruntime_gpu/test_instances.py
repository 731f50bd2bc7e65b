"""Batches on a device: what is bound, filled up, copied and waited for, and what is freed."""

import gc
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from onnx import TensorProto, helper

from headrace.backends.device import DeviceLost, DeviceOutOfMemory
from headrace.backends.onnxruntime.flexible import TooLarge
from headrace.errors import ModelLoadError
from headrace.pipeline import bytes_tensor


@contextmanager
def instances(model, count=None):
    with ExitStack() as stack:
        made = []
        for index in range(model.executors_per_instance if count is None else count):
            made.append(model.make_instance(index))
            stack.callback(made[-1].close)
        yield made


def run(instance, *requests, outputs=(0,)):
    """The outputs for requests of so many rows, by values."""
    arrays = [np.array(request, np.float32).reshape(-1, 3) for request in requests]
    rows = sum(map(len, arrays))
    return [found.copy() for found in instance.run([[a.tobytes() for a in arrays]], [(rows, 3)], outputs)]


def only_form(instance):
    (of,) = instance._forms.values()
    return of


def expected(*requests):
    return (np.concatenate([np.array(request, np.float32).reshape(-1, 3) for request in requests]) * 2 + 1).tolist()


def test_rows_are_run_together_in_the_next_bucket(load, affine, gpu):
    with instances(load(affine())) as (first, _):
        gpu.runs.clear()
        requests = [1, 2, 3], [4, 5, 6, 7, 8, 9], [0, 0, 0], [5, 5, 5]
        (found,) = run(first, *requests)
        assert (found.dtype, found.shape) == (np.float32, (5, 3))
        assert found.tolist() == expected(*requests)
        assert gpu.runs == {"regular": 1}
        shapes = {rows: bound.binding.bound["x"][0] for rows, bound in only_form(first).bound.items()}
        assert shapes == {1: (1, 3), 2: (2, 3), 4: (4, 3), 8: (8, 3)}
        assert (
            len({bound.binding.bound["x"][1] for bound in only_form(first).bound.values()}) == 1
        )  # of the same address


def test_a_bucket_is_filled_up_with_zeros(load, affine):
    with instances(load(affine(), batch_buckets=[4, 8])) as (first, _):
        run(first, [9] * 24)
        run(first, [1, 2, 3])
        there = first._lane.inputs[0].array.view(np.float32)
        assert there[:12].tolist() == [1, 2, 3] + [0] * 9
        assert there[12:].tolist() == [9] * 12  # of the batch before: beyond the bucket


def test_more_rows_than_fit(load, affine):
    with instances(load(affine())) as (first, _), pytest.raises(ValueError, match="batch of 9 rows, at most 8 fit"):
        first.run([[bytes(12 * 9)]], [(9, 3)], [0])


def test_an_output_that_is_an_input_as_it_came_has_no_buffer(load, write):
    ports = (
        [("x", TensorProto.FLOAT, ("N", 3))],
        [("y", TensorProto.FLOAT, ("N", 3)), ("x", TensorProto.FLOAT, ("N", 3))],
    )
    with instances(load(write([helper.make_node("Neg", ["x"], ["y"])], *ports))) as (first, _):
        assert repr(first).startswith("<FlexibleInstance")
        y, x = run(first, [1, 2, 3], outputs=(0, 1))
        assert (y.tolist(), x.tolist()) == ([[-1, -2, -3]], [[1, 2, 3]])


def test_other_shapes_than_the_signatures(load, affine):
    with (
        instances(load(affine())) as (first, _),
        pytest.raises(ValueError, match=r"the shapes 'x' \[1, 4\], expected \[1, 3\]"),
    ):
        first.run([[bytes(16)]], [(1, 4)], [0])


def test_bytes_that_do_not_fill_the_rows(load, affine):
    with instances(load(affine())) as (first, _):
        for nbytes in (8, 16):
            with pytest.raises(ValueError, match="different structures"):
                first.run([[bytes(nbytes)]], [(1, 3)], [0])
        assert run(first, [1, 2, 3])[0].tolist() == [[3, 5, 7]]


@pytest.mark.parametrize("datatype", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32])
def test_datatypes(load, affine, datatype):
    dtype = helper.tensor_dtype_to_np_dtype(datatype)
    with instances(load(affine(datatype))) as (first, _):
        values = np.arange(6, dtype=dtype).reshape(2, 3)
        (found,) = first.run([[values.tobytes()]], [(2, 3)], [0])
        assert found.dtype == dtype
        assert found.tolist() == (values * 2 + 1).tolist()


def test_bf16_and_booleans_are_bound_as_what_they_are(load, write):
    path = write(
        [helper.make_node("Identity", ["b"], ["c"]), helper.make_node("Not", ["f"], ["g"])],
        [("b", TensorProto.BFLOAT16, ("N", 2)), ("f", TensorProto.BOOL, ("N", 2))],
        [("c", TensorProto.BFLOAT16, ("N", 2)), ("g", TensorProto.BOOL, ("N", 2))],
    )
    with instances(load(path)) as (first, _):
        bits = np.array([[0x3F80, 0x4000]], np.uint16)
        found = first.run([[bits.tobytes()], [b"\x00\x01"]], [(1, 2), (1, 2)], [1, 0])
        assert [array.tolist() for array in found] == [[[True, False]], bits.tolist()]


def test_outputs_that_are_not_asked_for_are_not_copied(load, write):
    path = write(
        [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Identity", ["x"], ["z"])],
        [("x", TensorProto.FLOAT, ("N", 3))],
        [("y", TensorProto.FLOAT, ("N", 3)), ("z", TensorProto.FLOAT, ("N", 3))],
    )
    with instances(load(path)) as (first, _):
        run(first, [1, 2, 3], outputs=(0, 1))
        copied = []
        download = first._lane.download
        first._lane.download = lambda index, nbytes: (copied.append((index, nbytes)), download(index, nbytes))
        assert run(first, [4, 5, 6], outputs=(1,))[0].tolist() == [[4, 5, 6]]
        assert copied == [(1, 12)]


def test_a_model_without_batches(load, affine):
    with instances(load(affine(shape=(2, 3)), max_batch=0)) as (first, _):
        values = np.ones((2, 3), np.float32)
        assert first.run([[values.tobytes()]], [(2, 3)], [0])[0].tolist() == [[3] * 3] * 2


def test_dimensions_of_any_size(load, varying, gpu):
    with instances(load(varying)) as (first, second):
        for instance, rows, length in (
            (first, 1, 2),
            (second, 3, 5),
            (first, 2, 40_000),
            (first, 2, 1),
            (second, 1, 0),
        ):
            x = (np.arange(rows * length, dtype=np.float32) % 8).reshape(rows, length)
            parts = [x[row].tobytes() for row in range(rows)]
            y, z = instance.run([parts], [x.shape], [0, 1])
            assert np.array_equal(y, -x)
            assert np.array_equal(z, x.sum(axis=1))
            (z,) = instance.run([parts], [x.shape], [1])
            assert np.array_equal(z, x.sum(axis=1))
    assert gpu.runs == {"free": 10}
    assert len(gpu.calls) == 1


def test_copies_of_varying_batches_do_not_wait_for_others_either(load, varying):
    with instances(load(varying)) as (first, second):
        x = np.ones((1, 7), np.float32)
        first.device.use()
        first._upload(0, first._signature.inputs[0], [x.tobytes()], x.shape)
        first._executor.compute(first._stream, lambda: first._launch([0]))
        second._upload(0, second._signature.inputs[0], [x.tobytes()], x.shape)
        second._stream.synchronize()
        assert first._executor.stream._pending
        assert second.run([[x.tobytes()]], [x.shape], [1])[0].tolist() == [7]
        first._binding.clear_binding_outputs()


def test_a_batch_too_large_for_the_device_is_an_error_of_its_own(load, varying, gpu, monkeypatch):
    def refuse(nbytes):
        raise DeviceOutOfMemory("no memory can be locked")

    (device,) = gpu.devices
    with instances(load(varying)) as (first, _):
        x = np.ones((1, 3), np.float32)
        held = device.allocate(device.memory_info()[0] - (200 << 10))
        with pytest.raises(TooLarge, match="a tensor of 400000 bytes: 524288 bytes are asked for"):
            first.run([[bytes(400_000)]], [(1, 100_000)], [0])
        assert first.run([[x.tobytes()]], [x.shape], [1])[0].tolist() == [3]
        with monkeypatch.context() as patched:
            patched.setattr(device, "pin", refuse)
            with pytest.raises(TooLarge, match="no memory can be locked"):
                first.run([[bytes(70_000)]], [(1, 17_500)], [0])
        assert first._inputs[0].memory is None
        gpu.fail = RuntimeError("CUDA failure 2: out of memory")
        with pytest.raises(RuntimeError, match="CUDA failure 2"):
            first.run([[x.tobytes()]], [x.shape], [1])
        assert not first._executor.lost
        assert first.run([[x.tobytes()]], [x.shape], [1])[0].tolist() == [3]
        held.close()


def test_inputs_that_are_read_in_the_hosts_memory_are_bound_there(load, affine, gpu):
    gpu.on_host = ("x",)
    with instances(load(affine())) as pair:
        for batch in range(3):
            for instance in pair:
                assert run(instance, [batch] * 6)[0].tolist() == expected([batch] * 6)
        places = {bound.binding.bound["x"][1] for bound in only_form(pair[0]).bound.values()}
        assert places == {pair[0]._lane.laid[0].pointer}


def test_so_are_those_of_varying_dimensions(load, varying, gpu):
    gpu.on_host = ("x",)
    with instances(load(varying)) as (first, _):
        for length in (3, 1, 40000):
            x = np.full((2, length), length, np.float32)
            found, sums = first.run([[x.tobytes()]], [x.shape], [0, 1])
            assert found.tolist() == (-x).tolist()
            assert sums.tolist() == [length * length] * 2


def test_texts_are_run_by_name(load, write, gpu):
    path = write(
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.STRING, ("N", 1))],
        [("y", TensorProto.STRING, ("N", 1))],
    )
    with instances(load(path)) as (first, second):
        for instance in (first, second):
            text = bytes_tensor.encode(np.array([[b"abc"]], object))
            assert instance.run([[text]], [(1, 1)], [0])[0].tolist() == [["abc"]]
    assert gpu.runs == {"by name": 2}


# --- in flight --------------------------------------------------------------------------------------------------------


def test_batches_in_flight_share_a_session_and_have_streams_and_buffers_of_their_own(load, affine, gpu):
    with instances(load(affine(), in_flight=3)) as made:
        assert len(made) == 3
        assert len(gpu.opened()) == 1
        assert len(gpu.devices[0].streams) == 4
        assert len({instance._lane.inputs[0].pointer for instance in made}) == 3
        assert [run(instance, [index] * 3)[0].tolist() for index, instance in enumerate(made)] == [
            [[1] * 3], [[3] * 3], [[5] * 3]
        ]  # fmt: skip


@pytest.mark.parametrize("busy", [False, True])
def test_batches_are_waited_for_as_model_toml_says(load, affine, write, gpu, busy):
    varying = ([("x", TensorProto.FLOAT, ("N", "M"))], [("y", TensorProto.FLOAT, ("N", "M"))])
    with instances(load(write([helper.make_node("Neg", ["x"], ["y"])], *varying), busy_wait=busy)) as (first, _):
        assert repr(first).startswith("<FlexibleInstance")
        assert [stream.busy_wait for stream in gpu.devices[0].streams] == [False, busy, busy]
    gpu.devices[0].streams.clear()
    with instances(load(affine(), busy_wait=busy)):
        computing, *lanes = gpu.devices[0].streams
        assert not computing.busy_wait, "nobody waits for it but after an error"
        assert [stream.busy_wait for stream in lanes] == [busy] * 2


def test_copies_of_one_batch_do_not_wait_for_another_to_compute(load, affine):
    with instances(load(affine())) as (first, second):
        computing = first._executor.stream
        first._upload([[np.ones(3, np.float32).tobytes()]], only_form(first), 1, 1)
        first._compute(only_form(first), 1)
        assert computing._pending
        second._upload([[np.full(3, 7, np.float32).tobytes()]], only_form(second), 1, 1)
        second._lane.stream.synchronize()  # a copy, and nothing else
        assert second._lane.inputs[0].array.view(np.float32)[:3].tolist() == [7] * 3
        assert computing._pending
        assert run(second, [2, 2, 2])[0].tolist() == [[5] * 3]


def test_a_batch_computes_behind_its_copy_and_is_copied_behind_its_computation(load, affine):
    with instances(load(affine())) as (first, _):
        first._upload([[np.ones(3, np.float32).tobytes()]], only_form(first), 1, 1)
        first._compute(only_form(first), 1)
        first._executor.stream.synchronize()  # does what it waits for first
        assert first._lane.outputs[0].array.view(np.float32)[:3].tolist() == [3] * 3


# --- several devices --------------------------------------------------------------------------------------------------


@pytest.fixture
def two(gpu):
    other = type(gpu)(devices=2)
    gpu.devices = other.devices
    return gpu


def test_an_instance_is_on_each_device(load, affine, two):
    model = load(affine(), devices=[1, 0])
    assert model.executors_per_instance == 4
    with instances(model, 8) as made:
        assert [instance._lane.device.index for instance in made] == [1, 1, 0, 0, 1, 1, 0, 0]
        assert [call.providers[0][1]["device_id"] for call in two.calls] == ["1", "0", "1", "0"]
        assert all(run(instance, [1, 2, 3])[0].tolist() == [[3, 5, 7]] for instance in made)


def test_outputs_that_are_made_in_the_hosts_memory_are_left_there(load, varying, two):
    two.on_host = ("x", "z")
    with instances(load(varying, devices=[1]), 1) as (first,):
        for length in (3, 1, 40000):
            x = np.full((2, length), length, np.float32)
            sums, found = first.run([[x.tobytes()]], [x.shape], [1, 0])
            assert found.tolist() == (-x).tolist()
            assert sums.tolist() == [length * length] * 2


def test_what_a_model_takes_of_each_device_is_measured(load, affine, two):
    two.takes = 1000
    model = load(affine(), devices=[0, 1])
    assert model.memory == {"cpu:0": 0, "cpu:1": 0}
    buffers = 2 * 8 * 12  # an input and an output of eight rows
    with instances(model, 6):
        assert model.memory == {"cpu:0": 2 * 1000 + 4 * buffers, "cpu:1": 1000 + 2 * buffers}
    gc.collect()
    assert model.memory == {"cpu:0": 0, "cpu:1": 0}


# --- the end, and failures --------------------------------------------------------------------------------------------


def test_a_session_ends_with_its_last_batch(load, affine, gpu):
    model = load(affine())
    first, second = model.make_instance(0), model.make_instance(1)
    first.close()
    assert run(second, [1, 2, 3])[0].tolist() == [[3, 5, 7]]
    assert not gpu.gone
    second.close()
    assert gpu.gone == 1
    assert not any(stream.open for stream in gpu.devices[0].streams)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", DeviceLost),
        ("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc", DeviceOutOfMemory),
    ],
)
def test_an_error_of_the_device_loses_the_instance_and_its_session(load, affine, gpu, text, kind):
    model = load(affine())
    with instances(model) as (first, second):
        gpu.fail = RuntimeError(text)
        with pytest.raises(kind, match=text[:12]):
            run(first, [1, 2, 3])
        with instances(model, 1) as (again,):  # in its place, while the other is not closed yet
            assert len(gpu.opened()) == 2
            assert again._executor is not second._executor
            assert run(again, [1, 2, 3])[0].tolist() == [[3, 5, 7]]
        assert model._groups == {}


def test_a_device_that_is_lost_loses_the_instance_whatever_the_error_says(load, affine, gpu):
    with instances(load(affine())) as (first, _):
        gpu.devices[0].lost = True
        with pytest.raises(DeviceLost):
            run(first, [1, 2, 3])
        assert first._executor.lost
        gpu.devices[0].lost, first._executor.lost = False, False
        gpu.fail, gpu.loses = RuntimeError("Non-zero status code returned while running Add node"), True
        with pytest.raises(DeviceLost, match="as the test wants"):
            run(first, [1, 2, 3])
        assert first._executor.lost
        gpu.devices[0].lost = False


def test_an_error_of_the_model_leaves_the_instance(load, affine, gpu):
    with instances(load(affine())) as (first, _):
        gpu.fail = RuntimeError("Available memory of 8 is smaller than requested bytes of 9")
        with pytest.raises(RuntimeError, match="Available memory"):
            run(first, [1, 2, 3])
        assert not first._executor.lost
        assert not first._lane.stream._pending
        assert run(first, [1, 2, 3])[0].tolist() == [[3, 5, 7]]


def test_a_varying_model_is_lost_with_its_device_too(load, varying, gpu):
    with instances(load(varying)) as (first, _):
        gpu.fail = RuntimeError("CUDA error 719: unspecified launch failure")
        with pytest.raises(DeviceLost):
            first.run([[bytes(4)]], [(1, 1)], [0])
        assert first._executor.lost
        gpu.fail = RuntimeError("invalid input")
        with pytest.raises(RuntimeError, match="invalid input"):
            first.run([[bytes(4)]], [(1, 1)], [0])


def test_a_model_need_not_run_zeros(load, affine, gpu, caplog):
    gpu.fail = RuntimeError("no kernel")
    with instances(load(affine())) as (first, _):
        assert run(first, [1, 2, 3])[0].tolist() == [[3, 5, 7]]
        assert gpu.runs == {"regular": 1 + 4}  # the other one's four buckets
    assert "a first run of 8 rows of zeros failed: no kernel" in caplog.text


def test_a_device_that_is_lost_in_the_first_run_is_a_failed_load(load, affine, gpu):
    gpu.fail = RuntimeError("CUDA failure 700: an illegal memory access")
    with pytest.raises(ModelLoadError, match=r"cpu:0 \(Fake\): CUDA failure 700"):
        load(affine()).make_instance(0)
    assert gpu.gone == 1


def test_no_memory_for_buffers_is_a_failed_load(load, affine, gpu):
    model = load(affine())
    gpu.takes = (1 << 30) - 100
    with pytest.raises(ModelLoadError, match=r"cpu:0 \(Fake\): 96 bytes are asked for"):
        model.make_instance(0)
    gc.collect()
