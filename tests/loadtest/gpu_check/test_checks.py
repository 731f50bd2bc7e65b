"""The checks themselves: what they take for right and for wrong, and that they run, on the processor."""

import sys
import xml.etree.ElementTree as ET
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_check import agreement, child, client, loaded, nvidia, serving, sessions, timeline
from gpu_check.bare import Best
from gpu_check.checks import environment, fallback, kernels, latency, overlap, speed
from gpu_check.checks.device import lost_after
from gpu_check.context import Context
from gpu_check.registry import Failed, Skip, checks
from gpu_check.results import PASS
from gpu_check.small_models import perceptron
from gpu_check.timeline import STEPS, Span
from headrace.backends import registry
from headrace.backends.staging import Lane
from headrace.rpc import inference_pb2 as pb
from headrace.testing.device import FakeDevice, FakeStream

# --- whether outputs agree --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_rows_of_others_are_an_error_in_any_precision(precision):
    want = np.random.default_rng(0).standard_normal((4, 100)).astype(np.float32) + 50
    assert agreement.checked(want * (1 + 1e-7), want, precision) < 1e-3
    for wrong in (np.roll(want, 1, axis=0), np.full_like(want, np.nan), np.repeat(want.mean(0)[None], 4, axis=0)):
        with pytest.raises(Failed, match="expected at most"):
            agreement.checked(wrong, want, precision)
    with pytest.raises(Failed, match="shape"):
        agreement.checked(want[:3], want, precision)


# --- overlap ----------------------------------------------------------------------------------------------------------


def spans(starts_by_lane, upload=1.0, compute=2.0, download=1.0):
    """Batches of lanes, each of the given lengths and beginning at the given times."""
    found, number = [], 0
    for lane, starts in enumerate(starts_by_lane):
        for start in starts:
            at = start
            for step, length in zip(STEPS, (upload, compute, download), strict=True):
                found.append(Span(lane, number, step, at, at + length))
                at += length
            number += 1
    return found


ONE = spans([[0, 4, 8, 12]])


def test_copies_that_hide_are_seen():
    """Two lanes half a batch apart: two batches in four milliseconds and two more at the end."""
    figures = overlap.judged(ONE, spans([[0, 4], [2, 6]]))
    assert figures["one_in_flight_ms"] == 4
    assert figures["two_in_flight_ms"] == 2.5
    assert figures["hidden"] == pytest.approx(0.75)
    assert figures["copies_beside_computation"] == pytest.approx(6 / 8)
    assert len(figures["timeline_ms"]) == 12


def test_copies_that_do_not_are_a_failure_with_the_figures():
    with pytest.raises(Failed, match=r"0\.00 of the copies is hidden, expected at least 0\.5") as caught:
        overlap.judged(ONE, spans([[0, 8], [4, 12]]))
    assert caught.value.figures["copies_beside_computation"] == 0


def test_more_than_there_is_cannot_be_hidden():
    with pytest.raises(Failed, match=r"more than there are: the runs were not alike"):
        overlap.judged(spans([[0, 10, 20, 30]]), spans([[0, 4], [2, 6]]))


def test_steps_that_only_wait_beside_one_another_do_not_pass():
    """A copy that waits for another's looks as if it lay beside the computation; the whole takes as long as ever."""
    slow = spans([[0, 8], [0, 8]], upload=2, compute=4, download=2)
    with pytest.raises(Failed):
        overlap.judged(ONE, slow)


def test_what_a_lane_brings_back_has_to_be_its_own(monkeypatch):
    monkeypatch.setattr(overlap, "ROWS", 128)
    monkeypatch.setattr(overlap, "NBYTES", 128 * overlap.WIDTH * 4)
    lanes = [overlap._lane(FakeDevice(), number) for number in range(2)]
    with closing(lanes[0]), closing(lanes[1]):
        for number, lane in enumerate(lanes):
            (computed,) = sessions.on_cpu(perceptron(overlap.WIDTH), {"x": overlap._input(number)})
            lane._from[0].array[:] = computed.view(np.uint8).ravel()
        assert overlap._error(lanes[0], 0) == overlap._error(lanes[1], 1) == 0
        assert overlap._error(lanes[0], 1) > 1
        lanes[0]._from[0].array[:] = 0
        assert overlap._error(lanes[0], 0) > 0.9


def test_a_graph_has_to_be_quicker():
    """Without a GPU there is none, and nothing to be judged."""
    figures = {"plain_p50_us": 900.0, "graph_p50_us": 400.0}
    assert latency.judged(figures) == figures
    assert latency.judged({"plain_p50_us": 900.0}) == {"plain_p50_us": 900.0}
    with pytest.raises(Failed, match="901 us with a graph, expected less than the 900 us without") as caught:
        latency.judged(figures | {"graph_p50_us": 901.0})
    assert caught.value.figures["plain_p50_us"] == 900


