"""Requests of different lengths with real clients, over real sockets, into shared batches of ONNX Runtime."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from e2e.calls import SECONDS, failure, output, request, tensor
from e2e.conftest import shared
from e2e.onnx_models import SHIPPED, info, model, scale, write
from onnx import helper

ROOT = Path(__file__).parents[2]
TOKENS = """
max_batch = 16
[buckets.tokens]
sizes = { power_of = 2, min = 4, max = 32 }
inputs.ids = 1
masks.mask = 1
lengths = "count"
outputs.each = 1
[inputs.ids]
pad = -1
min = 0
[batching]
policy = "delay"
delay_us = 200000
"""


def tokens():
    """ids INT32 [N,S], mask FP32 [N,S], count INT64 [N,1] -> each = ids + 1, [N,S]; told [N,2]: sum of mask, count."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["values"], to=1),
        helper.make_node("Constant", [], ["one"], value_float=1.0),
        helper.make_node("Constant", [], ["axis"], value_ints=[1]),
        helper.make_node("Add", ["values", "one"], ["each"]),
        helper.make_node("ReduceSum", ["mask", "axis"], ["masked"], keepdims=1),
        helper.make_node("Cast", ["count"], ["counted"], to=1),
        helper.make_node("Concat", ["masked", "counted"], ["told"], axis=1),
    ]
    inputs = [info("ids", "INT32", "N", "S"), info("mask", "FP32", "N", "S"), info("count", "INT64", "N", 1)]
    return model(nodes, inputs, [info("each", "FP32", "N", "S"), info("told", "FP32", "N", 2)])


@pytest.fixture(scope="module")
def bucketed(tmp_path_factory):
    root = tmp_path_factory.mktemp("buckets")
    write(root, "tokens", tokens(), TOKENS)
    sides = "[buckets.{0}]\nsizes = [4, 8]\ninputs.x = {1}\noutputs.y = {1}\n"
    write(root, "grid", scale(2, "N", "H", "W"), sides.format("height", 1) + sides.format("width", 2))
    write(root, "whole", scale(2, "H", "W"), "max_batch = 0\n" + sides.format("height", 0))
    write(
        root, "wrong", scale(2, "N", "S"), "[buckets.n]\nsizes = [4]\ninputs.x = 1\noutputs.y = {dim = 1, divide = 2}"
    )
    return root


@pytest.fixture(scope="module")
def server(transport, bucketed):
    yield from shared(bucketed, transport)


def infer(client, name, **arrays):
    """The outputs of a model for these inputs."""
    inputs = [tensor(key, array) for key, array in arrays.items()]
    return client.infer(name, inputs, client_timeout=SECONDS)


def ids(rows, length, first=0):
    return np.arange(first, first + rows * length, dtype=np.int32).reshape(rows, length)


def test_each_gets_its_own_from_a_batch_of_many_lengths(server, stub):
    """Concurrent requests, more rows than a batch among them; the model waits for as many as it can take at once."""
    sent = [ids(rows, length, first=1000 * at) for at, (rows, length) in enumerate(
        [(1, 1), (2, 3), (1, 4), (3, 5), (1, 8), (1, 7), (2, 6), (40, 2), (1, 31), (1, 32), (1, 17), (2, 20), (1, 3)]
    )]  # fmt: skip
    before = server.metric("nv_inference_exec_count", model="tokens")
    calls = [
        stub.ModelInfer.future(request("tokens", ids=values, parameters={"headrace_timing": True}), timeout=SECONDS)
        for values in sent
    ]
    for values, call in zip(sent, calls, strict=True):
        reply = call.result()
        rows, length = values.shape
        np.testing.assert_array_equal(output(reply, 0), values.astype(np.float32) + 1)
        np.testing.assert_array_equal(output(reply, 1), np.full((rows, 2), length))
        bucket = max(4, 1 << (length - 1).bit_length())
        told = reply.parameters["headrace_padding_percent"].int64_param
        assert told == round(100 * (bucket - length) / bucket)
    assert server.metric("nv_inference_exec_count", model="tokens") - before < len(sent)


def test_padding_is_counted(server, stub):
    names = ("headrace_elements_total", "headrace_padding_elements_total")
    before = [server.metric(name, model="tokens") for name in names]
    stub.ModelInfer(request("tokens", ids=ids(2, 5)), timeout=SECONDS)
    after = [server.metric(name, model="tokens") for name in names]
    assert [there - then for there, then in zip(after, before, strict=True)] == [10, 6]


