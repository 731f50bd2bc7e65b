"""A chain of backends in a server that runs: who serves, what is lost, what comes back, and who is told.

The devices are `headrace.testing.fragile`'s, which are there or not as files in the version's directory say.
"""

import json
import subprocess
import threading

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from e2e.calls import SECONDS, tensor
from e2e.onnx_models import scale
from e2e.server_process import HEADRACE, eventually
from tritonclient.utils import InferenceServerException

FIRST = "headrace.testing.fragile:First"
SECOND = "headrace.testing.fragile:Second"
CPU = "onnxruntime-cpu"
QUICK = "[fallback]\nrebuild_first_s = 0.05\nrebuild_max_s = 0.2\n"


class World:
    """A server of one model `m`, y = 2 x, and what a test asks of it."""

    def __init__(self, serve, root, toml, files=()):
        self.directory = root / "m" / "1"
        self.directory.mkdir(parents=True)
        (self.directory / "model.onnx").write_bytes(scale(2, "N", 2))
        (root / "m" / "model.toml").write_text("max_batch = 8\n" + toml)
        for name in files:
            self.put(name)
        self.server = serve(root)
        self.client = triton.InferenceServerClient(self.server.address)

    def put(self, name):
        (self.directory / name).touch()

    def take(self, name):
        (self.directory / name).unlink()

    def ask(self, value=1.0, seconds=SECONDS):
        x = np.full((1, 2), value, np.float32)
        return self.client.infer("m", [tensor("x", x)], client_timeout=seconds).as_numpy("y").tolist()

    def refusal(self, call, *arguments, **more):
        with pytest.raises(InferenceServerException) as caught:
            call(*arguments, **more)
        return caught.value.status().removeprefix("StatusCode."), caught.value.message()

    @property
    def backend(self):
        return self.client.get_model_config("m", client_timeout=SECONDS).config.backend

    @property
    def index(self):
        (model,) = self.client.get_model_repository_index(client_timeout=SECONDS).models
        return model.state, model.reason

    def metric(self, name, **labels):
        return self.server.metric(name, model="m", **labels)


@pytest.fixture
def world(serve, tmp_path):
    worlds = []

    def make(toml, *files):
        worlds.append(World(serve, tmp_path, toml, files))
        return worlds[-1]

    yield make
    for one in worlds:
        one.client.close()


def test_what_does_not_work_is_passed_over_and_everybody_can_see_it(world):
    options = f'[backend_options."{SECOND}"]\nadd = 1.0\n'
    w = world(f'backend = ["{FIRST}", "{SECOND}", "{CPU}"]\n{options}', "first.absent")
    assert w.ask() == [[2, 2]]
    assert w.backend == CPU
    state, reason = w.index
    assert state == "READY"
    assert f"falls back to {CPU}; {FIRST}: there is no such device; {SECOND}: a probe on random numbers" in reason
    assert w.metric("headrace_backend_info", backend=CPU) == 1
    for backend, to, why in ((FIRST, SECOND, "load"), (SECOND, CPU, "probe_differs")):
        assert w.metric("headrace_backend_fallbacks_total", to=to, reason=why, **{"from": backend}) == 1
    assert f"backend {FIRST} does not work (load): there is no such device" in w.server.log
    listed = subprocess.run(
        [HEADRACE, "models", "--url", w.server.address, "--json"], capture_output=True, check=True, text=True
    )
    (model,) = json.loads(listed.stdout)
    assert (model["backend"], model["reason"]) == (CPU, reason)


def test_nothing_that_does_not_agree_is_served(world):
    options = f'[backend_options."{SECOND}"]\nadd = 1.0\n'
    w = world(f'backend = ["{FIRST}", "{SECOND}"]\n{options}', "first.absent")
    state, reason = w.index
    assert state == "UNAVAILABLE"
    assert reason.startswith(f"no backend of the chain works: {FIRST}: there is no such device; {SECOND}: a probe on")
    assert w.refusal(w.ask)[0] in ("NOT_FOUND", "UNAVAILABLE")


