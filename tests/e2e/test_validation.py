"""Rules for inputs with real clients: refused are those who break one, and nobody else, on every transport."""

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.http as triton_http
from e2e.calls import SECONDS, failure, floats, output, request, tensor
from e2e.conftest import shared
from e2e.onnx_models import identity, info, model, scale, write
from grpc import StatusCode
from onnx import helper

RULES = """
max_batch = 16
[batching]
policy = "delay"
delay_us = 100000
[inputs.x]
finite = true
min = [-1, -2, -3, -4]
max = 10
fill = 0
names = ["age", "income", "debt", "rooms"]
policy = {finite = "clip"}
"""
SCHEMA = """
format = "headrace schema 1"
source = "train.csv"
[inputs.x]
max = 5
max_missing = 0.25
policy = {range = "count"}
"""
PBTXT = """
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [4] }]
"""
TEXTS = """
[inputs.x]
max_length = 6
pattern = "(a|aa|[ä-ü])+"
"""
IMAGES = """
[inputs.x]
dims = [-1, -1, 3]
format = "NHWC"
max_height = 8
min_width = 2
"""


def flat():
    """x UINT8 [N,H,W,3] -> y, the same."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return model(nodes, [info("x", "UINT8", "N", "H", "W", 3)], [info("y", "UINT8", "N", "H", "W", 3)])


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("validated")
    write(root, "ruled", scale(2, "N", 4), RULES)
    for name in ("triton", "bare"):
        write(root, name, scale(2, "N", 4))
        (root / name / "1" / "schema.toml").write_text(SCHEMA)
    (root / "triton" / "config.pbtxt").write_text(f'name: "triton"\nplatform: "onnxruntime_onnx"{PBTXT}')
    write(root, "texts", identity("BYTES", "N", 1), TEXTS)
    write(root, "images", flat(), IMAGES)
    write(root, "wrong", scale(2, "N", 4), "[inputs.x]\nmin = [1, 2]")
    return root


@pytest.fixture(scope="module")
def server(transport, repository):
    yield from shared(repository, transport)


def counted(server, name, rule, policy):
    return server.metric("headrace_validation_total", model=name, input="x", rule=rule, policy=policy)


def test_of_many_callers_at_once_those_at_fault_are_told_and_the_others_served(server, stub):
    before = counted(server, "ruled", "range", "reject") or 0
    given = [floats([number % 12, 0, 0, 0]) for number in range(48)]
    calls = [stub.ModelInfer.future(request("ruled", x=values), timeout=SECONDS) for values in given]
    for values, call in zip(given, calls, strict=True):
        if values[0, 0] <= 10:
            assert output(call.result()).tolist() == (values * 2).tolist()
        else:
            assert call.code() is StatusCode.INVALID_ARGUMENT
            assert dict(call.trailing_metadata())["headrace-reason"] == "rule_broken"
            assert call.details() == (
                "element [0, 0] (age) of input 'x' for model 'ruled' is 11.0, expected a value from -1 to 10 "
                "(rule 'range')"
            )
    assert counted(server, "ruled", "range", "reject") - before == 4
    assert server.metric("headrace_refused_total", model="ruled", reason="rule_broken") >= 4


def test_the_position_is_that_in_the_callers_own_request(client, stub):
    values = np.zeros((3, 4), np.float32)
    values[2, 3] = -4.5
    refused = failure(stub.ModelInfer, request("ruled", x=values))
    assert refused.text.startswith("element [2, 3] (rooms) of input 'x'")
    assert refused.text.endswith("is -4.5, expected a value from -4 to 10 (rule 'range')")


def test_clipped(server, client):
    values = floats([np.nan, np.inf, -np.inf, 1])
    result = client.infer("ruled", [tensor("x", values)], client_timeout=SECONDS)
    assert result.as_numpy("y").tolist() == [[0, 20, -6, 2]]
    assert counted(server, "ruled", "finite", "clip") >= 1


@pytest.mark.parametrize("name", ["triton", "bare"])
def test_a_schema_counts_and_refuses_whatever_else_configures_the_model(server, client, stub, name):
    result = client.infer(name, [tensor("x", floats([6, 0, 0, np.nan]))], client_timeout=SECONDS)
    np.testing.assert_array_equal(result.as_numpy("y"), [[12, 0, 0, np.nan]])
    assert counted(server, name, "range", "count") == 1
    refused = failure(stub.ModelInfer, request(name, x=floats([np.nan, 0, 0, np.nan])))
    assert "is missing (NaN), as are 2 of the 4 elements of its row" in refused.text
    assert "(rule 'missing')" in refused.text


def test_texts(server, client, stub):
    def ask(text):
        return client.infer("texts", [tensor("x", np.array([[text]], object), "BYTES")], client_timeout=SECONDS)

    assert ask("aäaaü").as_numpy("y").tolist() == [["aäaaü".encode()]]
    with pytest.raises(
        Exception, match=r"element \[0, 0\] .* is 'ab', expected all of it to match .*\(rule 'pattern'\)"
    ):
        ask("ab")
    with pytest.raises(Exception, match=r"has 7 characters, expected a length of at most 6 \(rule 'length'\)"):
        ask("a" * 7)
    with pytest.raises(Exception, match=r"\(rule 'length'\)"):  # at once: Python's re would take years
        ask("a" * 1_000_000 + "!")


def test_images(client):
    def ask(height, width):
        pixels = np.zeros((1, height, width, 3), np.uint8)
        return client.infer("images", [tensor("x", pixels)], client_timeout=SECONDS)

    assert ask(8, 2).as_numpy("y").shape == (1, 8, 2, 3)
    for _ in range(2):
        with pytest.raises(
            Exception, match=r"images of 9 x 2 pixels .*, expected a height of at most 8 \(rule 'size'\)"
        ):
            ask(9, 2)


def test_over_rest(server):
    def ask(data):
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": data}]}
        url = f"{server.http}/v2/models/ruled/infer"
        try:
            with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=SECONDS) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, error.headers["headrace-reason"], json.load(error)["error"]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, [[1, 2, 3, 4], [1, 2, 3, 11], [0, 0, 0, 0], [-2, 0, 0, 0]]))
    assert [reply[0] for reply in found] == [200, 400, 200, 400]
    assert found[0][1]["outputs"][0]["data"] == [2, 4, 6, 8]
    text = (
        "element [0, 3] (rooms) of input 'x' for model 'ruled' is 11.0, expected a value from -4 to 10 (rule 'range')"
    )
    assert found[1][1:] == ("rule_broken", text)
    with triton_http.InferenceServerClient(server.http.removeprefix("http://")) as client:
        given = triton_http.InferInput("x", [1, 4], "FP32")
        given.set_data_from_numpy(floats([0, 0, -3.5, 0]))  # in binary form
        with pytest.raises(Exception, match=r"element \[0, 2\] \(debt\) of input 'x'"):
            client.infer("ruled", [given])


def test_on_a_stream_the_others_go_on(client):
    replies = []
    client.start_stream(lambda result, error: replies.append((result, error)))
    for number in (1, 11, 2):
        client.async_stream_infer("ruled", [tensor("x", floats([number, 0, 0, 0]))])
    client.stop_stream()
    assert [error is None for _, error in replies] == [True, False, True]
    assert "(rule 'range')" in str(replies[1][1])


def test_rules_that_do_not_fit_the_model_keep_it_from_serving(client):
    index = {model["name"]: model for model in client.get_model_repository_index(as_json=True)["models"]}
    assert index["wrong"]["reason"].endswith("/wrong/model.toml: inputs.x: min has 2 features, the input has [4]")
