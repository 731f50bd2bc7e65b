"""A model behind steps: what its instance gets, what clients get, and which configurations contradict it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.policies import make_buckets
from headrace.engine.presented import present
from headrace.engine.processed import process, ragged_inputs
from headrace.errors import InvalidRequest, ModelLoadError
from headrace.messages import Signature, TensorSpec
from headrace.repository.model_config import ModelConfig
from headrace.testing.backend import FakeModel
from headrace_kernels.reference import ImageTransform, dequantize, quantize, top_k, transform_images

SIDE = 4
IMAGES = Signature(
    (TensorSpec("x", "FP32", (3, SIDE, SIDE)), TensorSpec("w", "FP32", (1,))), (TensorSpec("y", "FP32", (2,)),), 8
)
IMAGE = {"preprocess": {"x": {"kind": "image", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "order": "BGR"}}}
TRANSFORM = ImageTransform(SIDE, SIDE, swap=True, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))


def weighed(inputs):
    """y: the weighted sum of an image and its first element."""
    x, w = inputs
    return [np.stack([(x.sum(axis=(1, 2, 3)) * w[:, 0]), x[:, 0, 0, 0]], axis=1).astype(np.float32)]


def processed(signature, compute, config):
    config = ModelConfig.model_validate(config)
    fake = FakeModel(signature, compute)
    return process(fake, config), fake, config


def single(name, datatype, *dims, max_batch=4):
    """A signature of one tensor in, the same out as `y`."""
    return Signature((TensorSpec(name, datatype, dims),), (TensorSpec("y", datatype, dims),), max_batch)


def test_what_has_no_steps_is_left_alone():
    fake = FakeModel()
    assert process(fake, ModelConfig()) is fake
    assert ragged_inputs(fake) == {}


def test_clients_see_images_of_any_size():
    model, fake, config = processed(IMAGES, weighed, IMAGE)
    assert model.signature.inputs == (TensorSpec("x", "UINT8", (-1, -1, 3)), TensorSpec("w", "FP32", (1,)))
    assert model.signature.outputs == IMAGES.outputs
    assert (model.platform, model.executors_per_instance, model.inline) == (fake.platform, 1, False)
    buckets = make_buckets(config, model.signature, ragged_inputs(model))
    assert buckets.offered == model.signature
    assert buckets.certain
    (fit, shapes), *others = buckets.all()
    assert not others
    assert fit.shapes == ((SIDE, SIDE, 3), (1,))
    assert shapes == ((-1, -1, 3), (1,))


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4), st.data())
def test_images_of_differing_sizes_share_a_batch(requests, data):
    """Each request's rows are those of its own images, whatever came with them."""
    model, fake, config = processed(IMAGES, weighed, IMAGE)
    buckets = make_buckets(config, model.signature, ragged_inputs(model))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    sent = [rng.integers(0, 256, (*request, 3), np.uint8) for request in requests]
    weights = [rng.random((len(images), 1), np.float32) for images in sent]
    fits = [buckets.fit((images.shape[1:], (1,)), "m") for images in sent]
    assert len({shapes for _, shapes in fits}) == 1  # the key of their batch
    rows = sum(map(len, sent))
    shapes = [(rows, *dims) for dims in fits[0][1]]
    members = [(fit, len(images)) for (fit, _), images in zip(fits, sent, strict=True)]
    wrap = data.draw(st.sampled_from([bytes, bytearray, lambda raw: memoryview(bytearray(raw))]))
    inputs = buckets.pack(
        members, [[wrap(images.tobytes()) for images in sent], [one.tobytes() for one in weights]], shapes
    )
    (got,) = model.make_instance(0).run(inputs, shapes, [0])
    expected = transform_images([image for images in sent for image in images], TRANSFORM)
    np.testing.assert_array_equal(fake.runs[0].inputs[0], expected)
    np.testing.assert_array_equal(got, weighed([expected, np.concatenate(weights)])[0])


def test_rows_of_one_size_need_no_bucket():
    """As warm-up requests of model.toml bring them."""
    model, fake, _ = processed(IMAGES, weighed, IMAGE)
    images = np.arange(2 * 5 * 6 * 3, dtype=np.uint8).reshape(2, 5, 6, 3)
    weights = np.ones((2, 1), np.float32)
    model.make_instance(0).run(
        [[images[:1].tobytes(), images[1:].tobytes()], [weights.tobytes()]], [images.shape, (2, 1)], [0]
    )
    np.testing.assert_array_equal(fake.runs[0].inputs[0], transform_images(list(images), TRANSFORM))


