"""What is kept of requests, how it is written down, and that running it again tells what other settings would do."""

import asyncio
import io
import json
import socket
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.cli import main
from headrace.engine.replies import record_of
from headrace.errors import ConfigError
from headrace.messages import Batch, InferRequest, Signature, TensorSpec
from headrace.replay.simulation import recorded, replay
from headrace.repository.model_config import ModelConfig
from headrace.telemetry.diary import Diary
from headrace.telemetry.recorder import ModelRecorder
from headrace.telemetry.recording import SETTINGS, read, to_bytes
from headrace.testing.backend import FakeModel
from headrace.testing.client import InProcessServer, infer_request
from headrace.testing.loop import VirtualTimeLoop

MS = 1_000_000


class Template:
    whole = None

    def __init__(self, rows=1, key="a", priority=0, timeout_ns=0):
        self.rows, self.key, self.priority, self.timeout_ns = rows, key, priority, timeout_ns


def request(received, template=None, *, due=0, nbytes=8):
    made = InferRequest(template or Template(), [b""], nbytes, None, b"", received, due)
    made.decoded = made.admitted = received + 1
    return made


def record(requests, start, encoded, *, instance=0, reason="idle"):
    rows = sum(request.template.rows for request in requests)
    return record_of(requests, Batch(requests, rows, reason, start, start + 2, start + 12), instance, encoded)


def test_columns_of_what_has_happened():
    diary = Diary(100)
    two = [request(10, Template(2, priority=1), due=500), request(11, Template(3))]
    diary.batch(record(two, 20, 40, instance=1))
    other = [request(30, Template(1, "b", timeout_ns=7), nbytes=4)]
    diary.batch(record(other, 50, 70, reason="full"))
    diary.ended(request(12, Template(4)), "queue_full")
    columns = diary.columns()
    assert columns["received"].tolist() == [10, 11, 30, 12]
    assert columns["decoded"].tolist() == [11, 12, 31, 13]
    assert columns["due"].tolist() == [500, 0, 0, 0]
    assert columns["rows"].tolist() == [2, 3, 1, 4]
    assert columns["priority"].tolist() == [1, 0, 0, 0]
    assert columns["timeout"].tolist() == [0, 0, 7, 0]
    assert columns["row_bytes"].tolist() == [4, 4, 4, 2]
    assert columns["batch"].tolist() == [0, 0, 1, -1]
    assert columns["shape"].tolist() == [0, 0, 1, 0]
    assert columns["ended"].tolist() == ["", "", "", "queue_full"]
    assert [columns[f"batch_{name}"].tolist() for name in ("batched", "started", "finished", "encoded")] == [
        [20, 50], [22, 52], [32, 62], [40, 70],
    ]  # fmt: skip
    assert columns["batch_rows"].tolist() == [5, 1]
    assert columns["batch_instance"].tolist() == [1, 0]
    assert columns["batch_reason"].tolist() == ["idle", "full"]


@given(st.lists(st.integers(1, 5), max_size=30), st.integers(1, 12))
def test_the_last_ones_are_kept(sizes, capacity):
    diary = Diary(capacity)
    moment = 0
    for size in sizes:
        requests = [request(moment + at) for at in range(size)]
        diary.batch(record(requests, moment + size, moment + size + 20))
        moment += size
    kept = diary.columns()["received"].tolist()
    assert kept == list(range(moment - len(kept), moment))
    last = sizes[-1] if sizes else 0
    assert min(capacity - 5, moment) < len(kept) + 1
    assert len(kept) <= max(capacity, last)


def test_what_was_never_ready_for_the_queue_came_when_it_was_read():
    diary = Diary(10)
    diary.ended(InferRequest(Template(), [b""], 8, None, b"", 7), "rule_broken")
    assert diary.columns()["decoded"].tolist() == [7]


def test_what_ended_before_everything_that_is_kept_is_forgotten():
    diary = Diary(1)
    diary.ended(request(5), "queue_full")
    for moment in (10, 100):
        one = [request(moment)]
        diary.batch(record(one, moment + 1, moment + 20))
    diary.ended(request(120), "queue_full")
    assert diary.columns()["received"].tolist() == [100, 120]


def test_a_copy_does_not_change():
    diary = Diary(10)
    one = [request(1)]
    diary.batch(record(one, 2, 20))
    copy = diary.copy()
    diary.batch(record(one, 2, 20))
    assert (len(copy.columns()["received"]), len(diary.columns()["received"])) == (1, 2)


SPEC = TensorSpec("x", "FP32", (2,)), TensorSpec("y", "FP32", (2,))