def test_a_model_that_was_not_loaded_is_told_with_the_servers_words(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ":".join(str(environment.ROOT / source) for source in ("server", "loadtest")))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    serving.write_model(tmp_path / "repository", "broken", broken, "")
    with (
        pytest.raises(Failed, match=r"broken was not loaded:\n(.*\n)*.*cannot load"),
        serving.serving(tmp_path / "repository", tmp_path),
    ):
        pass


MOMENTS = st.floats(0, 100)
ANY_SPANS = st.lists(
    st.builds(
        lambda lane, step, start, length: Span(lane, 0, step, start, start + length),
        st.integers(0, 2), st.sampled_from(STEPS), MOMENTS, st.floats(0.01, 50),
    ),
    min_size=1,
    max_size=12,
)  # fmt: skip


@given(ANY_SPANS)
def test_the_share_beside_computation_is_that_of_a_plain_count(found):
    share = timeline.beside_computation(found)
    assert 0 <= share <= 1 + 1e-9
    grid = np.linspace(0, 150, 15001)
    beside = whole = 0
    for copy in found:
        if copy.step != "compute":
            inside = grid[(grid >= copy.start) & (grid < copy.end)]
            others = [o for o in found if o.step == "compute" and o.lane != copy.lane]
            beside += sum(any(o.start <= t < o.end for o in others) for t in inside)
            whole += len(inside)
    if whole > 300:
        assert share == pytest.approx(beside / whole, abs=0.05)


def test_the_picture_has_a_bar_for_each_step_where_it_was():
    drawn = timeline.svg("two & more", spans([[0, 4], [2, 6]]))
    root = ET.fromstring(drawn)
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text == "two & more"
    bars = [bar for bar in root.iter(f"{space}rect") if bar.find(f"{space}title") is not None]
    assert len(bars) == 12
    by_title = {bar.find(f"{space}title").text: bar for bar in bars}
    first, second = by_title["batch 0, compute: 1.000 to 3.000 ms"], by_title["batch 2, upload: 2.000 to 3.000 ms"]
    assert float(first.get("width")) == pytest.approx(2 * float(second.get("width")), abs=0.2)
    assert float(first.get("x")) < float(second.get("x"))
    assert len({bar.get("y") for bar in bars}) == 6


def test_batches_in_flight_go_up_are_computed_and_come_down_in_turn(monkeypatch):
    monkeypatch.setattr(overlap, "NBYTES", 64)
    device, done = FakeDevice(), []
    clock = iter(range(1000))
    times = {}

    def since(event, earlier):
        return times[event] - times[earlier]

    monkeypatch.setattr("headrace.testing.device.FakeEvent.milliseconds_since", since)
    original = FakeStream.record

    def record(stream, **options):
        event = original(stream, **options)
        stream.enqueue(lambda: times.__setitem__(event, next(clock)))
        return event

    monkeypatch.setattr(FakeStream, "record", record)
    lanes = [Lane(device, [64], [64]) for _ in range(2)]

    def computation(lane, number):
        def double():
            lane.outputs[0].array[:] = lane.inputs[0].array * 2
            done.append(number)

        return lambda: lane.stream.enqueue(double)

    for number, lane in enumerate(lanes):
        lane.lay(0, [bytes([number + 1]) * 64], 64)
    found = overlap.in_flight(lanes, [computation(lane, n) for n, lane in enumerate(lanes)], 5)
    assert sorted(done) == [0, 0, 0, 1, 1]
    assert [(s.lane, s.batch, s.step) for s in found] == [(b % 2, b, step) for b in range(5) for step in STEPS]
    assert all(span.start < span.end for span in found)
    for number, lane in enumerate(lanes):
        with closing(lane):
            assert set(lane.outputs[0].array) == {2 * (number + 1)}


# --- what others say --------------------------------------------------------------------------------------------------


def kernel(title="gather", wrong=None, of_copy=0.9, memory_bound=True):
    """As headrace_kernels.check.run.Result has it."""
    return {"title": title, "wrong": wrong, "microseconds": 5.0, "gigabytes_per_second": 2000.0, "of_copy": of_copy,
            "memory_bound": memory_bound}  # fmt: skip


def report(*results):
    return {"facts": {}, "copy_gigabytes_per_second": 2500.0, "results": list(results)}