@pytest.mark.parametrize("dims", [(3, SIDE, SIDE), (1, 3, SIDE, SIDE)])
def test_an_image_for_a_model_without_batches(dims):
    signature = single("x", "FP16", *dims, max_batch=0)
    model, fake, config = processed(signature, lambda inputs: inputs, {"preprocess": {"x": {"kind": "image"}}})
    assert model.signature.inputs == (TensorSpec("x", "UINT8", (-1, -1, 3)),)
    buckets = make_buckets(config, model.signature, ragged_inputs(model))
    image = np.arange(2 * 7 * 3, dtype=np.uint8).reshape(2, 7, 3)
    fit, shapes = buckets.fit((image.shape,), "m")
    inputs = buckets.pack([(fit, 1)], [[image.tobytes()]], shapes)
    (got,) = model.make_instance(0).run(inputs, shapes, [0])
    assert got.shape == fake.runs[0].inputs[0].shape == dims
    expected = transform_images([image], ImageTransform(SIDE, SIDE, dtype="float16"))
    np.testing.assert_array_equal(got.reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("dims", "why"),
    [
        ((0, 5, 3), "has rows of [0, 5, 3]: expected at least one pixel"),
        ((5, 0, 3), "has rows of [5, 0, 3]: expected at least one pixel"),
        ((40000, 5, 3), "image 0 of 40000 x 5 would be resized to 4 x 4; 0 to 32767 pixels on a side are possible"),
    ],
)
def test_images_that_cannot_be(dims, why):
    model, _, config = processed(IMAGES, weighed, IMAGE)
    buckets = make_buckets(config, model.signature, ragged_inputs(model))
    with pytest.raises(InvalidRequest) as caught:
        buckets.fit((dims, (1,)), "m")
    assert str(caught.value).startswith("input 'x' for model 'm'")
    assert why in str(caught.value)


def test_one_that_would_grow_beyond_all_bounds_is_refused_before_it_joins_a_batch():
    """Its shorter side is 1, and becomes 256."""
    config = {"preprocess": {"x": {"kind": "image", "fit": "crop", "shorter": 256}}}
    model, _, config = processed(IMAGES, weighed, config)
    buckets = make_buckets(config, model.signature, ragged_inputs(model))
    buckets.fit(((1, 100, 3), (1,)), "m")
    with pytest.raises(InvalidRequest, match=r"resized to 256 x 256000"):
        buckets.fit(((1, 1000, 3), (1,)), "m")


@pytest.mark.parametrize("per_channel", [False, True])
def test_quantized_in_and_out(per_channel):
    linear = {"scale": [0.5, 0.25, 2.0], "zero_point": [1, 2, 3], "axis": 1} if per_channel else {"scale": 0.5}
    config = {
        "preprocess": {"x": {"kind": "quantize", **linear}},
        "postprocess": {"y": {"kind": "dequantize", **linear}},
    }
    model, fake, _ = processed(single("x", "INT8", 3), lambda inputs: inputs, config)
    assert model.signature == single("x", "FP32", 3)
    assert model.inline
    values = np.array([[1, -2, 3.3], [1e9, -1e9, 0.1]], np.float32)
    (got,) = model.make_instance(0).run([[values[:1].tobytes(), values[1:].tobytes()]], [(2, 3)], [0])
    arguments = (linear["scale"], linear.get("zero_point"))
    expected = quantize(values, *arguments, axis=linear.get("axis"))
    np.testing.assert_array_equal(fake.runs[0].inputs[0], expected)
    np.testing.assert_array_equal(got, dequantize(expected, *arguments, axis=linear.get("axis")))


@pytest.mark.parametrize(
    "linear", [{"scale": [0.5, 0.5], "zero_point": 3, "axis": 1}, {"scale": 0.5, "zero_point": [3, 3], "axis": -1}]
)
def test_a_single_number_is_for_every_channel(linear):
    config = {"preprocess": {"x": {"kind": "quantize", **linear}}}
    model, fake, _ = processed(single("x", "INT8", 2), lambda inputs: inputs, config)
    model.make_instance(0).run([[np.array([[1, 2]], np.float32).tobytes()]], [(1, 2)], [0])
    assert fake.runs[0].inputs[0].tolist() == [[5, 7]]


def test_uint8_takes_a_zero_point_beyond_int8():
    config = {"preprocess": {"x": {"kind": "quantize", "scale": 0.1, "zero_point": 200}}}
    model, fake, _ = processed(single("x", "UINT8", 2), lambda inputs: inputs, config)
    model.make_instance(0).run([[np.array([[0, 1]], np.float32).tobytes()]], [(1, 2)], [0])
    assert fake.runs[0].inputs[0].tolist() == [[200, 210]]