def test_a_device_is_lost_and_comes_back(world):
    w = world(f'backend = ["{FIRST}", "{CPU}"]\ninstances = 2\n{QUICK}')
    assert (w.ask(), w.backend, w.index) == ([[2, 2]], FIRST, ("READY", ""))
    w.put("first.all-lost")
    assert w.ask(3.0) == [[6, 6]], "nobody is told of it but those who ask"
    assert w.backend == CPU
    assert w.index == (
        "READY",
        f"2 of 2 instances of {FIRST} are lost and are being made anew, served by {CPU}: "
        + w.index[1].rpartition(": ")[2],
    )
    assert w.client.is_model_ready("m", client_timeout=SECONDS)
    assert w.metric("headrace_instances_lost_total") == 2
    assert w.metric("headrace_rerun_requests_total") == 1
    assert w.metric("headrace_batches_total", close_reason="rerun") == 1
    assert w.metric("headrace_instances", backend=FIRST, state="lost") == 2
    assert w.metric("headrace_backend_fallbacks_total", to=CPU, reason="lost", **{"from": FIRST}) == 1
    assert eventually(lambda: w.metric("headrace_instances", backend=CPU, state="idle") == 2)
    w.take("first.all-lost")
    assert eventually(lambda: w.index == ("READY", ""))
    assert (w.backend, w.ask(4.0)) == (FIRST, [[8, 8]])
    assert w.metric("headrace_backend_info", backend=CPU) == 0
    assert w.metric("headrace_instances", backend=FIRST) == 2
    assert w.metric("nv_inference_request_failure") == 0


def test_nobody_loses_a_reply_while_devices_come_and_go(world):
    w = world(f'backend = ["{FIRST}", "{SECOND}", "{CPU}"]\ninstances = 2\n{QUICK}')
    over, wrong = threading.Event(), []

    def ask_on(number):
        with triton.InferenceServerClient(w.server.address) as client:
            while not over.is_set():
                x = np.full((1, 2), number, np.float32)
                try:
                    y = client.infer("m", [tensor("x", x)], client_timeout=SECONDS).as_numpy("y")
                except InferenceServerException as error:
                    wrong.append(str(error))
                else:
                    wrong.extend([] if (y == 2 * x).all() else [y.tolist()])

    callers = [threading.Thread(target=ask_on, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    try:
        for lost in ("first.all-lost", "second.all-lost"):
            w.put(lost)
        assert eventually(lambda: w.backend == CPU)
        w.take("second.all-lost")
        w.take("first.all-lost")
        assert eventually(lambda: w.index == ("READY", ""))
        w.put("first.all-lost")
        assert eventually(lambda: w.backend == SECOND)
    finally:
        over.set()
        for caller in callers:
            caller.join()
    assert wrong == []


def test_a_model_that_nobody_can_run_is_not_ready_until_somebody_can(world):
    w = world(f'backend = ["{FIRST}"]\n{QUICK}')
    w.put("first.lost")
    code, text = w.refusal(w.ask)
    assert code == "UNAVAILABLE"
    assert "its instances are lost" in text
    code, text = w.refusal(w.client.is_model_ready, "m", client_timeout=SECONDS)
    assert (code, f"1 of 1 instances of {FIRST} are lost" in text) == ("UNAVAILABLE", True)
    status, body = w.server.get("/v2/models/m/ready")
    assert (status, "are lost" in body) == (503, True)
    assert w.server.get("/v2/health/ready")[0] == 200, "the server itself is well"
    assert w.index[0] == "UNAVAILABLE"
    w.take("first.lost")
    assert eventually(lambda: w.index == ("READY", ""))
    assert w.client.is_model_ready("m", client_timeout=SECONDS)
    assert w.ask(5.0) == [[10, 10]]


def test_run_time_fallback_can_be_forbidden(world):
    w = world(f'backend = ["{FIRST}", "{CPU}"]\n{QUICK}at_run_time = false\n')
    w.put("first.lost")
    assert w.refusal(w.ask)[0] == "UNAVAILABLE"
    assert w.metric("headrace_backend_info") == 0


def test_a_deadline_holds_while_an_instance_is_made_anew(world):
    w = world(f'backend = ["{FIRST}"]\n[fallback]\nrebuild_first_s = 3600\nrebuild_max_s = 3600\n')
    w.put("first.lost")
    assert w.refusal(w.ask, seconds=0.3)[0] == "DEADLINE_EXCEEDED"
    assert w.server.stop() == 0


def test_over_http(world):
    w = world(f'backend = ["{FIRST}", "{CPU}"]\n{QUICK}')
    w.put("first.lost")
    with triton_http.InferenceServerClient(w.server.http.removeprefix("http://")) as client:
        x = triton_http.InferInput("x", [1, 2], "FP32")
        x.set_data_from_numpy(np.full((1, 2), 3, np.float32))
        assert client.infer("m", [x]).as_numpy("y").tolist() == [[6, 6]]
        assert client.get_model_config("m")["backend"] == CPU
