"""Pre- and post-processing on the device that a model runs on: the same answers as on the processor, by its kernels."""

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.backends.base import InstanceLost, memory_of, nodes_of
from headrace.backends.buffers import row_bytes
from headrace.backends.device import DeviceError, DeviceLost
from headrace.backends.lane_steps import NO_STEPS, refusal
from headrace.backends.staging import Lane
from headrace.datatypes import DATATYPES
from headrace.engine.presented import present
from headrace.engine.processed import process
from headrace.messages import Signature, TensorSpec
from headrace.repository.model_config import ModelConfig
from headrace.testing.backend import FakeModel
from headrace.testing.device import FakeDevice
from headrace_kernels.interface import KernelsUnavailable

ROWS = 4


class LaneModel:
    """A model that computes with NumPy in the stream of a fake device, behind lanes.

    padded: rows that each batch is filled up to.
    """

    platform = "fake"
    executors_per_instance = 1
    inline = False

    def __init__(self, signature, compute, *, padded=0):
        self.signature = signature
        self.compute = compute
        self.padded = padded
        self.device = FakeDevice()
        self.steps = NO_STEPS
        self.seen = []

    def take_steps(self, steps):
        if not (why := refusal([self.device], steps)):
            self.steps = steps
        return why

    def make_instance(self, index):
        return LaneInstance(self)


class LaneInstance:
    def __init__(self, model):
        self.model = model
        self.inputs, self.outputs = model.signature.inputs, model.signature.outputs
        sizes = [[max(model.signature.max_batch, 1) * row_bytes(spec) for spec in specs]
                 for specs in (self.inputs, self.outputs)]  # fmt: skip
        self.lane = Lane(model.device, *sizes, model.steps)

    def run(self, inputs, shapes, outputs):
        model, lane = self.model, self.lane
        rows = shapes[0][0] if model.signature.max_batch else 1
        batch = max(rows, model.padded)
        for index, (spec, parts) in enumerate(zip(self.inputs, inputs, strict=True)):
            lane.lay(index, parts, rows * row_bytes(spec), batch * row_bytes(spec))
            lane.upload(index, batch * row_bytes(spec))
        lane.stream.enqueue(lambda: self.compute(batch))
        for index in outputs:
            lane.download(index, rows * row_bytes(self.outputs[index]))
        lane.stream.synchronize()
        lead = (rows,) if model.signature.max_batch else ()
        return [lane.result(index, self.outputs[index], lead + self.outputs[index].shape) for index in outputs]

    def compute(self, rows):
        lead = (rows,) if self.model.signature.max_batch else ()
        given = [self.tensor(memory, spec, lead) for memory, spec in zip(self.lane.inputs, self.inputs, strict=True)]
        self.model.seen.append([array.copy() for array in given])
        for memory, spec, array in zip(self.lane.outputs, self.outputs, self.model.compute(given), strict=True):
            self.tensor(memory, spec, lead)[...] = array

    @staticmethod
    def tensor(memory, spec, lead):
        shape = lead + spec.shape
        dtype = DATATYPES[spec.datatype].numpy
        return memory.array[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)

    def close(self):
        self.lane.close()


IMAGES = Signature(
    (TensorSpec("x", "FP32", (3, 4, 5)), TensorSpec("w", "FP32", (1,))),
    (TensorSpec("y", "FP32", (60,)), TensorSpec("w", "FP32", (1,))),
    ROWS,
)
IMAGE = {
    "preprocess": {"x": {"kind": "image", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1], "fit": "letterbox"}},
    "postprocess": {"y": {"kind": "top_k", "k": 3}},
}


def flattened(inputs):
    x, w = inputs
    return [x.reshape(len(x), -1) * w, w]


def both(signature, compute, config, padded=0):
    """The model on the device and on the processor, behind its steps, and the bare one on the device."""
    config = ModelConfig.model_validate(config)
    bare = LaneModel(signature, compute, padded=padded)
    return process(bare, config), process(FakeModel(signature, compute), config), bare


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=ROWS),
    st.sampled_from([0, 2, ROWS]),
    st.data(),
)
def test_images_become_the_same_as_on_the_processor(sizes, padded, data):
    device, host, bare = both(IMAGES, flattened, IMAGE, padded)
    assert device.signature == host.signature
    assert (device.on_device, host.on_device) == (True, False)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    images = [rng.integers(0, 256, (1, *size, 3), np.uint8) for size in sizes]
    weights = rng.random((len(sizes), 1), np.float32)
    inputs = [[memoryview(image.tobytes()).cast("B", image.shape) for image in images], [weights.tobytes()]]
    shapes = [(len(sizes), -1, -1, 3), weights.shape]
    outputs = data.draw(st.permutations(range(3)))[: data.draw(st.integers(1, 3))]
    got = device.make_instance(0).run(inputs, shapes, outputs)
    expected = host.make_instance(0).run(inputs, shapes, outputs)
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    (given,) = bare.seen
    assert len(given[0]) == max(len(sizes), padded)
    padding = given[0][len(sizes) :]
    np.testing.assert_allclose(padding, np.broadcast_to([[[-2.5]], [[-2]], [[-3]]], padding.shape), rtol=1e-5)
    assert bare.device.kernels().launched["TransformImages"] == 1


