"""Whatever happens to a scheduler, in whatever order: each request ends once, with its own rows, and in time."""

import logging
from collections import Counter

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.errors import (
    BackendFailed,
    DeadlineExceeded,
    DeadlineUnreachable,
    QueueFull,
    QueueTimeout,
    ShuttingDown,
)
from headrace.messages import Signature, State, TensorSpec
from headrace.pipeline.queue import is_over
from headrace.repository.model_config import BatchingConfig, ModelConfig, QueueConfig
from headrace.testing.backend import FakeModel
from headrace.testing.client import InProcessServer, infer_request, output_arrays
from headrace.testing.loop import VirtualTimeLoop
from headrace.testing.worker import VirtualWorker

logger = logging.getLogger("headrace.engine.scheduler")

MS = 1_000_000
MAX_ROWS = 6
SPEC = TensorSpec("id", "INT64", (-1,))
SIGNATURE = Signature((SPEC,), (TensorSpec("out", "INT64", (-1,)),), MAX_ROWS)
POISON = -1_000_000
"""Ids from here down make their batch fail."""


def transform(ids):
    return ids * 3 + 1


class CheckedWorker(VirtualWorker):
    """Looks at each batch at the moment when it starts."""

    machine = None

    def run(self, job):
        if self._under_way is None:
            self.machine.on_start(job.batch)
        super().run(job)

    def start(self, job):
        self.machine.on_start(job.batch)
        super().start(job)


