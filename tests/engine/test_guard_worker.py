import threading
from collections import Counter
from itertools import count

import numpy as np
import pytest

from headrace.backends.base import InstanceLost
from headrace.engine import guard_worker
from headrace.engine.guard_worker import MAX_BYTES, MAX_ROWS, MAX_WAITING, GuardWorker, Sampled
from headrace.engine.trusted import Trusted
from headrace.guard.settings import GuardSettings
from headrace.messages import Signature, TensorSpec
from headrace.pipeline import bytes_tensor
from headrace.pipeline.buckets import Buckets
from headrace.repository.bucket_config import BucketConfig
from headrace.testing.backend import ECHO, FakeModel
from headrace.testing.clock import FakeClock
from headrace.testing.requests import FakeTemplate

MS = 1_000_000
CLASSES = GuardSettings("y", "classes")
TEXT = Signature((TensorSpec("x", "BYTES", (1,)),), (TensorSpec("y", "BYTES", (1,)),), 8)
WHOLE = Signature((TensorSpec("x", "FP32", (2, 2)),), (TensorSpec("y", "FP32", (2, 2)),), 0)


class World:
    """repeats: the same inputs again are the same to the worker; without, each request counts as another."""

    def __init__(
        self, signature=ECHO, settings=CLASSES, share=1.0, row_ns=0, buckets=None, compute=None, repeats=False
    ):
        self.cpu = 0
        self.clock = FakeClock()
        self.model = FakeModel(signature, *([compute] if compute else []), latency_ns=lambda rows: row_ns * rows)
        self.model.spend = self.spend
        self.instance = self.model.make_instance(0)
        self.found = []
        trusted = Trusted(self.instance, signature.max_batch, buckets)
        self.worker = GuardWorker(
            settings, trusted, signature, share, self.found.append, self.clock, lambda: self.cpu, seed=1
        )
        if not repeats:
            numbers = count()
            self.worker._digest = lambda one: next(numbers).to_bytes(8, "little")

    def spend(self, ns):
        self.cpu += ns

    def offer(self, answered, *, sent=None, key="k"):
        """A request whose rows the model is to echo. answered: rows of the output; sent: of the input, if others."""
        answered = np.asarray(answered, np.float32)
        sent = answered if sent is None else np.asarray(sent, np.float32)
        dims = sent.shape[1:]
        template = FakeTemplate(len(sent), key=key, shapes=(dims,))
        part, output = sent.tobytes(), answered.tobytes()
        nbytes = len(part) + len(output)
        if self.worker.room(nbytes):
            self.worker.offer(Sampled(template, len(sent), (part,), (dims,), output, answered.shape[1:], nbytes))

    def run(self):
        self.worker.run_waiting()
        return self.worker.snapshot

    @property
    def batches(self):
        return [(run.rows, run.requests) for run in self.instance.runs]


def test_requests_are_compared_with_what_the_reference_says():
    world = World()
    world.offer([[1, 0], [0, 1]])
    world.offer([[1, 0]], sent=[[0, 1]])
    assert repr(world.worker).startswith("<GuardWorker watching: 2 requests waiting")
    snapshot = world.run()
    assert (snapshot.overall.requests, snapshot.rows) == (2, 3)
    assert snapshot.overall.mean_agreement == 0.5
    assert world.batches == [(3, 2)], "in one batch"


def test_only_those_of_one_look_share_a_batch_which_holds_so_many_rows():
    world = World()
    for key in "aabaa":
        world.offer([[1, 0]] * 3, key=key)
    world.run()
    assert world.batches == [(6, 2), (6, 2), (3, 1)]
    world.instance.runs.clear()
    for _ in range(3):
        world.offer([[1, 0]] * 3)
    world.run()
    assert world.batches == [(6, 2), (3, 1)], "max_batch is 8"