def test_kernels_that_are_right_and_quick_pass():
    figures = kernels.judged(report(kernel(of_copy=0.7), kernel("top", of_copy=0.1, memory_bound=False)), 0)
    assert figures["of_copy, gather"] == 0.7
    assert figures["cases"] == 2


@pytest.mark.parametrize(
    ("found", "status", "reason"),
    [
        (report(kernel()), 1, "it ended with 1"),
        (report(kernel(), kernel(wrong="y: 3 of 4 elements differ")), 1, "1 of 2 cases are wrong; gather: y: 3 of 4"),
        (report(kernel(of_copy=0.69)), 0, r"below 0\.7 of a copy on the device: gather 0\.69"),
        (report(kernel(of_copy=float("nan"))), 0, "below"),
        (report(kernel(of_copy=None)), 0, "below"),
        (report(kernel(memory_bound=False)), 0, "no rate was measured"),
        (report(), 0, "no rate was measured"),
    ],
)
def test_kernels_that_are_wrong_slow_or_not_measured_fail(found, status, reason):
    with pytest.raises(Failed, match=reason):
        kernels.judged(found, status)


METRICS = """# TYPE headrace_backend_info gauge
headrace_backend_info{model="m",version="1",backend="%s"} 1.0
headrace_backend_fallbacks_total{model="m",version="1",from="tensorrt",to="onnxruntime-cuda",reason="unavailable"} 1.0
"""


def test_who_serves_is_read_off_the_metrics():
    figures = fallback.judged(METRICS % "onnxruntime-cuda", "onnxruntime-cuda")
    assert figures["serving"] == ["onnxruntime-cuda"]
    assert figures["passed_over"] == {
        'model="m",version="1",from="tensorrt",to="onnxruntime-cuda",reason="unavailable"': 1
    }
    with pytest.raises(Failed, match=r"\['onnxruntime-cpu'\] serves, expected \['onnxruntime-cuda'\]"):
        fallback.judged(METRICS % "onnxruntime-cpu", "onnxruntime-cuda")
    with pytest.raises(Failed, match="serves"):
        fallback.judged("", "onnxruntime-cuda")


@pytest.mark.parametrize(
    ("cpu", "tensorrt", "backend"),
    [(True, True, "onnxruntime-cpu"), (False, True, "tensorrt"), (False, False, "onnxruntime-cuda")],
)
def test_who_has_to_serve(cpu, tensorrt, backend):
    assert fallback.wanted(fallback.CHAIN, cpu=cpu, tensorrt=tensorrt) == backend


VALUES = {
    "nv_gpu_utilization": 0.25,
    "nv_gpu_memory_total_bytes": 80 << 30,
    "nv_gpu_memory_used_bytes": 1 << 30,
    "nv_gpu_power_usage": 310.5,
    "nv_gpu_power_limit": 700,
    "nv_energy_consumption": 0,
}


def metrics(**changes):
    return {name: {"GPU-1": value} for name, value in {**VALUES, **changes}.items() if value is not None}


def test_metrics_in_the_right_units_pass():
    assert environment.judged(metrics(), {"GPU-1"}) == metrics()


@pytest.mark.parametrize(
    ("found", "gpus", "reason"),
    [
        (metrics(nv_gpu_utilization=25), {"GPU-1"}, "nv_gpu_utilization of GPU-1 is 25, expected 0 to 1"),
        (metrics(nv_gpu_power_usage=310_500), {"GPU-1"}, "nv_gpu_power_usage"),
        (metrics(nv_gpu_memory_total_bytes=81_559), {"GPU-1"}, "nv_gpu_memory_total_bytes"),
        (metrics(nv_energy_consumption=None), {"GPU-1"}, "nv_energy_consumption of GPU-1 is None"),
        (metrics(), {"GPU-1", "GPU-2"}, "of GPU-2 is None"),
    ],
)
def test_metrics_that_lack_a_gpu_or_have_other_units_fail(found, gpus, reason):
    with pytest.raises(Failed, match=reason):
        environment.judged(found, gpus)


def test_a_server_that_cannot_be_imported_is_seen(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "headrace.serve", None)
    with pytest.raises(Failed, match="the server cannot be imported"):
        checks()["server-packages"].run(Context(tmp_path, tmp_path, cpu=True))
    monkeypatch.setattr(environment, "importable", lambda module: module != "httptools")
    with pytest.raises(Failed, match="not installed: httptools"):
        checks()["server-packages"].run(Context(tmp_path, tmp_path, cpu=True))


def test_which_gpus_there_should_be_has_to_be_known():
    with pytest.raises(Skip, match="nvidia-smi lists no GPU"):
        environment.judged(metrics(), set())