def world(arrivals, config, *, seed=0, inline_below_ns=0, busy=0.0):
    """A recording of requests (moment ns, rows, deadline ns) that a model served in virtual time; and its latencies.

    A run of n rows takes 3 ms and 0.5 ms a row, give or take a tenth. busy: the share of time, in pieces of 200 ms, in
    which the machine has something else to do as well, and a run takes 2.5 times as long.
    """
    loop = VirtualTimeLoop()
    rng = np.random.default_rng(seed)
    slowness = np.where(np.random.default_rng(seed + 1).random(1000) < busy, 2.5, 1.0)
    start = loop.clock()

    def slow():
        return slowness[(loop.clock() - start) // (200 * MS)]

    model = FakeModel(
        Signature(SPEC[:1], SPEC[1:], config.max_batch),
        latency_ns=lambda rows: round((3 + 0.5 * rows) * MS * slow() * rng.uniform(0.9, 1.1)),
        spend=loop.clock.advance,
    )

    async def main():
        server = InProcessServer(loop.clock)
        scheduler, _ = server.serve(
            model,
            config=config,
            learn=[(n, (3 * MS + n * MS // 2)) for n in (1, 2, 4, 8)],
            inline_below_ns=inline_below_ns,
        )
        scheduler.observer = recorder = ModelRecorder("m", "1", scheduler.depth, clock=loop.clock)
        recorder.diary = Diary(1 << 20)
        began = loop.clock()
        for moment, rows, limit, *value in arrivals:
            await asyncio.sleep(max(began + moment - loop.clock(), 0) / 1e9)
            server.client.send(
                infer_request("m", {"x": np.full((rows, 2), *value or (0.0,), np.float32)}), timeout_ns=limit
            )
        await asyncio.sleep(10)
        columns = recorder.diary.columns()
        scheduler.close()
        return columns

    columns = loop.run_until_complete(main())
    loop.close()
    dumped = config.model_dump(mode="json")
    return to_bytes("m", "1", {key: dumped[key] for key in SETTINGS}, inline_below_ns // 1000, columns)


def poisson(count, per_second, seed=0, rows=(1,), limit=0):
    rng = np.random.default_rng(seed)
    moments = np.cumsum(rng.exponential(1e9 / per_second, count)).astype(int)
    return [(int(moment), int(rng.choice(rows)), limit) for moment in moments]


@pytest.fixture
def recording(tmp_path):
    def recording(data):
        file = tmp_path / "r.npz"
        file.write_bytes(data)
        return read(file)

    return recording


def close(one, other, within):
    for percent in (50, 95, 99):
        assert one.percentile(percent) == pytest.approx(other.percentile(percent), rel=within)


@pytest.mark.parametrize(
    ("per_second", "inline_below_ns"), [(500, 0), (60, 100 * MS)], ids=["busy, on threads", "on the event loop"]
)
def test_with_the_same_settings_it_comes_out_as_it_did(recording, per_second, inline_below_ns):
    config = ModelConfig(max_batch=8)
    found = recording(world(poisson(1200, per_second), config, inline_below_ns=inline_below_ns))
    happened, again = recorded(found), replay(found, ModelConfig.model_validate(found.settings))
    assert len(found) == len(happened.latency_ns) == len(again.latency_ns) == 1200
    assert again.batches == pytest.approx(happened.batches, rel=0.05)
    # on the event loop nothing is read while a model runs: arrivals that were noted avoid the runs of that time
    close(again, happened, 0.15 if inline_below_ns else 0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_batch": 2},
        {"instances": 2},
        {"batching": {"policy": "single"}},
        {"batching": {"policy": "delay", "delay_us": 9000}},
    ],
    ids=str,
)
def test_with_others_it_comes_out_as_it_would_have(recording, changes):
    """Against what did happen to the same requests under those settings, within the 15 % that are asked for."""
    arrivals = poisson(3000, 250)
    base = {"max_batch": 8}
    found = recording(world(arrivals, ModelConfig.model_validate(base)))
    truth = recorded(recording(world(arrivals, ModelConfig.model_validate(base | changes), seed=1)))
    close(replay(found, ModelConfig.model_validate(dict(found.settings) | changes)), truth, 0.15)


@pytest.mark.parametrize(("timeout_us", "refuses"), [(0, False), (400_000, False), (10_000, True)])
def test_a_timeout_of_the_queue_may_be_another(recording, timeout_us, refuses):
    found = recording(world(poisson(300, 600), ModelConfig(max_batch=4, queue={"timeout_us": 12_000})))
    assert recorded(found).refused
    again = replay(found, ModelConfig.model_validate(dict(found.settings) | {"queue": {"timeout_us": timeout_us}}))
    assert bool(again.refused) == refuses


def test_a_level_that_is_no_more_is_the_default_one(recording):
    columns = {"priority": np.repeat([0, 1, 2], 100)}
    found = recording(spoiled(world(poisson(300, 100), ModelConfig(max_batch=8, priority_levels=3)), **columns))
    queue = {"levels": {"1": {"timeout_us": 1}}}  # which refuses whoever has it
    fewer = {"priority_levels": 2, "default_priority": 1, "queue": queue}
    again = replay(found, ModelConfig.model_validate(dict(found.settings) | fewer))
    assert sum(again.refused.values()) == 200


def test_who_cannot_make_it_is_refused_as_before(recording):
    found = recording(world(poisson(1200, 2500, limit=20 * MS), ModelConfig(max_batch=8)))
    happened, again = recorded(found), replay(found, ModelConfig.model_validate(found.settings))
    assert happened.refused["deadline_unreachable"] > 100
    assert sum(again.refused.values()) == pytest.approx(sum(happened.refused.values()), rel=0.15)
    assert len(again.latency_ns) + sum(again.refused.values()) == 1200


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_machine_that_is_busy_for_a_while_is_busy_at_that_time(recording, seed):
    """Slow runs that follow one another make requests late; the same ones, one here and one there, do not."""
    found = recording(world(poisson(4000, 450, limit=30 * MS), ModelConfig(max_batch=8), seed=2, busy=0.2))
    happened, again = recorded(found), replay(found, ModelConfig.model_validate(found.settings), seed)
    assert again.percentile(99) == pytest.approx(happened.percentile(99), rel=0.15)
    refused = sum(happened.refused.values())
    assert refused > 100
    assert refused / 2 < sum(again.refused.values()) < refused * 2


def test_what_may_be_believed_is_said(tmp_path, capsys):
    file = tmp_path / "r.npz"
    told = []
    for limit in (0, 20 * MS):
        file.write_bytes(world(poisson(400, 2500, limit=limit), ModelConfig(max_batch=8)))
        assert main(["replay", str(file)]) == 0
        told.append(capsys.readouterr().out)
    assert all("believe no difference" in text for text in told)
    assert ["deadline" in text.splitlines()[-1] for text in told] == [False, True]


def test_requests_larger_than_a_batch(recording):
    found = recording(world(poisson(200, 50, rows=(1, 5, 20)), ModelConfig(max_batch=8)))
    again = replay(found, ModelConfig.model_validate(found.settings))
    assert len(again.latency_ns) == 200
    close(again, recorded(found), 0.2)


def test_the_same_seed_gives_the_same(recording):
    found = recording(world(poisson(300, 500), ModelConfig(max_batch=8)))
    config = ModelConfig.model_validate(found.settings)
    assert replay(found, config, 1).latency_ns.tolist() == replay(found, config, 1).latency_ns.tolist()
    assert replay(found, config, 1).latency_ns.tolist() != replay(found, config, 2).latency_ns.tolist()


@settings(max_examples=20)
@given(data=st.data())
def test_everybody_is_answered_whatever_the_settings(data, tmp_path_factory):
    config = {
        "max_batch": data.draw(st.integers(1, 9)),
        "instances": data.draw(st.integers(1, 3)),
        "slo_ms": data.draw(st.sampled_from([0, 5, 50])),
        "batching": {"policy": data.draw(st.sampled_from(["slot", "deadline", "delay", "single"])), "delay_us": 500},
        "queue": {"max_requests": data.draw(st.integers(1, 50))},
    }
    file = tmp_path_factory.mktemp("r") / "r.npz"
    file.write_bytes(world(poisson(60, 800, rows=(1, 3)), ModelConfig(max_batch=4)))
    found = read(file)
    again = replay(found, ModelConfig.model_validate(config))
    assert len(again.latency_ns) + sum(again.refused.values()) == len(found)


def spoiled(data, **changes):
    with np.load(io.BytesIO(data)) as archive:
        arrays = dict(archive) | changes
    file = io.BytesIO()
    np.savez(file, **{name: value for name, value in arrays.items() if value is not None})
    return file.getvalue()


def test_what_is_no_recording(tmp_path):
    good = world(poisson(20, 500), ModelConfig(max_batch=8))
    about = np.frombuffer(json.dumps({"format": 2}).encode(), np.uint8)
    file = tmp_path / "r.npz"
    for data, text in (
        (b"", "this is no recording"),
        (b"text", "this is no recording"),
        (good[:-30], "this is no recording"),
        (spoiled(good, received=None), "this is no recording"),
        (spoiled(good, about=about), "a recording of format 2, expected 1"),
        (spoiled(good, received=np.zeros(3, np.int64)), "do not fit together"),
        (spoiled(good, batch=np.full(20, 99)), "do not fit together"),
        (spoiled(good, batch=np.full(20, -1)), "no request that was answered"),
    ):
        file.write_bytes(data)
        with pytest.raises(ConfigError, match=text):
            read(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "absent.npz")


@pytest.fixture
def answering():
    """The URL of who answers one request with some octets, whatever is asked."""
    listeners, threads = [], []

    def answering(octets):
        listener = socket.create_server(("127.0.0.1", 0))

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(octets)

        listeners.append(listener)
        threads.append(threading.Thread(target=answer))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield answering
    for thread in threads:
        thread.join(10)
    for listener in listeners:
        listener.close()


def test_a_recording_of_nothing_is_not_written(answering, tmp_path, capsys):
    good = world(poisson(20, 500), ModelConfig(max_batch=8))
    file = tmp_path / "r.npz"
    for body, status in ((good, 0), (spoiled(good, batch=np.full(20, -1)), 2), (b"text", 2)):
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        url = answering(head + body)
        assert main(["record", "m", "--url", url, "--output", str(file)]) == status
        assert file.read_bytes() == good, "what was there stays"
    said = capsys.readouterr()
    assert said.out == f"{file}: 20 requests\n"
    first, second = said.err.splitlines()
    assert first.endswith("/v2/models/m/recording: a recording of no request that was answered; nothing was written")
    assert second.endswith(": this is no recording of `headrace record`; nothing was written")


def test_recording_from_a_port_of_another_protocol(answering, tmp_path, capsys):
    """As a gRPC server does: the SETTINGS of HTTP/2."""
    for octets in (b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\x40\0", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"):
        url = answering(octets)
        assert main(["record", "m", "--url", url, "--output", str(tmp_path / "r.npz")]) == 2
        said = capsys.readouterr().err
        assert said.startswith(
            f"headrace: {url}/v2/models/m/recording: no reply in HTTP/1.1, expected the server's HTTP"
        )
        assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_recording_from_a_host_and_a_port_alone(answering, tmp_path, capsys):
    good = world(poisson(20, 500), ModelConfig(max_batch=8))
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(good)}\r\nConnection: close\r\n\r\n".encode()
    url = answering(head + good).removeprefix("http://")
    assert main(["record", "m", "--url", url, "--output", str(tmp_path / "r.npz")]) == 0
    assert capsys.readouterr().out.endswith(": 20 requests\n")


@pytest.mark.parametrize(
    ("first", "second", "key"),
    [
        ("max_batch=4", "max_batch=8", "max_batch"),
        ("batching.policy=deadline", 'batching = {policy = "slot"}', "batching.policy"),
    ],
)
def test_a_setting_that_is_said_twice(tmp_path, capsys, first, second, key):
    file = tmp_path / "r.npz"
    file.write_bytes(world(poisson(20, 500), ModelConfig(max_batch=8)))
    assert main(["replay", str(file), "--set", first, "--set", second]) == 2
    said = capsys.readouterr().err
    assert said == f"headrace: --set {second}: {key} is said before, by --set {first}, expected it once\n"


def test_a_seed_below_0(tmp_path, capsys):
    file = tmp_path / "r.npz"
    file.write_bytes(world(poisson(20, 500), ModelConfig(max_batch=8)))
    assert main(["replay", str(file), "--seed", "-1"]) == 2
    assert capsys.readouterr().err == "headrace: --seed -1: expected at least 0\n"
    assert main(["replay", str(file), "--seed", "0"]) == 0


def test_requests_that_a_rule_refused_are_recorded_and_not_run(recording):
    config = ModelConfig(max_batch=8, inputs={"x": {"max": 1}})
    good = poisson(200, 100)
    arrivals = sorted([*((*one, 0.0) for one in good), *((moment + 1000, 1, 0, 2.0) for moment, _, _ in good[:30])])
    found = recording(world(arrivals, config))
    assert len(found) == 230
    for outcome in (recorded(found), replay(found, ModelConfig(max_batch=8))):
        assert (outcome.refused, len(outcome.latency_ns), outcome.rows) == ({"rule_broken": 30}, 200, 200)