class Sent:
    """A request as its caller knows it."""

    def __init__(self, ids, expires, limits):
        self.ids = ids
        self.expires = expires  # 0: never
        self.limits = limits  # whether there was an rpc deadline, and a timeout of its own
        self.call = None
        self.cancelled_by = []

    @property
    def poisoned(self):
        return bool((self.ids <= POISON).any())

    @property
    def waiting(self):
        return not self.call.ended and not self.call.cancelled


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        logger.disabled = True  # it would write down each failure that is asked for
        self.loop = VirtualTimeLoop()
        self.failures = []
        self.loop.set_exception_handler(lambda _, context: self.failures.append(context))
        self.sent = []
        self.by_sink = {}
        self.next_id = 0
        self.draining = False
        self.drained = None

    # --- what can be chosen ---

    @initialize(
        instances=st.integers(1, 3),
        policy=st.sampled_from(["slot", "slot", "deadline", "delay", "single"]),
        preferred=st.sampled_from([None, None, (2, 4)]),
        inline=st.booleans(),
        knows=st.booleans(),
        slo=st.sampled_from([0.0, 0.0, 30.0]),
        timeout=st.sampled_from([0, 0, 12]),
        on_timeout=st.sampled_from(["reject", "reject", "delay"]),
        override=st.booleans(),
        max_requests=st.sampled_from([4, 4096]),
        max_level_requests=st.sampled_from([0, 0, 2]),
        steep=st.booleans(),
    )
    def set_up(
        self,
        instances,
        policy,
        preferred,
        inline,
        knows,
        slo,
        timeout,
        on_timeout,
        override,
        max_requests,
        max_level_requests,
        steep,
    ):
        if slo:
            timeout = 0
        self.timeout, self.delays, self.override = timeout, on_timeout == "delay", override
        self.max_level_requests = max_level_requests
        config = ModelConfig(
            instances=instances,
            slo_ms=slo,
            priority_levels=2,
            batching=BatchingConfig(policy=policy, delay_us=3000, preferred_sizes=preferred),
            queue=QueueConfig(
                max_requests=max_requests,
                max_level_requests=max_level_requests,
                timeout_us=timeout * 1000,
                on_timeout=on_timeout,
                timeout_override=override,
            ),
        )
        self.policy = policy
        self.inline = inline
        self.slo_ns = int(slo * MS)
        self.model = FakeModel(
            SIGNATURE,
            self.compute,
            latency_ns=(lambda rows: rows * 2 * MS) if steep else 5 * MS,
            spend=self.loop.clock.advance,
        )
        worker = type("Worker", (CheckedWorker,), {"machine": self})

        async def start():
            self.server = InProcessServer(self.loop.clock)
            self.scheduler, self.observer = self.server.serve(
                self.model,
                config=config,
                inline_below_ns=10**12 if inline else 0,
                learn=[(rows, self.model.latency_ns(rows)) for rows in (1, 2, 4, 6)] if knows or inline else (),
                worker=worker,
            )

        self.loop.run_until_complete(start())

    @rule(
        rows=st.one_of(st.integers(1, MAX_ROWS), st.integers(1, 3 * MAX_ROWS)),
        columns=st.integers(1, 2),
        rpc_ms=st.sampled_from([0, 0, 0, 1, 4, 7, 15, 40, 200]),
        timeout_ms=st.sampled_from([0, 0, 0, 2, 9, 60]),
        priority=st.integers(0, 3),
        poison=st.integers(0, 7).map(lambda n: n == 0),
        timing=st.booleans(),
        cancels=st.lists(st.integers(0, 10), max_size=2),
    )
    def send(self, rows, columns, rpc_ms, timeout_ms, priority, poison, timing, cancels):
        ids = np.arange(self.next_id, self.next_id + rows * columns).reshape(rows, columns)
        self.next_id += rows * columns
        if poison:
            ids[rows // 2, 0] = POISON - self.next_id
        now = self.loop.clock()
        own = timeout_ms if self.override and not 0 < self.timeout <= timeout_ms else 0
        wait_ms = 0 if self.delays else own or self.timeout
        limits = [ms * MS for ms in (rpc_ms, wait_ms) if ms] or [0 if own or self.timeout else self.slo_ns]
        sent = Sent(ids, now + min(limits) if min(limits) else 0, (bool(rpc_ms), bool(wait_ms or self.slo_ns)))
        self.sent.append(sent)

        def on_end():
            for index in cancels:  # one caller's answer makes others go away
                self.cancel_one(self.sent[-1 - index % len(self.sent)])

        parameters = {"priority": priority, "headrace_timing": timing}
        if timeout_ms:
            parameters["timeout"] = timeout_ms * 1000
        message = infer_request("m", {"id": ids}, parameters=parameters)
        admitted_before = self.server.refused.total()
        sent.call = self.server.client.send(message, timeout_ns=rpc_ms * MS, on_end=on_end)
        assert self.server.refused.total() == admitted_before, "decoding refused a good request"
        if sent.call.error is not None:
            expected = (ShuttingDown,) if self.draining else (QueueFull, DeadlineUnreachable)
            assert isinstance(sent.call.error, expected), repr(sent.call.error)
        self.by_sink[id(sent.call)] = sent

    @rule(index=st.integers(0, 10))
    def cancel(self, index):
        if self.sent:
            self.cancel_one(self.sent[-1 - index % len(self.sent)])

    @rule(index=st.integers(0, 10))
    def cancel_one_that_runs(self, index):
        batches = self.scheduler._running.values()
        running = [request.template.whole or request for batch in batches for request in batch.requests]
        if running:
            self.cancel_one(self.by_sink[id(running[index % len(running)].sink)])

    @rule(tenths=st.sampled_from([1, 5, 10, 20, 50, 100, 300]))
    def time_passes(self, tenths):
        self.loop.run_for(tenths * MS // 10)
        self.settled()

    @rule()
    def turn(self):
        self.loop.run_until_idle()
        self.settled()

    @precondition(lambda self: not self.inline)  # the loop itself would hang, as it would in earnest
    @rule(index=st.integers(0, 2))
    def hold(self, index):
        self.model.instances[index % len(self.model.instances)].hold()

    @rule()
    def release(self):
        for instance in self.model.instances:
            instance.release()

    @precondition(lambda self: not self.draining)
    @rule(chance=st.integers(0, 9))
    def drain(self, chance):
        if chance == 0:
            self.draining = True
            self.drained = self.loop.create_task(self.scheduler.drain(1000))
            self.loop.run_until_idle()

    # --- what must hold ---

    def cancel_one(self, sent):
        if sent.call is not None:
            sent.call.cancel()

    def compute(self, inputs):
        (ids,) = inputs
        if (ids <= POISON).any():
            raise ValueError("poison")
        return [transform(ids)]

    def on_start(self, batch):
        now = self.loop.clock()
        requests = batch.requests
        assert batch.rows == sum(request.template.rows for request in requests) <= MAX_ROWS
        assert len({request.template.key for request in requests}) == 1
        assert [request.order for request in requests] == sorted(request.order for request in requests)
        for request in requests:
            over = 0 < request.expires <= batch.batched and is_over(request, batch.batched)
            assert not over, "what had expired runs"
            assert batch.batched <= now
            whole = request.template.whole or request
            sent = self.by_sink[id(whole.sink)]
            if request.state is State.RUNNING:
                assert sent.waiting, "runs for somebody who has gone, or was answered"
            else:
                assert request.state is State.ABANDONED

    def settled(self):
        """Nothing is ready to run: what waits now, waits for an instance, or for a moment that has not come."""
        now = self.loop.clock()
        scheduler = self.scheduler
        assert not scheduler._dispatch_due
        for request in scheduler.queue:
            assert not 0 < request.expires <= now, "expired, and still in the queue"
        if scheduler._idle:
            assert not scheduler._alone
            if scheduler.queue.requests:
                assert self.policy not in ("slot", "single"), "an idle instance, and somebody waits"
                assert not self.draining
                assert scheduler._wakeup.moment > now, "waits past the moment"
        if any(request.expires for request in scheduler.queue):
            assert scheduler._wakeup.moment

    @invariant()
    def nothing_went_wrong_behind_the_scenes(self):
        assert self.failures == []

    @invariant()
    def queue_counters_are_those_of_the_queue(self):
        if not hasattr(self, "scheduler"):
            return
        queue = self.scheduler.queue
        waiting = list(queue)
        assert queue.requests == len(waiting)
        assert queue.rows == sum(request.template.rows for request in waiting)
        assert queue.nbytes == sum(len(part) for request in waiting for part in request.parts)
        assert all(request.state is State.WAITING for request in waiting)
        if self.max_level_requests:  # of a split request, all pieces come in, and all wait
            whole = {id(request.template.whole or request): request.template.priority for request in waiting}
            assert max(Counter(whole.values()).values(), default=0) <= self.max_level_requests
        assert len(self.scheduler._idle) + len(self.scheduler._running) == len(self.model.instances)

    @invariant()
    def answers_are_right(self):
        for sent in self.sent:
            call = sent.call
            if call is None or not call.ended or call.cancelled:
                continue
            if call.error is None:
                outputs = output_arrays(call.response)
                assert np.array_equal(outputs["out"], transform(sent.ids)), "somebody else's rows"
                assert not sent.poisoned
                self.check_timing(call.response.parameters)
            elif isinstance(call.error, BackendFailed):
                assert sent.poisoned, "failed by another's fault"
            elif isinstance(call.error, DeadlineExceeded | QueueTimeout):
                assert sent.limits[isinstance(call.error, QueueTimeout)]
                assert 0 < sent.expires <= self.loop.clock(), "too soon"
            elif isinstance(call.error, ShuttingDown):
                assert self.draining
            else:
                assert isinstance(call.error, QueueFull | DeadlineUnreachable), repr(call.error)

    def check_timing(self, parameters):
        if parameters:
            phases = ("decode", "admit", "queue", "batch", "execute", "encode")
            spent = [parameters[f"headrace_{phase}_us"].int64_param for phase in phases]
            assert min(spent) >= 0
            assert sum(spent) == parameters["headrace_total_us"].int64_param

    @invariant()
    def every_end_is_counted_once(self):
        if not hasattr(self, "scheduler"):
            return
        good = [sent for sent in self.sent if sent.call.ended and not sent.call.cancelled and sent.call.error is None]
        assert self.observer.requests == len(good)
        assert self.observer.rows == sum(len(sent.ids) for sent in good)
        # who went away while its batch ran is counted when that is over
        ended_badly = len([sent for sent in self.sent if sent.call.ended]) - len(good)
        running = [
            request.template.whole or request
            for batch in self.scheduler._running.values()
            for request in batch.requests
            if request.state is State.ABANDONED and request.template.whole is None
        ]
        assert self.observer.reasons.total() == ended_badly - len(running)

    def teardown(self):
        try:
            if hasattr(self, "scheduler"):
                self.finish()
        finally:
            logger.disabled = False
            self.loop.close()

    def finish(self):
        if self.next_id % 3 == 0:
            self.close_at_once()
        self.release()
        self.draining = True
        assert self.loop.run_until_complete(self.scheduler.drain(1000)), "not all was answered"
        self.loop.run_until_idle()
        if self.drained is not None and not self.drained.done():
            self.loop.run_until_complete(self.drained)
        self.every_end_is_counted_once()
        self.answers_are_right()
        self.scheduler.close()
        self.loop.run_for(1000 * MS)
        assert not any(sent.waiting for sent in self.sent), "somebody was never answered"
        queue = self.scheduler.queue
        assert (queue.requests, queue.rows, queue.nbytes, queue.next_expiry) == (0, 0, 0, 0)
        assert not self.scheduler._running
        assert all(instance.closed for instance in self.model.instances)
        assert self.failures == []

    def close_at_once(self):
        self.draining = True
        self.scheduler.close()
        assert not any(sent.waiting for sent in self.sent), "closed, and somebody still waits"
        self.answers_are_right()


SchedulerMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=40)
TestScheduler = SchedulerMachine.TestCase
