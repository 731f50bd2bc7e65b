"""Pre- and post-processing in the lanes of the executors: beside the recorded graphs, which know nothing of them."""

import numpy as np
import pytest
from backends.tensorrt import networks

from headrace.backends.lane_steps import NO_STEPS
from headrace.engine.processed import process
from headrace.repository.model_config import ModelConfig
from headrace_kernels.reference import ImageTransform, top_k, transform_images

CONFIG = ModelConfig.model_validate({
    "preprocess": {"x": {"kind": "image", "fit": "letterbox", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}},
    "postprocess": {"y": {"kind": "top_k", "k": 2}},
})  # fmt: skip
TRANSFORM = ImageTransform(16, 16, fit="letterbox", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def images(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (1, *size, 3), np.uint8) for size in sizes]


def run(instance, sent):
    parts = [memoryview(one.tobytes()).cast("B", one.shape) for one in sent]
    return [array.copy() for array in instance.run([parts], [(len(sent), -1, -1, 3)], [0, 1])]


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
def test_images_through_an_engine_to_the_best_classes(load, trt, devices, graphs):
    made = load(networks.conv_net(), max_batch=4, batch_buckets=[2, 4], cuda_graphs=graphs)
    model = process(made, CONFIG)
    assert model.on_device
    instance, plain = model.make_instance(0), load(networks.conv_net(), max_batch=4).make_instance(0)
    for sizes in ([(5, 9)], [(40, 3), (16, 16), (1, 1)], [(16, 16)] * 4, [(7, 7), (30, 60)]):
        sent = images(*sizes)
        values, indices = run(instance, sent)
        pixels = transform_images([one[0] for one in sent], TRANSFORM)
        (logits,) = plain.run([[pixels.tobytes()]], [pixels.shape], [0])
        expected = top_k(logits, 2)
        np.testing.assert_array_equal(indices, expected.indices)
        np.testing.assert_allclose(values, expected.values, rtol=1e-6)
    launched = devices[0].kernels().launched
    assert (launched["TransformImages"], launched["SelectTop"]) == (4, 4)
    instance.close()
    plain.close()


def test_dimensions_that_vary_leave_it_to_the_processor(load):
    made = load(networks.any_length(), max_batch=2, profiles={"x": {"min": [1], "opt": [2], "max": [4]}})
    assert made.take_steps(NO_STEPS) == "not all dimensions of the model are fixed"
