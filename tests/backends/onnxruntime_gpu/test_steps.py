"""Pre- and post-processing in the lanes of a session: before what it computes, and behind it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from headrace.backends.lane_steps import NO_STEPS
from headrace.engine.processed import process
from headrace.errors import ModelLoadError
from headrace.repository.model_config import ModelConfig
from headrace_kernels.reference import ImageTransform, top_k, transform_images

SIDE, CLASSES = 4, 6
CONFIG = ModelConfig.model_validate({
    "preprocess": {"x": {"kind": "image", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}},
    "postprocess": {"y": {"kind": "top_k", "k": 2}},
})  # fmt: skip
TRANSFORM = ImageTransform(SIDE, SIDE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
WEIGHTS = np.random.default_rng(0).normal(size=(3 * SIDE * SIDE, CLASSES)).astype(np.float32)


@pytest.fixture
def recogniser(write):
    return write(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "weights"], ["y"])],
        [("x", TensorProto.FLOAT, ("N", 3, SIDE, SIDE))],
        [("y", TensorProto.FLOAT, ("N", CLASSES))],
        [onnx.numpy_helper.from_array(WEIGHTS, "weights")],
    )


@pytest.mark.parametrize("graphs", [False, True], ids=["no graphs", "graphs"])
def test_images_to_the_best_classes(load, recogniser, gpu, graphs):
    model = process(load(recogniser, cuda_graphs=graphs), CONFIG)
    assert model.on_device
    instances = [model.make_instance(index) for index in range(model.executors_per_instance)]
    rng = np.random.default_rng(0)
    for sizes in ([(5, 9)], [(40, 3), (4, 4), (1, 1)], [(4, 4)] * 8):
        sent = [rng.integers(0, 256, (1, *size, 3), np.uint8) for size in sizes]
        parts = [memoryview(one.tobytes()).cast("B", one.shape) for one in sent]
        expected = top_k(transform_images([one[0] for one in sent], TRANSFORM).reshape(len(sent), -1) @ WEIGHTS, 2)
        for instance in instances:
            values, indices = instance.run([parts], [(len(sent), -1, -1, 3)], [0, 1])
            np.testing.assert_array_equal(indices, expected.indices)
            np.testing.assert_allclose(values, expected.values, rtol=1e-5)
    launched = gpu.devices[0].kernels().launched
    assert launched["TransformImages"] == launched["SelectTop"] == 3 * len(instances)
    for instance in instances:
        instance.close()


def test_dimensions_that_vary_leave_it_to_the_processor(load, varying):
    assert "not all dimensions of the model are fixed" in load(varying).take_steps(NO_STEPS)


def test_what_is_made_on_the_device_cannot_be_read_on_the_host(load, recogniser, gpu):
    gpu.on_host = ("x",)
    model = process(load(recogniser), CONFIG)
    with pytest.raises(ModelLoadError, match="input 'x' is made on the device, but it is the processor that reads it"):
        model.make_instance(0)
