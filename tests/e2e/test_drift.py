"""Drift of a model that serves: a reference is fitted, requests come, and a shift is seen by those who ask."""

import json
import subprocess
import urllib.error
import urllib.request

import numpy as np
import pytest
from e2e.calls import SECONDS, tensor
from e2e.onnx_models import scale, write
from e2e.server_process import HEADRACE, eventually, plain_environment
from tritonclient import grpc as triton

TOML = """
max_batch = 64
[drift]
window_s = 10
[drift.inputs.x]
[drift.outputs.y]
"""


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "models"
    write(root, "watched", scale(2, "N", 4), TOML)
    write(root, "plain", scale(2, "N", 4))
    data = tmp_path / "x.npy"
    np.save(data, np.random.default_rng(0).normal(size=(4000, 4)).astype(np.float32))
    done = subprocess.run(
        [HEADRACE, "drift", "fit", root / "watched" / "1", "--input", f"x={data}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=plain_environment(),
    )
    assert done.returncode == 0, done.stderr
    return root


def drift(server, model="watched"):
    return json.loads(server.get(f"/v2/models/{model}/drift")[1])


def features(report, direction="inputs"):
    return {one["feature"]: one for one in report["features"] if one["direction"] == direction}


def send(client, shift, batches=8, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(batches):
        rows = rng.normal(size=(64, 4)).astype(np.float32)
        rows[:, 2] += shift
        client.infer("watched", [tensor("x", rows)], client_timeout=SECONDS)


def test_a_shift_is_seen(serve, repository, tmp_path):
    state = tmp_path / "state"
    server = serve(repository, "--drift-directory", state, "--drift-cpu-share", "1", "--log-format", "json")
    with triton.InferenceServerClient(server.address) as client:
        send(client, 2.0)
        report = eventually(lambda: (found := drift(server))["span"]["rows_sampled"] >= 256 and found, 60)
        assert (report["model"], report["version"], report["reference_rows"]) == ("watched", "1", 4000)
        found = features(report)
        assert set(found) == {"0", "1", "2", "3"}
        assert max(found, key=lambda name: found[name]["ks"]) == "2"
        assert found["2"]["ks"] > 0.5 > max(found[name]["ks"] for name in "013")

        def raised():
            """Windows of ten seconds have to end first."""
            send(client, 2.0, batches=4, seed=1)
            return features(drift(server))["2"]["state"] == "alarm"

        eventually(raised, 60)
        report = drift(server)
        assert report["state"] == "alarm"
        assert set(features(report, "outputs")) == {"0", "1", "2", "3"}  # counted, though the reference has none
        labels = {"model": "watched", "version": "1", "tensor": "x", "direction": "inputs", "feature": "2"}
        eventually(lambda: server.metric("headrace_drift_alarm", **labels) == 1)
        assert server.metric("headrace_drift_score", score="ks", **labels) > 0.5
        assert server.metric("headrace_drift_rows_total", model="watched") >= 256
        logged = [json.loads(line) for line in server.log.splitlines() if "a feature has drifted" in line]
        (said,) = [line for line in logged if line["feature"] == "2"]
        assert said.items() >= (labels | {"level": "WARNING", "least": 0.03}).items()
        assert "distribution" in said["tests"]
        assert said["effect"] > 0.5
        assert said["p_value"] < 1e-6
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{server.http}/v2/models/plain/drift", timeout=SECONDS)
        assert caught.value.code == 501
        assert "nothing of model 'plain' is watched for drift" in caught.value.read().decode()
    assert server.stop() == 0
    assert all(line.startswith("{") for line in server.log.splitlines()), "what a library says at the end is no JSON"
    assert [file.name for file in state.iterdir()] == ["watched.1.drift"]
    flags = ("--model-control-mode", "explicit", "--load-models", "*")
    again = serve(repository, "--drift-directory", state, *flags)
    assert drift(again)["span"]["rows_sampled"] >= 256
    assert features(drift(again))["2"]["state"] == "alarm"
    with triton.InferenceServerClient(again.address) as client:
        send(client, 2.0, batches=1)
        rows = drift(again)["span"]["rows_offered"]
        client.load_model("watched")  # again
        assert drift(again)["span"]["rows_offered"] >= rows - 64  # the last ones are counted within seconds
        assert features(drift(again))["2"]["state"] == "alarm"
        client.unload_model("watched")
        client.load_model("watched")
        assert features(drift(again))["2"]["state"] == "alarm"
        toml = repository / "watched" / "model.toml"
        toml.write_text(toml.read_text().replace("window_s = 10", "window_s = 20"))
        client.load_model("watched")
        assert drift(again)["span"]["rows_sampled"] == 0
        assert "windows of drift begin anew" in again.log


def test_a_directory_that_cannot_be_written_keeps_the_server_from_starting(repository, tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [HEADRACE, "serve", "--model-repository", repository, "--drift-directory", tmp_path / "file"],
        capture_output=True, text=True, check=False, timeout=120, env=plain_environment(),
    )  # fmt: skip
    assert done.returncode == 2
    assert f"drift.directory = {tmp_path / 'file'}: no file can be written there: File exists" in done.stderr


def test_the_reference_of_another_model_keeps_the_model_from_serving(serve, repository):
    write(repository, "other", scale(2, "N", 4), "[drift.outputs.y]")
    (repository / "watched/1/drift.json").rename(repository / "other/1/drift.json")
    server = serve(repository)
    with triton.InferenceServerClient(server.address) as client:
        index = {one.name: one for one in client.get_model_repository_index().models}
    assert "has none of outputs.y, but inputs.x" in index["other"].reason


def test_a_reference_for_something_else_keeps_the_model_from_serving(serve, repository):
    (repository / "watched" / "model.toml").write_text(
        TOML.replace("[drift.inputs.x]", "[drift.inputs.x]\nfeatures = [1]")
    )
    server = serve(repository)
    with triton.InferenceServerClient(server.address) as client:
        index = {one.name: one for one in client.get_model_repository_index().models}
    assert index["plain"].state == "READY"
    assert index["watched"].reason.startswith(f"{repository / 'watched/1/drift.json'}: the reference (")