def test_many_rows_are_sampled():
    world = World(Signature(ECHO.inputs, ECHO.outputs, 64), GuardSettings("y", "values", tolerance=0.0))
    rows = np.arange(128, dtype=np.float32).reshape(64, 2)
    seen = []
    for _ in range(50):
        world.offer(rows)
        world.run()
        seen += world.instance.runs[-1].inputs[0][:, 0].tolist()
    assert world.worker.snapshot.rows == 50 * MAX_ROWS
    assert world.worker.snapshot.overall.mean_agreement == 1, "of input and output the same rows"
    assert len(set(seen)) == 64, "any of them"


def test_texts_are_sampled_too():
    world = World(TEXT, GuardSettings("y", "equal"))
    texts = np.array([[f"{at}".encode()] for at in range(20)], object)
    data = bytes_tensor.encode(texts)
    world.worker.offer(Sampled(FakeTemplate(20, shapes=((1,),)), 20, (data,), ((1,),), data, (1,), 2 * len(data)))
    world.worker.offer(
        Sampled(FakeTemplate(1, shapes=((1,),)), 1, (bytes_tensor.encode(texts[:1]),), ((1,),),
                bytes_tensor.encode(texts[1:2]), (1,), 10)
    )  # fmt: skip
    snapshot = world.run()
    assert (snapshot.rows, snapshot.overall.mean_agreement) == (MAX_ROWS + 1, 0.5)


def test_a_model_without_a_batch_dimension():
    world = World(WHOLE, GuardSettings("y", "values"))
    for answered in (np.eye(2, dtype=np.float32), np.zeros((2, 2), np.float32)):
        sent = np.eye(2, dtype=np.float32)
        template = FakeTemplate(1, shapes=((2, 2),))
        world.worker.offer(Sampled(template, 1, (sent.tobytes(),), ((2, 2),), answered.tobytes(), (2, 2), 32))
    snapshot = world.run()
    assert (snapshot.rows, snapshot.overall.mean_agreement) == (2, 0.5)
    assert world.batches == [(1, 1), (1, 1)]


def test_padding_is_no_part_of_the_comparison():
    """The reference answers what is padded otherwise than the version: nobody sees it."""
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),), 8)
    rules = {"n": BucketConfig.model_validate({"sizes": [4], "inputs": {"x": 1}, "outputs": {"y": 1}})}
    buckets = Buckets(rules, signature, {"x": -5.0})
    world = World(signature, GuardSettings("y", "values"), buckets=buckets)
    for own, answered in (([1, 2], [1, 2, 9, 9]), ([1, 2, 3], [1, 2, 3, 9]), ([1, 2, 3], [1, 2, 9, 9])):
        sent = np.array([own], np.float32)
        fit, shapes = buckets.fit([sent.shape[1:]], "m")
        template = FakeTemplate(1, shapes=shapes, fit=fit)
        output = np.array([answered], np.float32).tobytes()
        world.worker.offer(Sampled(template, 1, (sent.tobytes(),), (sent.shape[1:],), output, (4,), 100))
    snapshot = world.run()
    assert snapshot.overall.requests == 3
    assert snapshot.overall.mean_agreement == pytest.approx(2 / 3)
    assert world.instance.runs[0].inputs[0].tolist() == [[1, 2, -5, -5], [1, 2, 3, -5], [1, 2, 3, -5]]


def test_other_datatypes():
    signature = Signature((TensorSpec("x", "BF16", (2,)),), (TensorSpec("y", "BF16", (2,)),), 8)
    world = World(signature, GuardSettings("y", "values"))
    one, two = np.float32(1).view(np.uint32) >> 16, np.float32(2).view(np.uint32) >> 16
    data = np.array([[one, two]], np.uint16).tobytes()
    world.worker.offer(Sampled(FakeTemplate(1, shapes=((2,),)), 1, (data,), ((2,),), data, (2,), 8))
    data_off = np.array([[one, one]], np.uint16).tobytes()
    world.worker.offer(Sampled(FakeTemplate(1, shapes=((2,),)), 1, (data,), ((2,),), data_off, (2,), 8))
    snapshot = world.run()
    assert (snapshot.overall.mean_agreement, snapshot.largest) == (0.5, 1.0)