@pytest.mark.parametrize(("status", "name"), [(0, "Fake GPU"), (100, None)])
def test_the_driver_tells_the_name_too(status, name):
    def device_name(text, length, device):
        text.value = b"Fake GPU"
        return 0

    driver = SimpleNamespace(
        cuInit=lambda flags: status, cuDeviceGet=lambda device, index: 0, cuDeviceGetName=device_name
    )
    assert nvidia.driver_name(driver) == name


@pytest.mark.parametrize(("refused", "awake"), [(None, True), ("cuInit", False), ("cuDevicePrimaryCtxRetain", False)])
def test_a_gpu_is_kept_awake_where_there_is_one(refused, awake):
    asked = []

    class Driver:
        def __getattr__(self, name):
            return lambda *arguments: (asked.append(name), int(name == refused))[1]

    assert nvidia.keep_awake(0, Driver()) is awake
    assert ("cuDevicePrimaryCtxRetain" in asked) == (refused != "cuInit")


def test_nvidia_smi_is_read():
    line = "NVIDIA H100 80GB HBM3, GPU-1, 580.65.06, 81559 MiB, 9.0, 700.00 W, 1980 MHz, P0\n"
    (gpu,) = nvidia.parsed(line)
    assert (gpu["name"], gpu["uuid"], gpu["compute_cap"], gpu["power.limit"]) == (
        "NVIDIA H100 80GB HBM3", "GPU-1", "9.0", "700.00 W",
    )  # fmt: skip


# --- on the processor -------------------------------------------------------------------------------------------------


ON_CPU = [check for check in checks().values() if check.on_cpu]


@pytest.mark.parametrize("check", ON_CPU, ids=lambda check: check.name)
def test_on_the_processor(check, models, tmp_path, monkeypatch):
    """Each check that can be made without a GPU, on tiny models; a few tenths of a second for each measurement."""
    monkeypatch.setenv("PYTHONPATH", ":".join(str(environment.ROOT / source) for source in ("server", "loadtest")))
    found = child.outcome_of(check, Context(tmp_path, models, seconds=0.1, cpu=True))
    assert (found.status, found.reason) == (PASS, "")


def test_a_backend_is_measured_with_a_server_and_without_one(models, tmp_path, monkeypatch):
    """As TensorRT is where there is one."""
    monkeypatch.setenv("PYTHONPATH", ":".join(str(environment.ROOT / source) for source in ("server", "loadtest")))
    context = Context(tmp_path, models, seconds=0.1, cpu=True)
    figures = speed.throughput_of_backend(context, "onnxruntime", "resnet50-fp16-u8", "scores", 0.85)
    assert figures["ratio"] == figures["server_rows_per_second"] / figures["bare_rows_per_second"] > 0
    assert figures["server_compared"] > 0


def test_backends_are_on_the_gpu_that_is_asked_for(models, tmp_path, monkeypatch):
    told = []

    def load(version, *, options, **_):
        told.append(options)
        raise Skip("that is enough")

    monkeypatch.setattr(registry, "get", lambda name: SimpleNamespace(load=load))
    context = Context(tmp_path, models, cpu=True, device=3)
    for backend in ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "onnxruntime"):
        with pytest.raises(Skip, match="enough"):
            loaded.Loaded(context, backend, "resnet50-fp32", "scores", 8, file="model.onnx")
    assert told == [{"devices": [3], "file": "model.onnx"}] * 3 + [{"file": "model.onnx"}]


def test_a_server_that_is_too_slow_fails_on_a_gpu_alone(models, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "_served", lambda *arguments: {"rows_per_second": 84.0})
    bare = Best(64, 100.0, 90.0, {64: 100.0})
    with pytest.raises(Failed, match=r"0\.84 of the model's own rows/s, expected at least 0\.85") as caught:
        speed.compared(Context(tmp_path, models), "resnet50-fp16-u8", "scores", "", bare, 0.85)
    assert caught.value.figures["server_rows_per_second"] == 84
    speed.compared(Context(tmp_path, models, cpu=True), "resnet50-fp16-u8", "scores", "", bare, 0.85)


def test_what_was_measured_without_a_server_that_fails_is_kept(models, tmp_path, monkeypatch):
    def fails(*arguments):
        raise Failed("no reply", {"replies": 0})

    monkeypatch.setattr(speed, "_served", fails)
    with pytest.raises(Failed, match="no reply") as caught:
        speed.compared(Context(tmp_path, models), "m", "scores", "", Best(64, 100.0, 90.0, {64: 100.0}), 0.85)
    assert caught.value.figures["bare_rows_per_second"] == 100
    assert caught.value.figures["replies"] == 0


