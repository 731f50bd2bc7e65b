"""The repository control of tritonclient: load, unload, index, and reloads while others are being served."""

import json
import threading

import pytest
import tritonclient.grpc as triton
from e2e.calls import SECONDS, floats, statistics, tensor
from e2e.onnx_models import scale
from e2e.server_process import eventually
from tritonclient.utils import InferenceServerException


def write(root, name, factor, version=1, toml=None):
    directory = root / name / str(version)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(scale(factor, "N", 1))
    if toml is not None:
        (root / name / "model.toml").write_text(toml)


def index(client):
    found = client.get_model_repository_index(client_timeout=SECONDS).models
    return {(model.name, model.version): (model.state, model.reason) for model in found}


def ask(client, model="m", version=""):
    result = client.infer(model, [tensor("x", floats(1))], model_version=version, client_timeout=SECONDS)
    return result.as_numpy("y").item(), result.get_response().model_version


def refusal(call, *arguments):
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, client_timeout=SECONDS)
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


@pytest.fixture
def explicit(serve, tmp_path):
    write(tmp_path, "m", 2)
    server = serve(tmp_path, "--model-control-mode", "explicit", "--load-models", "m")
    with triton.InferenceServerClient(server.address) as client:
        yield server, client, tmp_path


def test_load_unload_and_index(explicit):
    _, client, root = explicit
    assert index(client) == {("m", "1"): ("READY", "")}
    write(root, "other", 3)
    (root / "broken" / "1").mkdir(parents=True)
    (root / "broken" / "1" / "model.onnx").write_bytes(b"garbage")
    assert index(client)["other", ""] == ("UNAVAILABLE", "not loaded")
    client.load_model("other", client_timeout=SECONDS)
    assert client.is_model_ready("other", client_timeout=SECONDS)
    assert ask(client, "other") == (3, "1")
    code, text = refusal(client.load_model, "broken")
    assert code == "INVALID_ARGUMENT"
    assert text.startswith(
        "load failed for model 'broken': version 1 is at UNAVAILABLE state: ONNX Runtime cannot load"
    )
    assert index(client)["broken", "1"][0] == "UNAVAILABLE"
    assert refusal(client.load_model, "missing") == (
        "INTERNAL",
        "failed to load 'missing', failed to poll from model repository",
    )
    client.unload_model("other", client_timeout=SECONDS)
    eventually(lambda: index(client)["other", "1"] == ("UNAVAILABLE", "unloaded"))
    assert refusal(client.is_model_ready, "other")[0] == "NOT_FOUND"
    assert refusal(client.is_model_ready, "other", "1")[0] == "UNAVAILABLE"
    assert ask(client) == (2, "1")


def test_a_client_may_not_bring_a_configuration(explicit):
    _, client, _ = explicit
    with pytest.raises(InferenceServerException, match="'config' of a load is switched off"):
        client.load_model("m", config="{}", client_timeout=SECONDS)


def test_a_client_may_bring_a_configuration_and_files_where_that_is_allowed(serve, tmp_path):
    write(tmp_path, "m", 2)
    flags = ("--model-control-mode", "explicit", "--load-models", "m")
    server = serve(tmp_path, *flags, "--allow-config-override", "true", "--allow-file-override", "true")
    with triton.InferenceServerClient(server.address) as client:
        config = json.dumps({"backend": "onnxruntime", "maxBatchSize": 3})
        client.load_model("m", config=config, client_timeout=SECONDS)
        assert client.get_model_config("m", client_timeout=SECONDS).config.max_batch_size == 3
        assert ask(client) == (2, "1")
        client.load_model("m", config=config, files={"file:7/model.onnx": scale(9, "N", 1)}, client_timeout=SECONDS)
        assert ask(client) == (9, "7")
        client.load_model("m", client_timeout=SECONDS)
        assert ask(client) == (2, "1")
        assert client.get_model_config("m", client_timeout=SECONDS).config.max_batch_size == 64
        for wrong, text in (("{", "not a ModelConfig in JSON"), ('{"max_batch": 3}', "max_batch")):
            with pytest.raises(InferenceServerException, match=text):
                client.load_model("m", config=wrong, client_timeout=SECONDS)
        for path in ("file:../1/model.onnx", "file:model.onnx", "file:1/../../x", "file:/etc/x"):
            with pytest.raises(InferenceServerException, match="expected 'file:<version>/<file>'"):
                client.load_model("m", config=config, files={path: b"x"}, client_timeout=SECONDS)
        assert ask(client) == (2, "1")


def test_control_is_off_by_default(client):
    code, text = refusal(client.load_model, "digits")
    assert (code, text) == (
        "UNAVAILABLE",
        "explicit model load / unload is not allowed: model_control_mode is 'none', expected 'explicit'",
    )
    assert refusal(client.unload_model, "digits")[0] == "UNAVAILABLE"


def test_a_reload_under_load_loses_nothing(explicit, stub_of):
    """Every request is answered, by the old model or by the new one, and never by the old one after the new one."""
    server, client, root = explicit
    stop = threading.Event()
    seen = []

    def hammer():
        with triton.InferenceServerClient(server.address) as mine:
            answers = []
            seen.append(answers)
            while not stop.is_set():
                answers.append(ask(mine)[0])

    callers = [threading.Thread(target=hammer) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        eventually(lambda: len(seen) == 4 and all(seen))
        for factor in (3, 4, 5):
            write(root, "m", factor)
            client.load_model("m", client_timeout=SECONDS)
            assert ask(client)[0] == factor
            before = [len(answers) for answers in seen]
            eventually(lambda before=before: all(len(a) > b for a, b in zip(seen, before, strict=True)))
    finally:
        stop.set()
        for caller in callers:
            caller.join(SECONDS)
    for answers in seen:
        assert answers == sorted(answers)
        assert set(answers) == {2, 3, 4, 5}
    found = statistics(stub_of(server), "m")
    assert found.inference_stats.success.count == sum(map(len, seen)) + 3
    assert found.inference_stats.fail.count == 0


def test_labels(explicit):
    _, client, root = explicit
    write(root, "m", 7, 2, 'versions = "all"\nversion_labels = {stable = 1, canary = 2, next = 3}')
    client.load_model("m", client_timeout=SECONDS)
    assert [ask(client, version=label) for label in ("stable", "canary", "")] == [(2, "1"), (7, "2"), (7, "2")]
    assert client.is_model_ready("m", "canary", client_timeout=SECONDS)
    assert list(client.get_model_metadata("m", "stable", client_timeout=SECONDS).versions) == ["1"]
    code, text = refusal(client.is_model_ready, "m", "next")
    assert (code, "labelled 'next'" in text) == ("UNAVAILABLE", True)


def test_polling(serve, tmp_path):
    write(tmp_path, "m", 2)
    server = serve(tmp_path, "--model-control-mode", "poll", "--repository-poll-seconds", "0.1")
    with triton.InferenceServerClient(server.address) as client:
        assert ask(client) == (2, "1")
        write(tmp_path, "m", 3, 2)
        eventually(lambda: ask(client) == (3, "2"))
        write(tmp_path, "other", 5)
        eventually(lambda: index(client).get(("other", "1")) == ("READY", ""))
        assert refusal(client.load_model, "m") == (
            "UNAVAILABLE",
            "explicit model load / unload is not allowed if polling is enabled",
        )
        assert ask(client, "other") == (5, "1")