def test_what_waits_is_bounded(monkeypatch):
    world = World()
    for _ in range(MAX_WAITING + 3):
        world.offer([[1, 0]])
    assert world.worker.skipped == Counter(busy=3)
    assert world.run().rows == MAX_WAITING
    monkeypatch.setattr(guard_worker, "MAX_BYTES", 40)
    for _ in range(3):
        world.offer([[1, 0]])
    assert world.worker.skipped == Counter(busy=4), "16 octets each"
    world.offer([[1, 0]] * 3)
    assert world.worker.skipped == Counter(busy=4, large=1)
    world.run()
    world.offer([[1, 0]])
    assert world.run().rows == MAX_WAITING + 3


def test_the_same_inputs_again_count_for_nothing():
    """Whatever is answered, in one batch or in several, alone or among others."""
    world = World(repeats=True)
    for _ in range(100):
        world.offer([[1, 0]], sent=[[0, 1]])
    assert world.run().overall.requests == 1
    for number in range(60):
        world.offer([[1, number]])
        world.offer([[1, 0]], sent=[[0, 1]], key="other")
    snapshot = world.run()
    assert (snapshot.overall.requests, snapshot.rows) == (61, 61)
    assert world.worker.skipped == Counter(repeated=99 + 60)
    assert (snapshot.finding, world.found) == (None, [])
    assert sum(rows for rows, _ in world.batches) == 61, "nor is the reference asked"
    assert repr(world.worker).startswith("<GuardWorker watching: 0 requests waiting")
    world.worker.begin_anew()
    world.offer([[1, 0]], sent=[[0, 1]])
    assert world.run().overall.requests == 1


def test_what_inputs_are_the_same():
    """Those of the same bytes in the same dimensions; digests have a key that nobody knows."""
    worker, other = World(repeats=True).worker, World(repeats=True).worker

    def sampled(*parts, shapes=((2,),), output=b""):
        return Sampled(FakeTemplate(1), 1, parts, shapes, output, (2,), 8)

    one = sampled(b"12345678")
    assert worker._digest(one) == worker._digest(sampled(b"12345678", output=b"another"))
    assert worker._digest(one) != other._digest(one)
    assert worker._digest(one) != worker._digest(sampled(b"12345679"))
    assert worker._digest(one) != worker._digest(sampled(b"12345678", shapes=((1, 2),)))
    assert worker._digest(sampled(b"12", b"3")) != worker._digest(sampled(b"1", b"23"))


def test_the_budget_holds():
    """At 3 % of a core, 1 ms a row: 30 rows a second, and what was saved."""
    world = World(share=0.03, row_ns=MS)
    rested = 0

    def rest(seconds):
        nonlocal rested
        rested += seconds
        world.clock.advance(round(seconds * 1e9))
        return False

    for _ in range(MAX_WAITING):
        world.offer([[1, 0]])
    world.worker._compare_all(world.worker._waiting(), rest)
    assert world.worker.snapshot.rows == MAX_WAITING
    assert world.worker.cpu_ns == MAX_WAITING * MS
    assert MAX_WAITING / 30 - 1.2 <= rested <= MAX_WAITING / 30
    assert max(rows for rows, _ in world.batches[1:]) <= 5, "no longer at a time than 5 ms, once the cost is known"


def test_the_end_comes_while_it_rests():
    world = World(share=0.001, row_ns=MS)
    for _ in range(100):
        world.offer([[1, 0]])
    world.worker._compare_all(world.worker._waiting(), lambda _: True)
    assert world.worker.snapshot.rows < 100


