"""A guarded version: it is compared with the one that is trusted, and requests find that when they have to."""

import json
import queue
import time
import urllib.request

import numpy as np
import pytest
from e2e.calls import SECONDS, tensor
from e2e.onnx_models import info, model, write
from e2e.server_process import eventually
from e2e.test_processing import RECOGNISE, image, recogniser
from onnx import helper
from tritonclient import grpc as triton

import guard_power

TOML = """
max_batch = 16
version_labels = {stable = 2}
[guard]
reference = 1
share = 1.0
cpu_budget = 1.0
kind = "classes"
"""


def scores(weights):
    """x FP32 [N,4] -> y FP32 [N,3], scores of classes."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return model(nodes, [info("x", "FP32", "N", 4)], [info("y", "FP32", "N", 3)], [("w", weights.astype(np.float32))])


WEIGHTS = np.random.default_rng(1).normal(size=(4, 3))


def guarded(root, second, toml=TOML):
    write(root, "m", scores(WEIGHTS), toml)
    write(root, "m", scores(second), version=2)
    return root


def post(server, path):
    with urllib.request.urlopen(urllib.request.Request(server.http + path, method="POST"), timeout=SECONDS) as reply:
        return json.loads(reply.read())


def guard(server, path="/v2/models/m/guard"):
    status, told = server.get_json(path)
    assert status == 200, told
    return told


class Load:
    """Sends requests one after another, all of which have to succeed."""

    def __init__(self, client):
        self.client = client
        self.rng = np.random.default_rng(0)

    def send(self, count=40, version=""):
        """The versions that have answered."""
        return {
            self.client.infer(
                "m", [tensor("x", self.rng.normal(size=(2, 4)).astype(np.float32))], version, client_timeout=SECONDS
            )
            .get_response()
            .model_version
            for _ in range(count)
        }


def test_traffic_moves_back_to_the_reference(serve, tmp_path):
    server = serve(guarded(tmp_path / "models", -WEIGHTS))
    with triton.InferenceServerClient(server.address) as client:
        load = Load(client)
        assert load.send(1) == {"2"}
        eventually(lambda: load.send(20) == {"1"}, 60)
        told = guard(server)
        assert (told["version"], told["reference"], told["state"]) == ("2", "1", "fallen_back")
        assert told["agreement"]["upper"] < 0.99
        assert told["proof"]["what"] == "agreement"
        assert told["proof"]["bound"] < 0.99
        assert load.send(5, "stable") == {"1"}, "a label is no number"
        assert load.send(5, "2") == {"2"}
        assert client.is_model_ready("m")
        assert client.is_model_ready("m", "2")
        assert server.metric("headrace_guard_fallen_back_state", model="m", version="2") == 1
        assert server.metric("headrace_guard_alarm", model="m", version="2") == 1
        assert server.log.count("does not answer as version 1 does") == 1
        assert "requests that do not ask for it by its number find version 1 from now on" in server.log
        assert server.metric("headrace_refused_total", model="m") == 0
        anew = post(server, "/v2/models/m/guard/reset")
        assert (anew["state"], anew["requests"], anew["proof"]) == ("watching", 0, None)
        assert load.send(1) == {"2"}
        eventually(lambda: load.send(20) == {"1"}, 60)
    assert server.stop() == 0


ENSEMBLE = """
[[ensemble.steps]]
model = "m"
inputs = {x = "x"}
outputs = {y = "y"}
"""


def test_nothing_is_lost_while_they_move(serve, tmp_path):
    """With many requests under way, each is answered, by one version or the other, and with that one's values."""
    root = guarded(tmp_path / "models", -WEIGHTS)
    (root / "chain" / "1").mkdir(parents=True)
    (root / "chain" / "model.toml").write_text(ENSEMBLE)
    server = serve(root)
    rng = np.random.default_rng(0)
    ended = queue.SimpleQueue()
    answered = {"1": 0, "2": 0}

    def take():
        rows, reply, error = ended.get(timeout=SECONDS)
        assert error is None
        version = reply.get_response().model_version
        answered[version] += 1
        np.testing.assert_allclose(
            reply.as_numpy("y"), rows @ (WEIGHTS if version == "1" else -WEIGHTS), rtol=1e-4, atol=1e-5
        )

    with triton.InferenceServerClient(server.address) as client:

        def send():
            rows = rng.normal(size=(2, 4)).astype(np.float32)
            inputs = [tensor("x", rows)]
            client.async_infer(
                "m", inputs, lambda result, error: ended.put((rows, result, error)), client_timeout=SECONDS
            )

        for _ in range(64):
            send()
        end = time.monotonic() + SECONDS
        while answered["1"] < 200:
            take()
            send()
            assert time.monotonic() < end
        for _ in range(64):
            take()
        assert answered["2"] >= 8
        rows = rng.normal(size=(2, 4)).astype(np.float32)
        found = client.infer("chain", [tensor("x", rows)], client_timeout=SECONDS).as_numpy("y")
        np.testing.assert_allclose(
            found, rows @ WEIGHTS, rtol=1e-4, atol=1e-5, err_msg="an ensemble finds the reference as well"
        )
    assert server.metric("headrace_refused_total", model="m") == 0
    assert server.stop() == 0


