"""Which requests are traced: decided from integers, with time as an argument."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.messages import InferRequest
from headrace.telemetry.observer import BatchRecord
from headrace.telemetry.sampling import (
    NO_PARENT,
    Budget,
    HeadSample,
    ModelSampler,
    Parent,
    SlowThreshold,
    TailSampling,
    read_parent,
)
from headrace.testing.sink import RecordingSink

MS = 10**6
SAMPLED = b"00-000000000000000000000000000000aa-00000000000000bb-01"
UNSAMPLED = SAMPLED[:-2] + b"00"


class Sink(RecordingSink):
    door = "grpc"

    def __init__(self, traceparent=b"", tracestate=b""):
        super().__init__()
        self.traceparent = traceparent
        self.tracestate = tracestate


class World:
    """A sampler whose clock and luck are the test's. sent: what it has offered; room: whether that is taken."""

    def __init__(self, ratio=0.0, slow_quantile=0.99, per_second=1000.0, seed=1):
        self.now = 10**9
        self.sent = []
        self.room = True
        self.shared = TailSampling(
            self.offer, lambda: self.now, lambda: 5000,
            ratio=ratio, slow_quantile=slow_quantile, per_second=per_second, rng=random.Random(seed),
        )  # fmt: skip
        self.sampler = ModelSampler(self.shared, "m", "1", [MS, 10 * MS])

    def offer(self, batch, requests):
        if self.room:
            self.sent.append((batch, list(requests)))
        return self.room

    def request(self, traceparent=b"", tracestate=b"", took=MS, whole=None):
        template = SimpleNamespace(rows=1, fit=None, whole=whole, timing=False)
        request = InferRequest(template, (), 0, Sink(traceparent, tracestate), b"", self.now - took)
        request.decoded = request.admitted = self.now - took + 1
        return request

    def batch(self, *requests):
        received = [request.received for request in requests]
        times = [request.decoded for request in requests]
        self.sampler.batch(
            BatchRecord(
                received=received,
                decoded=times,
                admitted=times,
                rows=[1] * len(requests),
                batched=self.now - 3,
                started=self.now - 2,
                finished=self.now - 1,
                encoded=self.now,
                batch_rows=len(requests),
                close_reason="full",
                instance=0,
                requests=list(requests),
            )
        )

    @property
    def causes(self):
        return [request.cause for _, requests in self.sent for request in requests]


def test_a_callers_decision_holds():
    world = World(ratio=0.0)
    world.batch(world.request(), world.request(SAMPLED, b"a=b"), world.request(UNSAMPLED))
    ((batch, (traced,)),) = world.sent
    assert (traced.trace_id, traced.parent_id, traced.tracestate, traced.cause) == (0xAA, 0xBB, b"a=b", "head")
    assert (batch.requests, batch.rows, batch.close_reason, batch.traced) == (3, 3, "full", [traced])
    assert batch.trace_id not in (0, 0xAA)


def test_the_ratio_is_for_those_whose_callers_say_nothing():
    world = World(ratio=1.0)
    world.batch(world.request(), world.request(UNSAMPLED))
    assert world.causes == ["head"]
    assert world.sent[0][1][0].parent_id == 0


def test_nothing_is_sent_for_a_batch_of_which_nothing_is_traced():
    world = World()
    world.batch(world.request(), world.request())
    assert world.sent == []


def test_a_batch_of_pieces_whose_last_ones_are_yet_to_run_is_none_of_a_request():
    world = World(ratio=1.0)
    world.batch()
    assert world.sent == []


@pytest.mark.parametrize(
    "value", [b"", b"00-" + b"0" * 32 + b"-00000000000000bb-01", b"00-" + b"a" * 32 + b"-" + b"0" * 16 + b"-01"]
)
def test_ids_of_zeros_are_no_parent(value):
    assert read_parent(value) is NO_PARENT
    world = World(ratio=0.0)
    world.batch(world.request(value))
    assert world.sent == []


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 255))
def test_a_traceparent_is_read_as_it_was_written(trace, span, flags):
    written = f"00-{trace:032x}-{span:016x}-{flags:02x}".encode()
    assert read_parent(written) == Parent(trace, span, bool(flags & 1))
    world = World()
    world.batch(world.request(written))
    assert world.causes == ["head"] * (flags & 1)


