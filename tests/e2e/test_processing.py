"""Images of any size and the best of many classes, by model.toml: with real clients, against Pillow and NumPy."""

import json
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as triton
from e2e.calls import SECONDS, failure, output, request, tensor
from e2e.conftest import shared
from e2e.onnx_models import info, model, write
from e2e.server_process import eventually
from grpc import StatusCode
from onnx import helper
from PIL import Image

SIDE, CLASSES = 8, 50
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
RECOGNISE = f"""
max_batch = 16
[batching]
policy = "delay"
delay_us = 200000
[preprocess.pixels]
kind = "image"
size = [{SIDE}, {SIDE}]
mean = {list(MEAN)}
std = {list(STD)}
[postprocess.logits]
kind = "top_k"
k = 3
values = "probabilities"
indices = "classes"
"""
LINEAR = """
[preprocess.x]
kind = "quantize"
scale = [0.5, 0.25]
axis = -1
[postprocess.y]
kind = "dequantize"
scale = 0.5
zero_point = 3
"""
WEIGHTS = np.random.default_rng(0).normal(size=(3 * SIDE * SIDE, CLASSES)).astype(np.float32)


def recogniser():
    """pixels FP32 [N,3,H,W] -> logits FP32 [N,CLASSES]: the pixels times WEIGHTS; grey [N,3,H,W], the pixels."""
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Identity", ["pixels"], ["seen"]),
    ]
    outputs = [info("logits", "FP32", "N", CLASSES), info("seen", "FP32", "N", 3, "H", "W")]
    return model(nodes, [info("pixels", "FP32", "N", 3, "H", "W")], outputs, [("weights", WEIGHTS)])


def identity_int8():
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return model(nodes, [info("x", "INT8", "N", 2)], [info("y", "INT8", "N", 2)])


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("processed")
    write(root, "recognise", recogniser(), RECOGNISE)
    write(root, "linear", identity_int8(), LINEAR)
    write(root, "wrong", recogniser(), '[preprocess.pixels]\nkind = "image"')
    return root


@pytest.fixture(scope="module")
def server(transport, repository):
    yield from shared(repository, transport)


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (1, height, width, 3), np.uint8)


def seen_by_the_model(pixels):
    """As Pillow resizes it, in floating point: channel by channel, as its 8-bit modes round in between."""
    planes = [
        np.asarray(
            Image.fromarray(pixels[..., channel].astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        )
        for channel in range(3)
    ]
    return np.stack([(plane / 255 - mean) / std for plane, mean, std in zip(planes, MEAN, STD, strict=True)])


def test_metadata_is_what_clients_send_and_get(client):
    metadata = client.get_model_metadata("recognise", as_json=True)
    described = {each["name"]: (each["datatype"], [*map(int, each["shape"])]) for each in
                 (*metadata["inputs"], *metadata["outputs"])}  # fmt: skip
    assert described == {
        "pixels": ("UINT8", [-1, -1, -1, 3]),
        "probabilities": ("FP32", [-1, 3]),
        "classes": ("INT32", [-1, 3]),
        "seen": ("FP32", [-1, 3, -1, -1]),
    }
    config = client.get_model_config("recognise", as_json=True)["config"]
    assert config["input"][0]["data_type"] == "TYPE_UINT8"


def test_images_of_differing_sizes_share_a_batch(server, stub):
    """The model waits for as many as it can take at once."""
    sizes = [(5, 7), (8, 8), (30, 3), (64, 100), (1, 1)]
    before = server.metric("headrace_batch_rows_count", model="recognise")
    images = [image(*size, seed) for seed, size in enumerate(sizes)]
    calls = [stub.ModelInfer.future(request("recognise", pixels=one), timeout=SECONDS) for one in images]
    for call, one in zip(calls, images, strict=True):
        response = call.result()
        pixels = seen_by_the_model(one[0])
        got = {each.name: at for at, each in enumerate(response.outputs)}
        np.testing.assert_allclose(output(response, got["seen"])[0], pixels, atol=2e-4)
        logits = pixels.reshape(-1).astype(np.float32) @ WEIGHTS
        best = np.argsort(-logits)[:3]
        assert output(response, got["classes"], np.int32)[0].tolist() == best.tolist()
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        np.testing.assert_allclose(output(response, got["probabilities"])[0], probabilities[best], rtol=2e-2, atol=1e-4)
    eventually(lambda: server.metric("headrace_batch_rows_count", model="recognise") > before)
    assert server.metric("headrace_batch_rows_count", model="recognise") - before < len(sizes)


def test_only_what_is_asked_for(client):
    wanted = [triton.InferRequestedOutput("classes")]
    result = client.infer("recognise", [tensor("pixels", image(9, 4))], outputs=wanted, client_timeout=SECONDS)
    assert result.as_numpy("classes").shape == (1, 3)
    assert result.as_numpy("probabilities") is None


def test_more_rows_than_a_batch(client):
    """Split, and joined again."""
    pixels = np.concatenate([image(5, 6, seed) for seed in range(20)])
    result = client.infer("recognise", [tensor("pixels", pixels)], client_timeout=SECONDS)
    expected = np.stack([seen_by_the_model(one) for one in pixels])
    np.testing.assert_allclose(result.as_numpy("seen"), expected, atol=2e-4)


def test_over_rest(server):
    pixels = image(3, 5)
    body = {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.tolist()}],
            "outputs": [{"name": "seen"}]}  # fmt: skip
    url = f"{server.http}/v2/models/recognise/infer"
    with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=SECONDS) as response:
        (seen,) = json.load(response)["outputs"]
    assert seen["shape"] == [1, 3, SIDE, SIDE]
    np.testing.assert_allclose(np.reshape(seen["data"], (3, SIDE, SIDE)), seen_by_the_model(pixels[0]), atol=2e-4)


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        (np.zeros((1, 0, 5, 3), np.uint8), "'pixels' for model 'recognise' has rows of [0, 5, 3]: expected at least"),
        (np.zeros((1, 4, 5, 4), np.uint8), "shape for input 'pixels' for model 'recognise'. Expected [-1,-1,-1,3]"),
        (np.zeros((1, 4, 5, 3), np.float32), "data-type is 'FP32', but model 'recognise' expects 'UINT8'"),
        (np.zeros((1, 40000, 1, 3), np.uint8), "0 to 32767 pixels on a side are possible"),
    ],
)  # fmt: skip
def test_what_is_no_image(stub, pixels, text):
    refused = failure(stub.ModelInfer, request("recognise", pixels=pixels))
    assert refused.code is StatusCode.INVALID_ARGUMENT
    assert text in refused.text


def test_quantized(client):
    values = np.array([[1, 2], [-3.3, 1e6]], np.float32)
    result = client.infer("linear", [tensor("x", values)], client_timeout=SECONDS)
    quantized = np.clip(np.rint(values / [0.5, 0.25]), -128, 127)
    np.testing.assert_array_equal(result.as_numpy("y"), (quantized - 3) * 0.5)


def test_a_table_that_contradicts_the_model_says_how(client):
    index = {model["name"]: model for model in client.get_model_repository_index(as_json=True)["models"]}
    assert "preprocess.pixels.size is needed: the model takes images of any size" in index["wrong"]["reason"]