LOGITS = Signature(
    (TensorSpec("x", "FP32", (5,)),),
    (TensorSpec("other", "FP32", (5,)), TensorSpec("logits", "FP32", (5,)), TensorSpec("tokens", "FP16", (1, 5))),
    4,
)


def logits(inputs):
    (x,) = inputs
    return [x + 1, x, x.astype(np.float16)[:, None]]


def test_the_greatest_take_the_place_of_logits():
    config = {
        "postprocess": {
            "logits": {"kind": "top_k", "k": 2, "values": "probabilities", "indices": "classes"},
            "tokens": {"kind": "top_k", "k": 1, "softmax": False},
        }
    }
    model, _, _ = processed(LOGITS, logits, config)
    assert model.signature.outputs == (
        TensorSpec("other", "FP32", (5,)),
        TensorSpec("probabilities", "FP32", (2,)),
        TensorSpec("classes", "INT32", (2,)),
        TensorSpec("tokens_values", "FP32", (1, 1)),
        TensorSpec("tokens_indices", "INT32", (1, 1)),
    )
    values = np.array([[1, 5, 3, 2, 4], [9, 8, 7, 6, 5]], np.float32)
    run = model.make_instance(0).run
    expected = top_k(values, 2)
    outputs = run([[values.tobytes()]], [values.shape], range(5))
    np.testing.assert_array_equal(outputs[0], values + 1)
    np.testing.assert_array_equal(outputs[1], expected.values)
    np.testing.assert_array_equal(outputs[2], [[1, 4], [0, 1]])
    np.testing.assert_array_equal(outputs[3], [[[5]], [[9]]])
    np.testing.assert_array_equal(outputs[4], [[[1]], [[0]]])
    classes, other = run([[values.tobytes()]], [values.shape], [2, 0])
    np.testing.assert_array_equal(classes, expected.indices)
    np.testing.assert_array_equal(other, values + 1)


def test_an_output_in_pieces_is_computed_once():
    asked = []

    class Counting(FakeModel):
        def make_instance(self, index):
            instance = super().make_instance(index)
            run = instance.run
            instance.run = lambda inputs, shapes, outputs: asked.append(list(outputs)) or run(inputs, shapes, outputs)
            return instance

    config = ModelConfig.model_validate({"postprocess": {"logits": {"kind": "top_k", "k": 2}}})
    model = process(Counting(LOGITS, logits), config)
    model.make_instance(0).run([[bytes(20)]], [(1, 5)], [2, 3, 1])
    assert asked == [[1, 2]]


def test_closing():
    model, fake, _ = processed(LOGITS, logits, {"postprocess": {"logits": {"kind": "top_k", "k": 2}}})
    model.make_instance(0).close()
    assert fake.instances[0].closed


TOP = {"kind": "top_k", "k": 2}


