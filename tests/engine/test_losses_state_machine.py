"""Whatever instances are lost: each request ends once, in time, with its own rows, and runs three times at most.

The models are in virtual time, behind a real scheduler; `test_roster` is about the decisions alone.
"""

import logging
from collections import Counter

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.backends.base import InstanceLost
from headrace.errors import (
    BackendFailed,
    DeadlineExceeded,
    DeadlineUnreachable,
    ModelNotReady,
    QueueTimeout,
    ShuttingDown,
)
from headrace.messages import Signature, State, TensorSpec
from headrace.repository.model_config import ModelConfig
from headrace.testing.backend import FakeModel
from headrace.testing.client import InProcessServer, infer_request, output_arrays
from headrace.testing.loop import VirtualTimeLoop
from headrace.testing.supply import FakeSupply

LOGGERS = [logging.getLogger(f"headrace.engine.{name}") for name in ("scheduler", "instances")]
MS = 1_000_000
MAX_ROWS = 4
CHAIN = ("fast", "slow", "safe")
SIGNATURE = Signature((TensorSpec("id", "INT64", (1,)),), (TensorSpec("out", "INT64", (1,)),), MAX_ROWS)


class Sent:
    def __init__(self, ids, expires):
        self.ids = ids
        self.expires = expires  # 0: never
        self.call = None


class LossesMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        for logger in LOGGERS:
            logger.disabled = True  # they would write down each loss that is asked for
        self.loop = VirtualTimeLoop()
        self.failures = []
        self.loop.set_exception_handler(lambda _, context: self.failures.append(context))
        self.sent = []
        self.next_id = 0
        self.hopeless_seen = False
        self.closed = False
        self.cursed = False

    @initialize(
        backends=st.integers(1, 3),
        instances=st.integers(1, 3),
        total=st.integers(1, 2),
        inline=st.booleans(),
        first_ms=st.sampled_from([5, 50]),
    )
    def set_up(self, backends, instances, total, inline, first_ms):
        self.models = {
            name: FakeModel(SIGNATURE, self.compute, latency_ns=5 * MS, spend=self.loop.clock.advance)
            for name in CHAIN[:backends]
        }
        self.inline = inline
        self.supply = FakeSupply(
            self.models,
            total=total,
            first_ns=first_ms * MS,
            max_ns=200 * MS,
            inline_below_ns=10**12 if inline else 0,
        )
        config = ModelConfig(instances=instances, backend=CHAIN[:backends])

        async def start():
            self.server = InProcessServer(self.loop.clock)
            self.scheduler, self.observer = self.server.serve(
                self.models["fast"],
                config=config,
                inline_below_ns=10**12 if inline else 0,
                learn=[(1, 5 * MS)],
                supply=self.supply,
            )

        self.loop.run_until_complete(start())

    @property
    def instances(self):
        return [instance for model in self.models.values() for instance in model.instances]

    # --- what can happen ---

    @rule(
        rows=st.integers(1, 2 * MAX_ROWS),
        limit_ms=st.sampled_from([0, 0, 12, 40, 200]),
        own=st.booleans(),
        cancels=st.lists(st.integers(0, 5), max_size=1),
    )
    def send(self, rows, limit_ms, own, cancels):
        ids = np.arange(self.next_id, self.next_id + rows).reshape(rows, 1)
        self.next_id += rows
        sent = Sent(ids, self.loop.clock() + limit_ms * MS if limit_ms else 0)
        self.sent.append(sent)
        self.look()
        message = infer_request("m", {"id": ids}, parameters={"timeout": limit_ms * 1000} if own and limit_ms else {})
        sent.call = self.server.client.send(
            message,
            timeout_ns=0 if own else limit_ms * MS,
            on_end=lambda: self.ended(cancels),
        )

    def ended(self, cancels):
        self.look()  # between two turns there may be hope again
        for index in cancels:
            self.cancel(index)

    @rule(index=st.integers(0, 5))
    def cancel(self, index):
        if self.sent and self.sent[-1 - index % len(self.sent)].call is not None:
            self.sent[-1 - index % len(self.sent)].call.cancel()

    @rule(index=st.integers(0, 9), with_others=st.booleans())
    def lose(self, index, with_others):
        """The next run of an instance, or the one under way, will find that it is lost."""
        alive = [instance for instance in self.instances if not instance.closed]
        if alive:
            alive[index % len(alive)].lost = InstanceLost("lost", with_others=with_others)

    @rule(with_others=st.booleans())
    def lose_all(self, with_others):
        for instance in self.instances:
            instance.lost = InstanceLost("lost", with_others=with_others)

    @rule(cursed=st.booleans())
    def curse(self, cursed):
        """Whatever runs is lost, and so is what is made in its place."""
        self.cursed = cursed

    @rule(
        backends=st.sampled_from([CHAIN, *((backend,) for backend in CHAIN)]),
        failures=st.integers(0, 3),
        takes_ms=st.sampled_from([0, 3, 80]),
    )
    def arrange(self, backends, failures, takes_ms):
        for backend in backends:
            self.supply.failures[backend].extend([RuntimeError("not now")] * failures)
            self.supply.takes_ns[backend] = takes_ms * MS

    @rule(ms=st.sampled_from([1, 5, 20, 100, 500]))
    def time_passes(self, ms):
        for _ in range(ms):
            self.loop.run_for(MS)
            self.look()
        self.settled()

    @rule()
    def turn(self):
        self.loop.run_until_idle()
        self.settled()

    @precondition(lambda self: not self.inline)
    @rule(index=st.integers(0, 5))
    def hold(self, index):
        alive = [instance for instance in self.instances if not instance.closed]
        if alive:
            alive[index % len(alive)].hold()

    @rule()
    def release(self):
        for instance in self.instances:
            instance.release()

    # --- what must hold ---

    def compute(self, inputs):
        if self.cursed:
            raise InstanceLost("cursed")
        return [inputs[0] * 3 + 1]

    def look(self):
        self.hopeless_seen |= self.scheduler.instances.hopeless

    def settled(self):
        self.look()
        scheduler, now = self.scheduler, self.loop.clock()
        waiting = [*scheduler.queue, *scheduler._alone]
        assert all(request.state is State.WAITING for request in waiting)
        assert not any(0 < request.expires <= now for request in waiting), "expired, and still waits"
        assert not (scheduler._idle and waiting), "an idle instance, and somebody waits"
        assert scheduler._wary == bool(len(scheduler._alone) or scheduler.instances.hopeless)
        if scheduler.instances.hopeless:
            assert not waiting, "waits for nothing"

    @invariant()
    def nothing_went_wrong_behind_the_scenes(self):
        assert self.failures == []

    @invariant()
    def what_is_lost_is_never_run_again(self):
        if hasattr(self, "scheduler"):
            assert not any(instance.runs_after_loss for instance in self.instances)
            usable = self.scheduler.instances.usable
            staying = [worker for worker in self.scheduler._running if not worker.leaving]
            assert usable == len(self.scheduler._idle) + len(staying)

    @invariant()
    def nothing_is_run_more_often_than_it_may(self):
        if hasattr(self, "scheduler"):
            assert max(self.runs().values(), default=0) <= 3

    def runs(self):
        """How often each row has run, by its id."""
        return Counter(int(one) for i in self.instances for run in i.runs for one in run.inputs[0][:, 0])

    @invariant()
    def answers_are_right(self):
        for sent in self.sent:
            call = sent.call
            if call is None or not call.ended or call.cancelled:
                continue
            if call.error is None:
                (outputs,) = output_arrays(call.response).values()
                assert np.array_equal(outputs, sent.ids * 3 + 1), "somebody else's rows"
            elif isinstance(call.error, DeadlineExceeded | QueueTimeout):
                assert 0 < sent.expires <= self.loop.clock(), "too soon"
            elif isinstance(call.error, BackendFailed):
                runs = self.runs()
                assert max(runs[int(one)] for one in sent.ids[:, 0]) == 3, "it has not had its three runs"
            elif isinstance(call.error, ModelNotReady):
                assert self.hopeless_seen
            elif isinstance(call.error, DeadlineUnreachable):
                assert sent.expires
            else:
                assert isinstance(call.error, ShuttingDown)
                assert self.closed

    @invariant()
    def every_end_is_counted_once(self):
        if not hasattr(self, "scheduler"):
            return
        good = [sent for sent in self.sent if sent.call.ended and not sent.call.cancelled and sent.call.error is None]
        assert self.observer.requests == len(good)

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
        self.supply.failures.clear()
        self.cursed = False
        for instance in self.instances:
            instance.lost = None
        if self.next_id % 3 == 0:
            self.closed = True
            self.scheduler.close()
        assert self.loop.run_until_complete(self.scheduler.drain(1000)), "not all was answered"
        self.loop.run_until_idle()
        assert all(sent.call.ended or sent.call.cancelled for sent in self.sent), "somebody was never answered"
        self.answers_are_right()
        self.every_end_is_counted_once()
        self.scheduler.close()
        self.loop.run_for(10_000 * MS)
        assert all(instance.closed for instance in self.instances)
        assert self.failures == []


LossesMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestLosses = LossesMachine.TestCase