def test_a_failed_run_ends_nothing(caplog):
    world = World()
    world.model.failures.extend([ValueError("odd"), ValueError("odd"), None])
    for key in "abc":
        world.offer([[1, 0]], key=key)
    assert world.run().rows == 1
    assert (world.worker.failed, world.worker.blind) == (2, False)
    assert len(caplog.records) == 1, "the same again is not told"


def test_a_lost_reference_is_the_end_of_seeing(caplog):
    world = World()
    world.instance.lost = InstanceLost("no memory")
    world.offer([[1, 0]])
    world.offer([[1, 0]], key="other")
    assert world.run().rows == 0
    assert world.worker.blind
    world.offer([[1, 0]])
    assert world.worker.skipped == Counter(blind=1)
    assert "a guard has lost its reference and sees no more: no memory" in caplog.text


def test_a_proof_is_told_once_and_again_if_it_begins_anew():
    world = World()
    for _ in range(40):
        world.offer([[1, 0]], sent=[[0, 1]])
    snapshot = world.run()
    assert len(world.found) == 1
    assert snapshot.finding is world.found[0]
    world.worker.begin_anew()
    assert world.worker.snapshot.overall.requests == 0
    for _ in range(40):
        world.offer([[1, 0]], sent=[[0, 1]])
    world.run()
    assert len(world.found) == 2


def test_what_was_under_way_when_it_began_anew_counts_for_nothing():
    def compute(inputs):
        world.worker.begin_anew()
        return inputs

    world = World(compute=compute)
    for _ in range(8):
        world.offer([[1, 0]], sent=[[0, 1]])
    assert world.run().overall.requests == 0
    assert world.found == []


def test_the_thread(monkeypatch):
    monkeypatch.setattr(guard_worker, "_GATHER_S", 0)
    world = World()
    told = threading.Event()
    world.worker._proved = lambda finding: told.set()
    world.worker.start()
    for _ in range(40):
        world.offer([[1, 0]], sent=[[0, 1]])
    assert told.wait(30)
    world.worker.stop()
    world.worker.stop()
    world.worker.join(30)
    assert world.instance.closed


@pytest.mark.parametrize(("count", "most_bytes"), [(MAX_WAITING // 2, MAX_BYTES), (40, 40 * 16 * 2)])
def test_when_half_of_what_may_wait_has_come_it_waits_for_no_more(monkeypatch, count, most_bytes):
    """However long it may wait: it is the budget that is to bind, and not how often it looks."""
    monkeypatch.setattr(guard_worker, "_GATHER_S", 3600)
    monkeypatch.setattr(guard_worker, "MAX_BYTES", most_bytes)
    world = World()
    told = threading.Event()
    world.worker._proved = lambda finding: told.set()
    world.worker.start()
    for _ in range(count):
        world.offer([[1, 0]], sent=[[0, 1]])
    assert told.wait(30)
    world.worker.stop()
    world.worker.join(30)


def test_the_end_does_not_wait_for_others_to_come(monkeypatch):
    monkeypatch.setattr(guard_worker, "_GATHER_S", 3600)
    world = World()
    world.worker.start()
    world.offer([[1, 0]])
    world.worker.stop()
    world.worker.join(30)
    assert world.instance.closed


def test_the_end_is_seen_whoever_takes_the_news(monkeypatch):
    """What tells the thread of its end may be taken out of the queue with the last requests."""
    world = World()
    world.offer([[1, 0]])
    world.worker._stop.set()
    world.worker._queue.put(None)
    world.worker._run()
    assert world.instance.closed
    other = World()
    other.offer([[1, 0]])
    monkeypatch.setattr(other.worker._enough, "wait", lambda seconds: other.worker.stop())
    other.worker._thread = threading.current_thread()
    other.worker._run()
    assert other.instance.closed
    assert other.worker.snapshot.rows == 0


def test_without_a_thread_the_end_frees_the_reference():
    world = World()
    world.worker.stop()
    world.worker.join(0)
    assert world.instance.closed