@given(st.floats(0.001, 0.9), st.integers(0, 2**32), st.lists(st.integers(1, 64), min_size=1, max_size=8))
def test_the_share_that_is_sampled_is_the_ratio(ratio, seed, sizes):
    sample = HeadSample(ratio, random.Random(seed).random)
    total = taken = 0
    while total < 20_000:
        for size in sizes:
            chosen = sample.take(size)
            assert sorted(set(chosen)) == chosen
            assert all(0 <= index < size for index in chosen)
            taken += len(chosen)
            total += size
    assert abs(taken - ratio * total) < 6 * (ratio * total) ** 0.5 + 6


def test_the_ends_of_the_ratio():
    assert HeadSample(0.0, random.random).take(1000) == []
    assert HeadSample(1.0, random.random).take(5) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("quantile", [0.9, 0.99])
def test_the_threshold_follows_the_quantile_when_the_load_changes(quantile):
    rng = np.random.default_rng(3)
    threshold = SlowThreshold(quantile)
    for scale in (1.0, 8.0, 0.5):
        now = 0
        over = count = 0
        for batch in range(3000):
            times = (rng.lognormal(0, 0.5, 16) * scale * MS).astype(np.int64)
            now += 10**9
            limit = threshold.ns
            threshold.slow(now, (now - times).tolist())
            if batch >= 2000:
                over += int((times > limit).sum())
                count += 16
        assert 0.6 * (1 - quantile) < over / count < 1.5 * (1 - quantile)