def test_a_good_version_goes_on(serve, tmp_path):
    server = serve(guarded(tmp_path / "models", WEIGHTS * 1.0001))
    with triton.InferenceServerClient(server.address) as client:
        load = Load(client)

        def seen():
            assert load.send(50) == {"2"}
            return guard(server)["requests"] >= 300

        eventually(seen, 60)
        told = guard(server, "/v2/models/m/versions/2/guard")
        assert (told["state"], told["proof"]) == ("watching", None)
        assert told["agreement"]["mean"] == 1.0
        assert told["rows"] == 2 * told["requests"]
        assert sum(one["rows"] for one in told["margins"]) == told["rows"]
        status, problem = server.get_json("/v2/models/m/versions/1/guard")
        assert (status, problem["error"]) == (501, "version 1 of model 'm' is not guarded: see [guard] of model.toml")
        status, problem = server.get_json("/v2/models/absent/guard")
        assert status == 404, problem
    assert server.stop() == 0


def test_loading_again_begins_anew_if_it_is_another(serve, tmp_path):
    root = guarded(tmp_path / "models", -WEIGHTS)
    server = serve(root, "--model-control-mode", "explicit", "--load-models", "*")
    with triton.InferenceServerClient(server.address) as client:
        load = Load(client)
        eventually(lambda: load.send(20) == {"1"}, 60)
        (root / "m/2/model.onnx").write_bytes(scores(-WEIGHTS))
        client.load_model("m")
        assert load.send(20) == {"1"}, "it is the same again"
        assert (told := guard(server))["state"] == "fallen_back"
        assert told["proof"]["compared"] >= 30
        client.unload_model("m")
        eventually(lambda: server.get("/v2/models/m/guard")[0] != 200)
        client.load_model("m")
        assert load.send(20) == {"1"}
        (root / "m/2/model.onnx").write_bytes(scores(WEIGHTS))
        client.load_model("m")
        assert load.send(20) == {"2"}
        assert guard(server)["state"] == "watching"
        client.unload_model("m")
        eventually(lambda: server.get("/v2/models/m/guard")[0] != 200)


def test_only_reported(serve, tmp_path):
    server = serve(guarded(tmp_path / "models", -WEIGHTS, TOML + 'action = "report"'))
    with triton.InferenceServerClient(server.address) as client:
        load = Load(client)

        def reported():
            assert load.send(20) == {"2"}
            return guard(server)["state"] == "reported"

        eventually(reported, 60)
        assert server.metric("headrace_guard_alarm", model="m", version="2") == 1
        assert server.metric("headrace_guard_fallen_back_state", model="m") == 0
        index = {(one.name, one.version) for one in client.get_model_repository_index().models}
        assert index == {("m", "2")}, "the reference need not serve"


def test_what_keeps_a_version_from_serving(serve, tmp_path):
    wrong = {
        "absent": ("reference = 3", "guard.reference = 3: there is no such version, but 1, 2"),
        "itself": ("reference = 2", "guard.reference = 2 is the only version to be served: there is nothing to guard"),
        "output": ('reference = 1\noutput = "z"', 'guard.output = "z": the model has no such output, but y'),
        "kind": ("reference = 1", "guard.kind is needed: output 'y', FP32 [3] without labels, may be scores"),
    }
    for name, (lines, _) in wrong.items():
        write(tmp_path, name, scores(WEIGHTS), f"[guard]\n{lines}")
        write(tmp_path, name, scores(WEIGHTS), version=2)
    write(tmp_path, "signature", scores(WEIGHTS), TOML)
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    write(tmp_path, "signature", model(nodes, [info("x", "FP32", "N", 4)], [info("y", "FP32", "N", 4)]), version=2)
    server = serve(tmp_path)
    with triton.InferenceServerClient(server.address) as client:
        index = {(one.name, one.version): one for one in client.get_model_repository_index().models}
    for name, (_, reason) in wrong.items():
        assert index[name, "2"].state == "UNAVAILABLE"
        assert index[name, "2"].reason.startswith(reason)
    assert index["signature", "1"].state == index["kind", "1"].state == "READY"
    assert index["signature", "2"].reason == "guard.reference = 1: it has outputs 'y' FP32 [3], expected 'y' FP32 [4]"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return guard_power.digits(tmp_path_factory.mktemp("digits"))


