"""A stateful model under whatever callers do: no state crosses sequences, each request ends once, none is lost."""

import logging

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.errors import (
    BackendFailed,
    DeadlineExceeded,
    DeadlineUnreachable,
    InvalidRequest,
    QueueFull,
    QueueTimeout,
    ShuttingDown,
)
from headrace.messages import Signature, TensorSpec
from headrace.repository.model_config import ModelConfig, QueueConfig
from headrace.repository.sequence_config import SequenceConfig, SequenceControl, SequenceControls, SequenceState
from headrace.testing.backend import FakeModel
from headrace.testing.client import InProcessServer, infer_request, output_arrays
from headrace.testing.loop import VirtualTimeLoop
from headrace.testing.worker import VirtualWorker

LOGGERS = [logging.getLogger("headrace.engine.scheduler"), logging.getLogger("headrace.engine.sequence")]

MS = 1_000_000
IDLE_MS = 40
MAX_ROWS = 3
IDS = ("a", 1, 2)
SIGNATURE = Signature(
    tuple(TensorSpec(name, "INT64", (1,)) for name in ("number", "state", "start")),
    tuple(TensorSpec(name, "INT64", (1,)) for name in ("next", "result")),
    MAX_ROWS,
)


class CheckedWorker(VirtualWorker):
    """Looks at each batch at the moment when it starts."""

    def run(self, job):
        if self._under_way is None:
            check(job.batch)
        super().run(job)

    def start(self, job):
        check(job.batch)
        super().start(job)


def check(batch):
    for request in batch.requests:
        assert not 0 < request.expires <= batch.batched, "what had expired runs"


class Sent:
    """A request as its caller knows it."""

    def __init__(self, sequence, start, poisoned, limits):
        self.sequence = sequence
        self.start = start
        self.poisoned = poisoned
        self.limits = limits  # whether there was an rpc deadline, and a timeout of its own
        self.call = None
        self.result = None  # what the model has computed for it


class SequenceMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        for logger in LOGGERS:
            logger.disabled = True  # they would write down each failure that is asked for
        self.loop = VirtualTimeLoop()
        self.failures = []
        self.loop.set_exception_handler(lambda _, context: self.failures.append(context))
        self.sent = []  # the number that a request brings is its place here
        self.replied = []
        self.last = {}  # by id, what the last run of a sequence has left
        self.draining = False

    # --- what can be chosen ---

    @initialize(
        instances=st.integers(1, 2),
        inline=st.booleans(),
        active=st.integers(1, 3),
        direct=st.booleans(),
        max_requests=st.sampled_from([5, 4096]),
    )
    def set_up(self, instances, inline, active, direct, max_requests):
        sequence = SequenceConfig(
            strategy="direct" if direct else "oldest",
            idle_timeout_ms=IDLE_MS,
            max_candidate_sequences=active,
            state=(SequenceState(input="state", output="next"),),
            controls=SequenceControls(start=SequenceControl(input="start")),
        )
        self.inline = inline
        self.max_active = instances * (MAX_ROWS if direct else active)
        self.model = FakeModel(SIGNATURE, self.compute, latency_ns=5 * MS, spend=self.loop.clock.advance)

        async def start():
            self.server = InProcessServer(self.loop.clock)
            self.scheduler, self.observer = self.server.serve_stateful(
                self.model,
                ModelConfig(instances=instances, sequence=sequence, queue=QueueConfig(max_requests=max_requests)),
                inline_below_ns=10**12 if inline else 0,
                learn=[(rows, 5 * MS) for rows in (1, 2, 3)],
                worker=CheckedWorker,
            )

        self.loop.run_until_complete(start())

    @rule(
        sequence=st.sampled_from(IDS),
        start=st.booleans(),
        ends=st.lists(st.integers(0, 4).map(lambda n: n == 0), min_size=1, max_size=4),
        rpc_ms=st.sampled_from([0, 0, 0, 4, 12, 40]),
        timeout_ms=st.sampled_from([0, 0, 0, 9, 30]),
        poison=st.integers(0, 9).map(lambda n: n == 9),
        cancels=st.lists(st.integers(0, 6), max_size=1),
    )
    def send(self, sequence, start, ends, rpc_ms, timeout_ms, poison, cancels):
        for at, end in enumerate(ends):
            self.send_one(sequence, start and at == 0, end, rpc_ms, timeout_ms, poison and at == 0, cancels)

    def send_one(self, sequence, start, end, rpc_ms, timeout_ms, poison, cancels):
        sent = Sent(sequence, start, poison, (bool(rpc_ms), bool(timeout_ms)))
        self.sent.append(sent)

        def on_end():
            self.replied.append(sent)
            for index in cancels:  # one caller's answer makes others go away
                self.cancel(index)

        flags = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
        if timeout_ms:
            flags["timeout"] = timeout_ms * 1000
        message = infer_request("m", {"number": np.array([[len(self.sent) - 1]])}, parameters=flags)
        refused_before = self.server.refused.total()
        sent.call = self.server.client.send(message, timeout_ns=rpc_ms * MS, on_end=on_end)
        assert self.server.refused.total() == refused_before, "decoding refused a good request"

    @rule(index=st.integers(0, 10))
    def cancel(self, index):
        if self.sent:
            call = self.sent[-1 - index % len(self.sent)].call
            if call is not None:
                call.cancel()

    @rule(ms=st.sampled_from([1, 2, 5, 10, IDLE_MS]))
    def time_passes(self, ms):
        self.loop.run_for(ms * MS)

    @rule()
    def turn(self):
        self.loop.run_until_idle()

    @precondition(lambda self: not self.inline)  # the loop itself would hang, as it would in earnest
    @rule(index=st.integers(0, 2))
    def hold(self, index):
        self.model.instances[index % len(self.model.instances)].hold()

    @rule()
    def release(self):
        for instance in self.model.instances:
            instance.release()

    # --- what must hold ---

    def compute(self, inputs):
        """Each row as the model should see it: `next` = 31 state + number + 1, which tells the whole of a sequence."""
        numbers, states, starts = (array[:, 0].tolist() for array in inputs)
        rows = [self.sent[number] for number in numbers]
        if any(row.poisoned for row in rows):
            raise ValueError("poison")
        assert len({row.sequence for row in rows}) == len(rows), "two of a sequence in one batch"
        results = []
        for number, state, start, row in zip(numbers, states, starts, rows, strict=True):
            assert bool(start) == row.start
            expected = 0 if row.start else self.last[row.sequence]
            assert state == expected, "the state of another"
            assert row.result is None, "run twice"
            row.result = self.last[row.sequence] = (31 * state + number + 1) % (1 << 40)
            results.append([row.result])
        return [np.array(results), np.array(results)]

    @invariant()
    def nothing_went_wrong_behind_the_scenes(self):
        assert self.failures == []

    @invariant()
    def limits_hold(self):
        if hasattr(self, "scheduler"):
            assert self.scheduler.sequences.active <= self.max_active
            assert self.scheduler.sequences.held == 8 * self.scheduler.sequences.active

    @invariant()
    def answers_are_right(self):
        for sent in self.sent:
            call = sent.call
            if call is None or not call.ended or call.cancelled:
                continue
            if call.error is None:
                assert output_arrays(call.response)["result"].item() == sent.result
                assert [tensor.name for tensor in call.response.outputs] == ["result"]
            elif isinstance(call.error, BackendFailed):
                assert sent.poisoned, "failed by another's fault"
            elif isinstance(call.error, DeadlineExceeded | QueueTimeout):
                assert sent.limits[isinstance(call.error, QueueTimeout)]
            elif isinstance(call.error, InvalidRequest):
                assert "must specify the START flag" in str(call.error)
                assert not sent.start
            elif isinstance(call.error, ShuttingDown):
                assert self.draining
            else:
                assert isinstance(call.error, QueueFull | DeadlineUnreachable), repr(call.error)

    @invariant()
    def replies_of_a_sequence_come_in_order(self):
        for name in IDS:
            order = [
                self.sent.index(sent) for sent in self.replied if sent.sequence == name and sent.call.error is None
            ]
            assert order == sorted(order)

    def teardown(self):
        try:
            if hasattr(self, "scheduler"):
                self.finish()
        finally:
            for logger in LOGGERS:
                logger.disabled = False
            self.loop.close()

    def finish(self):
        self.release()
        self.draining = True
        if len(self.sent) % 3 == 0:
            self.scheduler.close()
        else:
            assert self.loop.run_until_complete(self.scheduler.drain(1000)), "not all was answered"
        self.loop.run_for(1000 * MS)
        assert not any(not sent.call.ended for sent in self.sent), "somebody was never answered"
        self.answers_are_right()
        sequences = self.scheduler.sequences
        assert (len(sequences), sequences.requests, sequences.nbytes, sequences.held) == (0, 0, 0, 0)
        answered = [sent for sent in self.sent if not sent.call.cancelled]
        good = [sent for sent in answered if sent.call.error is None]
        assert self.observer.requests == len(good)
        assert self.observer.reasons.total() == len(self.sent) - len(good)
        self.scheduler.close()
        self.loop.run_for(1000 * MS)
        assert all(instance.closed for instance in self.model.instances)
        assert self.failures == []


SequenceMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=30)
TestSequence = SequenceMachine.TestCase