def test_the_slowest_are_traced_once_it_is_known_what_is_slow():
    world = World()
    world.batch(world.request(took=MS), world.request(took=50 * MS))
    assert world.sent == []  # nothing is known yet
    for _ in range(400):
        world.batch(world.request(took=MS))
    world.sent.clear()
    slow = [world.request(took=(60 + n) * MS) for n in range(5)]
    world.batch(world.request(took=MS // 2), *slow)
    assert world.causes == ["slow", "slow"]
    assert [traced.received for traced in world.sent[0][1]] == [slow[3].received, slow[4].received]


def test_one_that_is_named_is_traced_under_that_name():
    world = World()
    asked, other = world.request(), world.request(SAMPLED[:-2] + b"00")
    name = world.sampler.name(asked)
    assert world.sampler.name(asked) == name
    assert world.sampler.name(other) == f"{0xAA:032x}"
    world.batch(asked, other)
    assert [f"{traced.trace_id:032x}" for traced in world.sent[0][1]] == [name, f"{0xAA:032x}"]
    assert world.causes == ["asked", "asked"]
    world.batch(asked)  # it is forgotten with its end
    assert len(world.sent) == 1


def test_a_piece_goes_by_the_name_of_the_whole():
    world = World()
    whole = world.request()
    assert world.sampler.name(world.request(whole=whole)) == world.sampler.name(whole)


def test_a_failure_is_traced_with_its_reason():
    world = World()
    request = world.request(UNSAMPLED)
    world.sampler.failed(request, "queue_full")
    ((batch, (traced,)),) = world.sent
    assert batch is None
    assert (traced.cause, traced.error, traced.trace_id) == ("failed", "queue_full", 0xAA)


def test_what_the_cache_answers_is_sampled_at_its_head_or_asked_for_and_in_no_batch():
    world = World(ratio=0.0)
    world.sampler.hit(world.request())
    world.sampler.hit(world.request(UNSAMPLED))
    assert world.sent == []
    world.sampler.hit(world.request(SAMPLED))
    asked = world.request(took=2 * MS)
    name = world.sampler.name(asked)
    world.sampler.hit(asked)
    assert [batch for batch, _ in world.sent] == [None, None]
    (first,), (second,) = (requests for _, requests in world.sent)
    assert (first.cause, first.cached, first.trace_id, first.admitted, first.ended) == (
        "head",
        True,
        0xAA,
        0,
        world.now,
    )
    assert (second.cause, f"{second.trace_id:032x}") == ("asked", name)
    assert world.sampler.exemplars[1].trace_id == second.trace_id
    world.sampler.hit(asked)  # it is forgotten with its end
    assert len(world.sent) == 2
    world = World(ratio=1.0, per_second=2)
    for _ in range(5):
        world.sampler.hit(world.request())
    assert world.causes == ["head", "head"]
    assert world.shared.budget.dropped["rate"] == 3


def test_one_without_a_model_is_traced_too():
    world = World()
    world.shared.unrouted(Sink(SAMPLED), world.now - 5, "model_not_found")
    ((_, (traced,)),) = world.sent
    assert (traced.model, traced.error, traced.door, traced.received) == ("", "model_not_found", "grpc", world.now - 5)


@pytest.mark.parametrize(("encoded", "error", "finished"), [(0, "backend_failed", 0), (9, "", 8)])
def test_one_that_fails_in_its_batch_has_the_moments_of_it(encoded, error, finished):
    """encoded: the run was fine, and then its reply was not."""
    world = World()
    alone, other = world.request(), world.request()
    for requests in ([alone], [other, alone]):
        record = BatchRecord(
            [1], [2], [3], [1], batched=6, started=7, finished=8, encoded=encoded, batch_rows=1,
            close_reason="single", instance=2, requests=requests,
        )  # fmt: skip
        world.sampler.failed(alone, "backend_failed", record)
    (batch, (first,)), (none, (second,)) = world.sent
    assert (batch.error, batch.started, batch.instance, batch.traced) == (error, 7, 2, [first])
    assert none is None  # it may be exported with the others
    for traced in (first, second):
        assert (traced.batched, traced.started, traced.finished, traced.error) == (6, 7, finished, "backend_failed")


def test_one_that_does_not_fit_its_model_is_traced_with_its_name():
    world = World()
    world.sampler.unfit(Sink(UNSAMPLED, b"a=b"), world.now - 5, "invalid_request")
    ((batch, (traced,)),) = world.sent
    assert batch is None
    assert (traced.model, traced.version, traced.error, traced.cause) == ("m", "1", "invalid_request", "failed")
    assert (traced.trace_id, traced.parent_id, traced.tracestate, traced.rows) == (0xAA, 0xBB, b"a=b", 0)
    assert (traced.received, traced.decoded, traced.ended) == (world.now - 5, 0, world.now)


def test_a_budget_is_so_many_a_second_and_slow_ones_get_half():
    budget = Budget(10)
    assert [budget.take(10**9, "slow") for _ in range(7)] == [True] * 5 + [False] * 2
    assert [budget.take(10**9, "failed") for _ in range(7)] == [True] * 5 + [False] * 2
    assert budget.dropped["rate"] == 4
    assert budget.take(10**9 + 10**8, "head")
    assert not budget.take(10**9 + 10**8, "head")
    assert [budget.take(10**12, "head") for _ in range(12)].count(True) == 10  # no more than a second's


def test_what_finds_no_room_is_counted_and_no_exemplar():
    world = World(ratio=1.0)
    world.room = False
    world.batch(world.request())
    world.shared.exported.lost = 5
    assert world.shared.dropped() == {"rate": 0, "queue": 1, "export": 5}
    assert world.sampler.exemplars == {}


def test_exemplars_are_the_last_traced_of_each_bucket():
    world = World(ratio=1.0)
    world.batch(world.request(took=MS), world.request(took=MS + 1))
    world.batch(world.request(took=11 * MS))
    traces = [traced.trace_id for _, requests in world.sent for traced in requests]
    assert {bucket: (e.trace_id, e.ns, e.wall_ms) for bucket, e in world.sampler.exemplars.items()} == {
        0: (traces[0], MS, 5000), 1: (traces[1], MS + 1, 5000), 2: (traces[2], 11 * MS, 5000),
    }  # fmt: skip


@pytest.mark.parametrize("cause", ["head", "slow"])
@pytest.mark.parametrize("per_second", [0.25, 1.0, 1.5, 2.0])
def test_a_budget_of_less_than_two_a_second_is_spent_too(per_second, cause):
    budget = Budget(per_second)
    taken = sum(budget.take(second * 10**9, cause) for second in range(400))
    assert taken == pytest.approx(400 * min(per_second, 1), abs=2)


@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from([b"", SAMPLED, UNSAMPLED]), st.booleans(), st.integers(1, 100 * MS)),
            min_size=1,
            max_size=6,
        ),
        max_size=20,
    ),
    st.floats(0, 1),
    st.floats(1, 20),
)
def test_each_request_is_traced_at_most_once_and_within_the_budget(batches, ratio, per_second):
    world = World(ratio=ratio, per_second=per_second)
    began = world.now
    for batch in batches:
        world.now += 10**7
        requests = [world.request(parent, took=took) for parent, _, took in batch]
        for request, (_, asks, _) in zip(requests, batch, strict=True):
            if asks:
                world.sampler.name(request)
        world.batch(*requests)
    spans = [traced.span_id for _, requests in world.sent for traced in requests]
    assert len(set(spans)) == len(spans)
    assert len(spans) <= per_second * (1 + (world.now - began) / 1e9) + 1
    for record, requests in world.sent:
        assert record.traced == requests