def damaged(monkeypatch, method):
    """A device of which one copy in many goes wrong."""
    original, copies = getattr(FakeStream, method), iter(range(1000))

    def wrong(stream, target, source, nbytes):
        original(stream, target, source, nbytes if next(copies) % 7 != 3 else max(nbytes - 1, 0))

    monkeypatch.setattr(FakeStream, method, wrong)


@pytest.mark.parametrize("method", ["upload", "download"])
@pytest.mark.parametrize("name", ["device-copies", "device-staging"])
def test_a_device_that_loses_octets_fails(monkeypatch, tmp_path, name, method):
    damaged(monkeypatch, method)
    with pytest.raises(Failed, match="differ from what was sent"):
        checks()[name].run(Context(tmp_path, tmp_path, seconds=0.01, cpu=True))


def test_a_stream_that_does_not_wait_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(FakeStream, "wait", lambda stream, event: None)
    with pytest.raises(Failed, match="round 0"):
        checks()["device-events"].run(Context(tmp_path, tmp_path, cpu=True))


def test_a_graph_that_is_not_done_again_fails(monkeypatch, tmp_path):
    monkeypatch.setattr("headrace.testing.device.FakeGraph.launch", lambda graph, stream: None)
    with pytest.raises(Failed, match="launch 0"):
        checks()["device-graph"].run(Context(tmp_path, tmp_path, seconds=0.01, cpu=True))


def test_memory_that_is_not_freed_fails(monkeypatch, tmp_path):
    monkeypatch.setattr("headrace.testing.device.FakeMemory.close", lambda memory: None)
    with pytest.raises(Failed, match="were taken and freed"):
        checks()["device-memory"].run(Context(tmp_path, tmp_path, cpu=True))


def test_a_lost_device_says_so_whatever_it_is_asked():
    device = FakeDevice()
    figures = lost_after(device, lambda stream: setattr(device, "lost", True))
    assert set(figures) == {"synchronize", "allocate", "record"}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda device: None, "synchronize raised nothing, expected DeviceLost"),
        (lambda device: setattr(device, "_memory", 0), "synchronize raised nothing"),
        (lambda device: setattr(device, "check", lambda: 1 / 0), "synchronize raised ZeroDivisionError"),
    ],
)
def test_a_loss_that_is_not_told_fails(fault, reason):
    device = FakeDevice()
    with pytest.raises(Failed, match=reason):
        lost_after(device, lambda stream: fault(device))


def test_a_backend_that_this_revision_lacks_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr("headrace.backends.registry.BACKENDS", {"onnxruntime": "x:y"})
    with pytest.raises(Skip, match="no backend 'tensorrt'; there are onnxruntime"):
        checks()["backend-tensorrt"].run(Context(tmp_path, tmp_path, cpu=True))


# --- replies under load -----------------------------------------------------------------------------------------------

ROWS = np.random.default_rng(3).standard_normal((4, 10)).astype(np.float32) + 5


def reply(row):
    message = pb.ModelInferResponse()
    message.raw_output_contents.append(np.asarray(row, np.float32).tobytes())
    return message.SerializeToString()


def test_replies_of_their_own_requests_are_right():
    samples = [(n, reply(ROWS[n] * 1.0001)) for n in (0, 3, 3, 1)]
    found = client.compared(samples, ROWS, 0.02)
    assert (found["compared"], found["wrong"]) == (4, 0)
    assert 0 < found["error"] < 0.02


@pytest.mark.parametrize("row", [ROWS[1], ROWS[0] * np.nan, ROWS.mean(axis=0), ROWS[0][:5]])
def test_replies_of_others_are_counted_in_any_precision(row):
    found = client.compared([(0, reply(ROWS[0])), (0, reply(row))], ROWS, agreement.BOUNDS["int8"])
    assert (found["compared"], found["wrong"]) == (2, 1)


def test_load_whose_replies_are_not_those_of_their_requests_fails(models, tmp_path, monkeypatch):
    """The expected rows change places: what is compared under load is each request's own."""
    monkeypatch.setenv("PYTHONPATH", ":".join(str(environment.ROOT / source) for source in ("server", "loadtest")))
    written = serving.write_payloads
    monkeypatch.setattr(serving, "write_payloads", lambda where, m, rows, bound: written(where, m, rows[::-1], bound))
    with pytest.raises(Failed, match="are not those of their requests"):
        checks()["throughput-resnet50-int8"].run(Context(tmp_path, models, seconds=0.1, cpu=True))