DIGITS = """
[guard]
reference = 1
share = 0.5
cpu_budget = 1.0
kind = "classes"
"""


def test_images_of_any_size_that_the_server_prepares(serve, tmp_path):
    """What is compared is what clients see, behind all that the server does before and after."""
    toml = RECOGNISE + '[guard]\nreference = 1\nshare = 1.0\ncpu_budget = 1.0\noutput = "classes"'
    write(tmp_path, "recognise", recogniser(), toml)
    write(tmp_path, "recognise", recogniser(), version=2)
    server = serve(tmp_path)
    with triton.InferenceServerClient(server.address) as client:
        for seed in range(12):
            client.infer("recognise", [tensor("pixels", image(9 + seed, 20 - seed, seed))], client_timeout=SECONDS)
        told = eventually(lambda: (found := guard(server, "/v2/models/recognise/guard"))["requests"] == 12 and found)
    assert (told["kind"], told["failed"], told["agreement"]["mean"]) == ("equal", 0, 1.0)
    assert not any(told["skipped"].values())


class TestDigits:
    """INT8 versions of a model that has learned something, beside it in FP32."""

    def start(self, serve, root, digits, int8):
        write(root, "digits", digits.fp32.read_bytes(), DIGITS)
        write(root, "digits", int8.read_bytes(), version=2)
        return serve(root)

    def send(self, client, images, count, rng):
        """Requests of one image each, drawn at random: how many each version has answered."""
        answered = {"1": 0, "2": 0}
        for at in rng.integers(len(images), size=count):
            reply = client.infer("digits", [tensor("pixels", images[at : at + 1])], client_timeout=SECONDS)
            answered[reply.get_response().model_version] += 1
        return answered

    def test_one_image_again_and_again(self, serve, tmp_path, digits):
        """One that the good version takes for another digit, at a share of 1, among others and alone."""
        images = digits.held_out
        wrong = guard_power.answers(digits.int8, images).argmax(1) != guard_power.answers(digits.fp32, images).argmax(1)
        (first, *_), well = np.flatnonzero(wrong), images[~wrong][:50]
        write(tmp_path, "digits", digits.fp32.read_bytes(), DIGITS.replace("share = 0.5", "share = 1.0"))
        write(tmp_path, "digits", digits.int8.read_bytes(), version=2)
        server = serve(tmp_path)

        def send(client, image):
            reply = client.infer("digits", [tensor("pixels", image[None])], client_timeout=SECONDS)
            assert reply.get_response().model_version == "2"

        with triton.InferenceServerClient(server.address) as client:
            for image in well:
                send(client, images[first])
                send(client, image)
            told = eventually(lambda: (found := guard(server, "/v2/models/digits/guard"))["requests"] == 51 and found)
            assert (told["state"], told["skipped"]["repeated"]) == ("watching", 49)
            assert told["agreement"]["mean"] == pytest.approx(50 / 51)
            send(client, images[first])

    def test_a_bad_calibration(self, serve, tmp_path, digits):
        server = self.start(serve, tmp_path, digits, digits.narrow[guard_power.NARROW[0]])
        rng = np.random.default_rng(0)
        with triton.InferenceServerClient(server.address) as client:
            eventually(lambda: self.send(client, digits.held_out, 20, rng)["1"] == 20, 60)
        proof = guard(server, "/v2/models/digits/guard")["proof"]
        assert proof["requests"] < 100
        assert proof["mean"] < 0.6

    def test_a_shift_of_the_inputs(self, serve, tmp_path, digits):
        server = self.start(serve, tmp_path, digits, digits.int8)
        rng = np.random.default_rng(0)
        with triton.InferenceServerClient(server.address) as client:
            assert self.send(client, digits.held_out, 1000, rng) == {"1": 0, "2": 1000}
            assert guard(server, "/v2/models/digits/guard")["state"] == "watching"
            bright = digits.held_out * np.float32(guard_power.BRIGHTER[-1])
            eventually(lambda: self.send(client, bright, 50, rng)["1"] == 50, 60)
        told = guard(server, "/v2/models/digits/guard")
        assert (told["state"], told["proof"]["what"]) == ("fallen_back", "agreement")
        assert sum(one["rows"] for one in told["margins"]) == told["rows"]
        assert sum(one["rows"] * one["disagreement"] for one in told["margins"] if one["rows"]) > 1
        assert server.metric("headrace_refused_total", model="digits") == 0