def test_what_the_model_takes_and_has_is_published():
    device, _, bare = both(IMAGES, flattened, IMAGE)
    bare.memory, bare.nodes = {"cuda:0": 5}, {"CUDAExecutionProvider": 2}
    assert (memory_of(device), nodes_of(device)) == (bare.memory, bare.nodes)


def test_labels_of_an_output_leave_it_to_the_device(tmp_path):
    (tmp_path / "labels.txt").write_text("a\n")
    config = ModelConfig.model_validate({**IMAGE, "outputs": {"w": {"labels": "labels.txt"}}})
    bare = LaneModel(IMAGES, flattened)
    device = process(present(bare, config, tmp_path), config)
    assert device.on_device
    inputs = [[memoryview(bytes(3)).cast("B", (1, 1, 1, 3))], [np.ones(1, np.float32).tobytes()]]
    values, indices, w = device.make_instance(0).run(inputs, [(1, -1, -1, 3), (1, 1)], [0, 1, 2])
    assert (values.shape, indices.shape, w.tolist()) == ((1, 3), (1, 3), [[1]])
    assert bare.device.kernels().launched == {"TransformImages": 1, "SelectTop": 1}


def test_only_what_is_wanted_comes_back():
    device, _, bare = both(IMAGES, flattened, IMAGE)
    inputs = [[memoryview(bytes(3)).cast("B", (1, 1, 1, 3))], [np.ones(1, np.float32).tobytes()]]
    instance = device.make_instance(0)
    instance.run(inputs, [(1, -1, -1, 3), (1, 1)], [2])
    assert bare.device.kernels().launched["SelectTop"] == 0
    instance.run(inputs, [(1, -1, -1, 3), (1, 1)], [1, 0])
    assert bare.device.kernels().launched["SelectTop"] == 1


def test_rows_of_one_size_without_a_bucket():
    device, host, _ = both(IMAGES, flattened, IMAGE)
    images = np.arange(2 * 5 * 6 * 3, dtype=np.uint8).reshape(2, 5, 6, 3)
    arguments = [[images[:1].tobytes(), images[1:].tobytes()], [np.ones(2, np.float32).tobytes()]], \
        [images.shape, (2, 1)], [0]  # fmt: skip
    np.testing.assert_array_equal(device.make_instance(0).run(*arguments)[0], host.make_instance(0).run(*arguments)[0])


def test_more_pixels_than_there_was_room_for(monkeypatch):
    """Room is made between two batches; what there was before goes on working."""
    monkeypatch.setattr("headrace.backends.lane_steps.FIRST_PIXELS", 100)
    device, host, bare = both(IMAGES, flattened, IMAGE)
    mine, theirs = device.make_instance(0), host.make_instance(0)
    rng = np.random.default_rng(0)
    taken = []
    for side in (2, 50, 3, 60, 50):
        image = rng.integers(0, 256, (1, side, side, 3), np.uint8)
        inputs = [[memoryview(image.tobytes()).cast("B", image.shape)], [np.ones(1, np.float32).tobytes()]]
        arguments = inputs, [(1, -1, -1, 3), (1, 1)], [0, 1]
        for got, expected in zip(mine.run(*arguments), theirs.run(*arguments), strict=True):
            np.testing.assert_array_equal(got, expected)
        taken.append(sum(memory.nbytes for memory in bare.device.allocated))
    assert taken[0] < taken[1] == taken[2] < taken[3] == taken[4]
    mine.close()
    assert not bare.device.allocated


def test_a_batch_of_more_pixels_than_memory_fails_alone():
    device, _, bare = both(IMAGES, flattened, IMAGE)
    bare.device._memory = 4096 * 8
    instance = device.make_instance(0)
    weights = [np.ones(1, np.float32).tobytes()]
    huge = memoryview(bytes(1000 * 1000 * 3)).cast("B", (1, 1000, 1000, 3))
    with pytest.raises(DeviceError, match="no memory for 3000000 bytes of pixels"):
        instance.run([[huge], weights], [(1, -1, -1, 3), (1, 1)], [0])
    instance.run([[memoryview(bytes(3)).cast("B", (1, 1, 1, 3))], weights], [(1, -1, -1, 3), (1, 1)], [0])


def test_a_lost_device_is_told():
    device, _, bare = both(IMAGES, flattened, IMAGE)
    instance = device.make_instance(0)
    bare.device.lost = True
    with pytest.raises(DeviceLost):
        instance.run([[memoryview(bytes(3)).cast("B", (1, 1, 1, 3))], [bytes(4)]], [(1, -1, -1, 3), (1, 1)], [0])


def test_no_memory_for_the_steps_leaves_nothing_behind():
    device, _, bare = both(IMAGES, flattened, IMAGE)
    bare.device._memory = 2300
    with pytest.raises(InstanceLost):
        device.make_instance(0)
    assert not bare.device.allocated


