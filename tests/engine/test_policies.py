"""What a model's settings make of requests: queue policies by level, batches that are preferred, and none at all."""

import numpy as np
import pytest

from headrace.engine.policies import batch_limits, model_view, queue_limits
from headrace.errors import DeadlineExceeded, DeadlineUnreachable, QueueFull, QueueTimeout
from headrace.messages import QueuePolicy
from headrace.repository.model_config import BatchingConfig, LevelConfig, ModelConfig, QueueConfig
from headrace.testing.backend import ECHO, FakeModel
from headrace.testing.client import InProcessServer, infer_request
from headrace.testing.loop import VirtualTimeLoop
from headrace.testing.requests import FakeOwner

MS = 1_000_000


class Here:
    """A model that takes 10 ms a batch, and the order in which its requests end."""

    def __init__(self, loop, learn=(), **config):
        self.loop = loop
        self.ended = []
        self.model = FakeModel(ECHO, latency_ns=10 * MS, spend=loop.clock.advance)
        loop.run_until_complete(self._start(ModelConfig(**config), learn))

    async def _start(self, config, learn):
        self.server = InProcessServer(self.loop.clock)
        self.scheduler, self.observer = self.server.serve(self.model, config=config, learn=learn)

    def send(self, name="", rows=1, *, rpc_ms=0, **parameters):
        request = infer_request("m", {"x": np.zeros((rows, 2), np.float32)}, parameters=parameters)
        return self.server.client.send(request, timeout_ns=rpc_ms * MS, on_end=lambda: self.ended.append(name))

    def run(self, ms=0):
        self.loop.run_for(ms * MS) if ms else self.loop.run_until_idle()

    def reasons(self):
        return [(record.batch_rows, record.close_reason) for record in self.observer.batches]


@pytest.fixture
def here():
    loop = VirtualTimeLoop()
    made = []

    def make(**config):
        made.append(Here(loop, **config))
        return made[-1]

    yield make
    for one in made:
        one.scheduler.close()
    loop.close()


def test_settings_become_limits_of_the_pipeline():
    config = ModelConfig(
        priority_levels=3,
        batching=BatchingConfig(policy="delay", delay_us=7, margin_us=4, preferred_sizes=(8, 2)),
        queue=QueueConfig(
            max_requests=5,
            timeout_us=3,
            on_timeout="delay",
            levels={"2": LevelConfig(timeout_override=False), "3": LevelConfig(timeout_us=0, max_level_requests=4)},
        ),
    )
    limits = batch_limits(config, 8)
    assert (limits.policy, limits.delay_ns, limits.preferred) == ("delay", 7000, (2, 8))
    assert limits.margin_ns == 4000
    assert queue_limits(config).by_level
    assert not queue_limits(ModelConfig()).by_level
    view = model_view("m", "1", ECHO, config, FakeOwner())
    assert view.policy == QueuePolicy(3000, override=True, delays=True)
    assert view.policies == {
        1: QueuePolicy(3000, override=False, delays=True),
        2: QueuePolicy(0, override=True, delays=True, max_requests=4),
    }