def test_clients_see_what_they_have_to_send(client):
    metadata = client.get_model_metadata("tokens", client_timeout=SECONDS)
    assert [(given.name, given.datatype, list(given.shape)) for given in metadata.inputs] == [
        ("ids", "INT32", [-1, -1])
    ]
    assert [given.name for given in metadata.outputs] == ["each", "told"]
    config = client.get_model_config("tokens", client_timeout=SECONDS).config
    assert [(given.name, list(given.dims)) for given in config.input] == [("ids", [-1])]
    assert config.max_batch_size == 16


def test_a_mask_may_be_sent_all_the_same(client):
    mask = np.array([[1, 1, 0, 0, 0]], np.float32)
    told = infer(client, "tokens", ids=ids(1, 5), mask=mask).as_numpy("told")
    assert told.tolist() == [[2, 5]]
    counted = infer(client, "tokens", mask=mask, count=np.array([[3]], np.int64), ids=ids(1, 5)).as_numpy("told")
    assert counted.tolist() == [[2, 3]]


def test_two_lengths_and_no_batch_dimension(client):
    for shape in ((2, 3, 5), (1, 8, 1), (3, 4, 8)):
        x = np.random.default_rng(0).standard_normal(shape, np.float32)
        np.testing.assert_array_equal(infer(client, "grid", x=x).as_numpy("y"), 2 * x)
    x = np.arange(9, dtype=np.float32).reshape(3, 3)
    np.testing.assert_array_equal(infer(client, "whole", x=x).as_numpy("y"), 2 * x)


def test_what_does_not_fit_is_refused_with_what_would(stub):
    refused = failure(stub.ModelInfer, request("tokens", ids=ids(1, 33)))
    assert (refused.code.name, refused.reason) == ("INVALID_ARGUMENT", "invalid_request")
    assert refused.text == (
        "input 'ids' for model 'tokens' has 33 in dimension 1, expected at most 32, the greatest bucket"
    )
    refused = failure(stub.ModelInfer, request("tokens", ids=ids(1, 5), mask=np.ones((1, 4), np.float32)))
    assert refused.text == "input 'mask' for model 'tokens' has 4 in dimension 1, expected 5, the tokens of input 'ids'"
    refused = failure(stub.ModelInfer, request("tokens", ids=ids(1, 5) - 1))
    assert refused.text.startswith(
        "element [0, 0] of input 'ids' for model 'tokens' is -1, expected a value of at least 0"
    )


def test_a_wrong_rule_keeps_a_model_from_serving(client):
    index = client.get_model_repository_index(client_timeout=SECONDS)
    (found,) = [entry for entry in index.models if entry.name == "wrong"]
    assert found.state == "UNAVAILABLE"
    assert "by buckets.n.outputs, dimension 1 would be 2" in found.reason


def post(url, body):
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=SECONDS) as response:
        return json.loads(response.read())


def test_over_http(server):
    body = {"inputs": [{"name": "ids", "datatype": "INT32", "shape": [1, 3], "data": [4, 5, 6]}]}
    found = post(f"{server.http}/v2/models/tokens/infer", json.dumps(body).encode())
    outputs = {one["name"]: (one["shape"], one["data"]) for one in found["outputs"]}
    assert outputs == {"each": ([1, 3], [5, 6, 7]), "told": ([1, 2], [3, 3])}
    body["inputs"][0] |= {"shape": [1, 33], "data": list(range(33))}
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(f"{server.http}/v2/models/tokens/infer", json.dumps(body).encode())
    with caught.value as refused:
        assert "expected at most 32, the greatest bucket" in json.loads(refused.read())["error"]


@pytest.mark.skipif(not (SHIPPED / "textline/1/model.onnx").exists(), reason="models/textline/fetch.py has not run")
@pytest.mark.parametrize("transport", ["native"], indirect=True)  # once is enough: it takes two seconds to load
def test_example_textline(serve, tmp_path):
    (tmp_path / "textline").symlink_to(SHIPPED / "textline")
    server = serve(tmp_path)
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "textline.py", "--url", server.address],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 9, done.stderr
    assert all(line.startswith(f"{(text := line.partition(': ')[0])}: {text!r} (") for line in lines[2:]), lines
    assert any(not line.endswith(", 0 % padding") for line in lines)