@pytest.mark.parametrize(
    ("signature", "config", "message"),
    [
        (LOGITS, {"preprocess": {"z": {"kind": "image"}}}, "preprocess.z: the inputs of the model are ['x']"),
        (LOGITS, {"postprocess": {"x": TOP}}, "postprocess.x: the outputs of the model are ['other', 'logits', 'tok"),
        (LOGITS, {"preprocess": {"x": {"kind": "image"}}},
         "preprocess.x: the model takes FP32 [-1,5], an image becomes FP32 or FP16 [-1,channels,height,width]"),
        (single("x", "UINT8", 3, 4, 4), {"preprocess": {"x": {"kind": "image"}}}, "the model takes UINT8 [-1,3,4,4]"),
        (single("x", "FP32", 3, -1, 4), {"preprocess": {"x": {"kind": "image"}}},
         "preprocess.x.size is needed: the model takes images of any size, [-1, 4]"),
        (single("x", "FP32", 3, 4, 4), {"preprocess": {"x": {"kind": "image", "size": [4, 5]}}},
         "preprocess.x.size is [4, 5], the model takes images of [4, 4]"),
        (single("x", "FP32", 4, 4, 4), {"preprocess": {"x": {"kind": "image"}}}, "images have 1 or 3 channels, not 4"),
        (single("x", "FP32", 3, 4, 4), {"preprocess": {"x": {"kind": "image", "mean": [1.0]}}},
         "preprocess.x: mean has a value for each of 3 channels, not 1"),
        (single("x", "FP32", 3), {"preprocess": {"x": {"kind": "quantize", "scale": 1.0}}},
         "preprocess.x: the model has FP32, quantized are INT8 and UINT8"),
        (single("x", "INT8", 3), {"preprocess": {"x": {"kind": "quantize", "scale": [1.0, 1.0], "axis": 1}}},
         "preprocess.x: scale has 2 values for 3 channels"),
        (single("x", "INT8", 3), {"preprocess": {"x": {"kind": "quantize", "scale": 1.0, "zero_point": 200}}},
         "preprocess.x: zero points of int8 are integers from -128 to 127"),
        (single("x", "INT8", 3), {"preprocess": {"x": {"kind": "quantize", "scale": [1.0], "axis": 0}}},
         "preprocess.x.axis is 0, which is no dimension of a row of [-1,3]"),
        (single("x", "INT8", 3), {"preprocess": {"x": {"kind": "quantize", "scale": [1.0], "axis": 2}}},
         "preprocess.x.axis is 2, which is no dimension of a row of [-1,3]"),
        (single("x", "INT8", -1), {"preprocess": {"x": {"kind": "quantize", "scale": [1.0], "axis": 1}}},
         "preprocess.x.axis is 1, of any size in [-1,-1]: its channels are not known"),
        (single("x", "FP32", 3), {"postprocess": {"y": {"kind": "dequantize", "scale": 1.0}}},
         "postprocess.y: the model has FP32, quantized are INT8 and UINT8"),
        (single("x", "INT8", 3), {"postprocess": {"y": TOP}}, "postprocess.y: the model gives INT8 [-1,3], top_k"),
        (single("x", "FP32", -1), {"postprocess": {"y": TOP}}, "of a known number, as last dimension"),
        (single("x", "FP32", 1), {"postprocess": {"y": TOP}}, "postprocess.y.k is 2, the model gives 1 classes"),
        (LOGITS, {"postprocess": {"logits": {**TOP, "values": "other"}}}, "postprocess makes two outputs 'other'"),
    ],
)  # fmt: skip
def test_what_contradicts_the_model(signature, config, message):
    with pytest.raises(ModelLoadError) as caught:
        processed(signature, lambda inputs: inputs, config)
    assert message in str(caught.value)


def test_labels_are_of_all_classes(tmp_path):
    (tmp_path / "labels.txt").write_text("a\nb\n")
    config = ModelConfig.model_validate(
        {"postprocess": {"logits": TOP}, "outputs": {"logits": {"labels": "labels.txt"}}}
    )
    with pytest.raises(ModelLoadError, match=r"outputs.logits.labels have no effect where postprocess.logits leaves 2"):
        process(present(FakeModel(LOGITS, logits), config, tmp_path), config)


def test_no_buckets_for_what_is_of_any_size_already():
    length = {"sizes": [4], "inputs": {"x": 1}, "outputs": {}}
    model, _, config = processed(IMAGES, weighed, IMAGE | {"buckets": {"n": length}})
    with pytest.raises(ModelLoadError, match=r"buckets.n: rows of input 'x' may be of any size already"):
        make_buckets(config, model.signature, ragged_inputs(model))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"preprocess": {"x": {"kind": "picture"}}}, "preprocess.x"),
        ({"preprocess": {"x": {"kind": "image", "shorter": 4}}}, "shorter is for fit = 'crop', and fit is 'stretch'"),
        ({"preprocess": {"x": {"kind": "image", "align": "top-left"}}}, "align is for fit = 'letterbox'"),
        ({"preprocess": {"x": {"kind": "image", "std": [1.0, 0.0, 1.0]}}}, "std has a 0"),
        ({"preprocess": {"x": {"kind": "quantize", "scale": 0.0}}}, "scale has a value that is not above 0"),
        ({"preprocess": {"x": {"kind": "quantize", "scale": []}}}, "scale has a value that is not above 0, or none"),
        ({"preprocess": {"x": {"kind": "quantize", "scale": [1.0]}}}, "scale is a list; axis says which dimension"),
        ({"postprocess": {"x": {"kind": "image"}}}, "postprocess.x"),
        ({"postprocess": {"x": {"kind": "top_k"}}}, "k"),
        ({"preprocess": {"x": {"kind": "image"}}, "ensemble": {"steps": [{"model": "a", "outputs": {"a": "b"}}]}},
         "preprocess have no effect in an ensemble"),
    ],
)  # fmt: skip
def test_what_model_toml_may_not_say(table, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        ModelConfig.model_validate(table)