class TestTimeouts:
    def test_who_has_waited_too_long_is_refused(self, here):
        one = here(queue=QueueConfig(timeout_us=4000))
        one.send("first")
        one.run()
        late = one.send("late")
        one.run(3)
        assert not late.ended
        one.run(1)
        assert type(late.error) is QueueTimeout
        assert str(late.error) == "Request timeout expired"

    @pytest.mark.parametrize(("override", "end"), [(True, 2), (False, 4)])
    def test_a_timeout_of_ones_own_counts_where_it_is_sooner_and_may(self, here, override, end):
        one = here(queue=QueueConfig(timeout_us=4000, timeout_override=override))
        one.send("first")
        one.run()
        sooner, later = one.send(timeout=2000), one.send(timeout=9000)
        one.run(end - 1)
        assert not sooner.ended
        one.run(1)
        assert type(sooner.error) is QueueTimeout
        one.run(4 - end or 1)
        assert type(later.error) is QueueTimeout

    def test_what_is_delayed_runs_when_nobody_else_of_its_level_waits(self, here):
        one = here(max_batch=8, queue=QueueConfig(timeout_us=4000, on_timeout="delay"), priority_levels=2)
        one.send("first", 8)
        one.run()
        one.send("late", 8, priority=1)
        one.run(8)
        one.send("new", 8, priority=1)
        one.send("lower", 8, priority=2)
        one.run(60)
        assert one.ended == ["first", "new", "late", "lower"]
        assert one.observer.reasons.total() == 0

    def test_an_idle_instance_takes_what_is_delayed(self, here):
        one = here(batching=BatchingConfig(policy="delay", delay_us=9000), queue=QueueConfig(
            timeout_us=4000, on_timeout="delay"))  # fmt: skip
        call = one.send("only")
        one.run(30)
        assert call.response

    def test_the_deadline_of_the_call_ends_what_is_delayed(self, here):
        one = here(queue=QueueConfig(timeout_us=2000, on_timeout="delay"))
        one.send("first")
        one.run()
        call = one.send("late", rpc_ms=6)
        one.run(3)
        assert not call.ended
        one.run(3)
        assert type(call.error) is DeadlineExceeded

    def test_what_is_delayed_can_be_cancelled_and_run_alone(self, here):
        one = here(queue=QueueConfig(timeout_us=2000, on_timeout="delay"))
        one.send("first")
        one.run()
        gone, stays, poisoned = one.send("gone"), one.send("stays"), one.send("poisoned")
        one.run(3)
        gone.cancel()
        one.model.failures.extend([None, ValueError("bad"), None, None])  # the batch of both, then each alone
        one.run(60)
        assert stays.response
        assert poisoned.response
        assert one.scheduler.depth() == (0, 0)

    def test_levels_differ(self, here):
        levels = {"1": LevelConfig(timeout_us=2000), "2": LevelConfig(timeout_us=0)}
        one = here(priority_levels=2, queue=QueueConfig(timeout_us=5000, levels=levels))
        one.send("first", 8)
        one.run()
        urgent, patient = one.send(priority=1), one.send(priority=2)
        one.run(3)
        assert type(urgent.error) is QueueTimeout
        one.run(30)
        assert patient.response


class TestLimits:
    def test_a_level_is_full_for_itself(self, here):
        levels = {"1": LevelConfig(max_level_requests=1)}
        one = here(priority_levels=2, queue=QueueConfig(max_level_requests=2, levels=levels))
        one.send("first", 8)
        one.run()
        calls = [one.send(priority=priority) for priority in (1, 1, 2, 2, 2)]
        assert [type(call.error) for call in calls] == [type(None), QueueFull, type(None), type(None), QueueFull]
        assert one.observer.reasons == {"queue_full": 2}
        one.run(30)
        assert one.send(priority=1).error is None


class TestBatches:
    def test_preferred_sizes(self, here):
        one = here(batching=BatchingConfig(policy="delay", delay_us=5000, preferred_sizes=(4,)))
        for _ in range(3):
            one.send()
        one.run(4)
        assert one.reasons() == []
        one.send()
        one.run(10)
        assert one.reasons() == [(4, "preferred")]
        one.send()
        one.run(16)
        assert one.reasons()[1:] == [(1, "delay")]

    def test_requests_that_run_alone(self, here):
        one = here(batching=BatchingConfig(policy="single"), instances=2)
        calls = [one.send(rows=rows) for rows in (1, 3, 2, 11)]
        one.run(60)
        assert all(call.response for call in calls)
        assert sorted(one.reasons()) == [(rows, "single") for rows in (1, 2, 3, 3, 8)]

    def test_that_they_run_alone_is_known_when_deadlines_are_promised(self, here):
        one = here(batching=BatchingConfig(policy="single"), learn=[(1, 10 * MS), (8, 10 * MS)])
        one.send()
        one.run()
        waiting = [one.send(rpc_ms=25), one.send(rpc_ms=25)]
        assert waiting[0].error is None
        assert type(waiting[1].error) is DeadlineUnreachable
        one.run(25)
        assert waiting[0].response