LINEAR = {"scale": [0.5, 0.25, 2.0], "zero_point": [1, 2, 3]}


@pytest.mark.parametrize(
    ("datatype", "max_batch", "linear"),
    [
        ("INT8", ROWS, LINEAR | {"axis": 1}),
        ("UINT8", ROWS, LINEAR | {"axis": -1}),
        ("INT8", ROWS, {"scale": 0.5, "zero_point": -7}),
        ("INT8", 0, LINEAR | {"axis": 0}),
        ("INT8", 0, LINEAR | {"axis": -1}),
    ],
)
@pytest.mark.parametrize("padded", [0, 3])
def test_integers_become_the_same_as_on_the_processor(datatype, max_batch, linear, padded):
    signature = Signature((TensorSpec("x", datatype, (3,)),), (TensorSpec("y", datatype, (3,)),), max_batch)
    config = {
        "preprocess": {"x": {"kind": "quantize", **linear}},
        "postprocess": {"y": {"kind": "dequantize", **linear}},
    }
    device, host, bare = both(signature, lambda inputs: inputs, config, padded if max_batch else 0)
    values = np.array([[1, -2, 3.3], [1e9, -1e9, 0.1]], np.float32)[: max_batch or 1]
    shape = values.shape if max_batch else values.shape[1:]
    arguments = [[row.tobytes() for row in values]], [shape], [0]
    (got,) = device.make_instance(0).run(*arguments)
    (expected,) = host.make_instance(0).run(*arguments)
    assert got.shape == expected.shape == shape
    np.testing.assert_array_equal(got, expected)
    assert bare.device.kernels().launched == {"Quantize": 1, "Dequantize": 1}


def test_a_model_is_warmed_without_its_steps():
    """A graph that is recorded then, of zeros or ones, holds no work of theirs."""
    device, _, bare = both(IMAGES, flattened, IMAGE)
    device.make_instance(0)
    instance = LaneInstance(bare)
    ones = [[np.ones(60, np.float32).tobytes()], [np.ones(1, np.float32).tobytes()]]
    y, w = instance.run(ones, [(1, 3, 4, 5), (1, 1)], [0, 1])
    assert (y.shape, w.shape) == ((1, 60), (1, 1))
    assert set(y.reshape(-1)) == {1}
    assert not bare.device.kernels().launched


def test_what_the_device_cannot_do_the_processor_does(caplog):
    caplog.set_level(logging.WARNING)
    signature = Signature((TensorSpec("x", "FP32", (300,)),), (TensorSpec("y", "FP32", (300,)),), ROWS)
    many = {"postprocess": {"y": {"kind": "top_k", "k": 200, "softmax": False}}}
    device, _, bare = both(signature, lambda inputs: inputs, many)
    assert not device.on_device
    assert "runs on the processor: one of them cannot run on a device" in caplog.text
    values = np.arange(300, dtype=np.float32)[None]
    got, _ = device.make_instance(0).run([[values.tobytes()]], [values.shape], [0, 1])
    assert got[0].tolist() == list(range(299, 99, -1))
    assert not bare.device.kernels().launched


def test_without_their_code_the_processor_does_it(caplog):
    config = ModelConfig.model_validate(IMAGE)
    for source in ("images", "topk"):
        bare = LaneModel(IMAGES, flattened)
        bare.device.kernels().absent.add(source)
        assert not process(bare, config).on_device
        assert f"runs on the processor: there is no code of {source}.cu" in caplog.text
    bare.device.kernels().absent = {"quantize"}
    assert process(bare, config).on_device


def test_a_model_that_is_shown_otherwise_leaves_it_to_the_processor(caplog, tmp_path):
    config = ModelConfig.model_validate({**IMAGE, "inputs": {"w": {}, "x": {}}})
    bare = LaneModel(IMAGES, flattened)
    device = process(present(bare, config, tmp_path), config)
    assert not device.on_device
    assert "runs on the processor: model.toml shows the model's tensors otherwise than they are" in caplog.text
    image = memoryview(bytes(3)).cast("B", (1, 1, 1, 3))
    arguments = [[np.ones(1, np.float32).tobytes()], [image]], [(1, 1), (1, -1, -1, 3)], [2]
    assert device.make_instance(0).run(*arguments)[0].tolist() == [[1]]


def test_without_kernels_the_processor_does_it(caplog, monkeypatch):
    def unavailable(_):
        raise KernelsUnavailable("cuda-core is not installed")

    monkeypatch.setattr(FakeDevice, "kernels", unavailable)
    device, host, _ = both(IMAGES, flattened, IMAGE)
    assert not device.on_device
    assert "runs on the processor: cuda-core is not installed" in caplog.text
    image = memoryview(bytes(range(12))).cast("B", (1, 2, 2, 3))
    arguments = [[image], [np.ones(1, np.float32).tobytes()]], [(1, -1, -1, 3), (1, 1)], [0]
    np.testing.assert_array_equal(device.make_instance(0).run(*arguments)[0], host.make_instance(0).run(*arguments)[0])
