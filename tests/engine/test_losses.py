"""A scheduler whose instances are lost: what becomes of the requests, and who runs them then."""

import logging

import numpy as np
import pytest

from headrace.backends.base import InstanceLost
from headrace.engine.probe import Rejected
from headrace.errors import BackendFailed, DeadlineExceeded, DeadlineUnreachable, ModelNotReady, QueueTimeout, StateLost
from headrace.messages import Signature, TensorSpec
from headrace.repository.model_config import ModelConfig
from headrace.repository.sequence_config import (
    SequenceConfig,
    SequenceControl,
    SequenceControls,
    SequenceIdControl,
    SequenceState,
)
from headrace.testing.backend import ECHO, FakeModel
from headrace.testing.client import InProcessServer, infer_request, output_arrays
from headrace.testing.loop import VirtualTimeLoop
from headrace.testing.supply import FakeSupply

MS = 1_000_000


class World:
    """A model that adds one, on backends of a chain, of which the first takes 10 ms and the others 30 ms."""

    def __init__(
        self,
        loop,
        chain=("fast", "safe"),
        *,
        inline=False,
        supplied=True,
        total=1,
        sequence=None,
        signature=ECHO,
        **config,
    ):
        self.loop = loop
        self.models = {
            name: FakeModel(
                signature,
                lambda inputs: [inputs[-1] + 1, *inputs[:-1]][: len(signature.outputs)],
                latency_ns=10 * MS if name == chain[0] else 30 * MS,
                spend=loop.clock.advance,
            )
            for name in chain
        }
        self.fast = self.models[chain[0]]
        self.inline = inline
        supply = FakeSupply(self.models, total=total, inline_below_ns=10**12 if inline else 0)
        self.supply = supply if supplied else None
        self.config = ModelConfig(backend=chain, sequence=sequence, **config)
        self.errors = []
        loop.set_exception_handler(lambda _, context: self.errors.append(context))
        loop.run_until_complete(self._start())

    async def _start(self):
        self.server = InProcessServer(self.loop.clock)
        serve = self.server.serve if self.config.sequence is None else self.server.serve_stateful
        self.scheduler, self.observer = serve(
            self.fast,
            config=self.config,
            inline_below_ns=10**12 if self.inline else 0,
            learn=[(1, 10 * MS)],
            supply=self.supply,
        )
        self.condition = self.scheduler.condition

    def send(self, value=0.0, rows=1, *, timeout_ns=0, **parameters):
        request = infer_request("m", {"x": np.full((rows, 2), value, np.float32)}, parameters=parameters)
        return self.server.client.send(request, timeout_ns=timeout_ns)

    def run(self, ms=0):
        self.loop.run_for(ms * MS) if ms else self.loop.run_until_idle()
        assert self.errors == []

    def lose(self, *instances, with_others=False):
        for index in instances:
            self.fast.instances[index].lost = InstanceLost("out of memory", with_others=with_others)

    def runs(self, name):
        return [(run.rows, run.requests) for run in self.models[name].runs]


@pytest.fixture
def world():
    loop = VirtualTimeLoop()
    yield lambda *args, **more: World(loop, *args, **more)
    loop.close()


def value(call):
    return np.frombuffer(call.response.raw_output_contents[0], np.float32)[0]


@pytest.mark.parametrize("inline", [False, True])
def test_requests_of_a_lost_instance_run_on_another_one_by_one(world, inline):
    w = world(instances=2, inline=inline)
    w.lose(1)  # the last one that became idle runs first
    calls = [w.send(n) for n in range(3)]
    w.run(100)
    assert [value(call) for call in calls] == [1, 2, 3]
    assert [[run.rows for run in instance.runs] for instance in w.fast.instances] == [[1, 1, 1], [3]]
    assert (w.observer.lost, w.observer.reruns, w.observer.fallbacks) == (1, 3, [])
    assert [batch.close_reason for batch in w.observer.batches] == ["rerun"] * 3
    assert w.fast.instances[1].closed
    assert w.supply.hurried == []
    assert w.condition.note == (
        "1 of 2 instances of fast are lost and are being made anew, served by fast: out of memory"
    )
    assert w.condition.count() == {("fast", "idle"): 1, ("fast", "running"): 0, ("fast", "lost"): 1}
    w.run(1000)
    assert (w.condition.note, w.condition.usable, w.supply.made) == ("", 2, {"fast": 1})
    assert w.supply.hurried == [False]


def test_what_is_run_again_runs_before_what_waits(world):
    w = world(instances=1)
    w.lose(0)
    first = w.send(1)
    w.run()
    later = [w.send(n) for n in (2, 3)]
    w.run(11)
    order = []
    w.models["safe"].compute = lambda inputs: [order.append(inputs[0][:, 0].tolist()) or inputs[0] + 1]
    w.run(100)
    assert order == [[1], [2, 3]]
    assert [value(call) for call in (first, *later)] == [2, 3, 4]


def test_when_all_are_lost_the_next_backend_stands_in_until_one_is_back(world, caplog):
    w = world(instances=2, total=2)
    w.supply.takes_ns["safe"] = 50 * MS
    w.lose(0, 1)
    calls = [w.send(n, timeout_ns=500 * MS) for n in range(2)]
    with caplog.at_level(logging.WARNING):
        w.run(40)
        assert (w.condition.usable, w.condition.backend) == (0, "fast")
        assert not any(call.ended for call in calls)
        w.run(160)
    assert [value(call) for call in calls] == [1, 2]
    assert w.condition.backend == "safe"
    assert w.condition.count() == {
        ("fast", "idle"): 0, ("fast", "running"): 0, ("fast", "lost"): 2, ("safe", "idle"): 2
    }  # fmt: skip
    assert w.observer.fallbacks == [("fast", "safe", "lost")]
    assert "falls back from fast to safe: lost" in caplog.text
    assert w.scheduler.cost is w.scheduler.instances.cost
    assert w.scheduler.cost.mean(1) == 30 * MS, "the cost of what runs now, not of what did"
    w.run(1200)
    assert (w.condition.backend, w.condition.usable, w.condition.note) == ("fast", 2, "")
    assert w.supply.forgotten["safe"] == 1
    assert all(instance.closed for instance in w.models["safe"].instances)
    assert w.scheduler.cost.mean(1) == 10 * MS
    again = w.send(5)
    w.run(20)
    assert value(again) == 6
    assert len(w.fast.instances) == 4


def test_a_stand_in_that_runs_when_it_is_not_needed_any_more_ends_what_it_runs(world):
    w = world(instances=1)
    w.models["safe"].latency_ns = lambda rows: 2000 * MS
    w.lose(0)
    call = w.send(1)
    w.run(1500)
    assert (w.condition.backend, call.ended) == ("fast", False)
    (stand_in,) = w.models["safe"].instances
    assert not stand_in.closed
    w.run(1000)
    assert value(call) == 2
    assert stand_in.closed
    assert w.condition.count() == {("fast", "idle"): 1, ("fast", "running"): 0, ("fast", "lost"): 0}


def test_an_instance_that_runs_is_lost_with_its_device(world):
    w = world(instances=2)
    w.lose(0, with_others=True)
    calls = [w.send(1)]
    w.run(5)  # on instance 1, which works
    calls.append(w.send(2))  # on instance 0, which does not
    w.run(6)
    assert value(calls[0]) == 2, "what ran well is a result"
    w.run(10)
    assert w.observer.lost == 2
    assert w.condition.usable == 1  # that which stands in
    assert w.condition.backend == "safe"
    w.run(100)
    assert value(calls[1]) == 3
    assert all(instance.closed for instance in w.fast.instances)


def test_instances_on_other_devices_are_not_lost_with_it(world):
    w = world(instances=4)
    for index, instance in enumerate(w.fast.instances):
        instance.device = index % 2
    w.lose(3, with_others=True)
    call = w.send(1)
    w.run(50)
    assert value(call) == 2
    assert [instance.closed for instance in w.fast.instances] == [False, True, False, True]
    assert w.observer.lost == 2
    assert w.condition.backend == "fast"


def test_a_request_that_loses_a_third_instance_is_at_fault(world, caplog):
    w = world(instances=4)
    w.lose(0, 1, 2, 3)
    with caplog.at_level(logging.ERROR):
        call = w.send(1)
        w.run(50)
    assert isinstance(call.error, BackendFailed)
    assert "out of memory" not in str(call.error)
    assert "out of memory" in caplog.text
    assert (w.observer.lost, w.observer.reruns) == (3, 2)
    assert w.condition.usable == 1
    assert w.observer.reasons == {"backend_failed": 1}


def test_what_is_over_by_then_is_told_so(world):
    w = world(chain=("only",), instances=1)
    w.lose(0)
    calls = [w.send(1, timeout_ns=25 * MS), w.send(2, timeout=35_000), w.send(3)]
    w.run(40)
    assert isinstance(calls[0].error, DeadlineExceeded)
    assert isinstance(calls[1].error, QueueTimeout)
    assert not calls[2].ended
    w.run(1100)
    assert value(calls[2]) == 4


def test_nobody_waits_for_ever(world):
    w = world(chain=("fast", "slow", "safe"), instances=1)
    w.supply.failures["fast"].extend([RuntimeError("still lost")] * 3)
    w.supply.failures["slow"].append(Rejected("unavailable", "not installed"))
    w.supply.failures["safe"].append(MemoryError())
    w.lose(0)
    calls = [w.send(1), w.send(2, timeout_ns=4000 * MS)]
    w.run(900)
    assert not any(call.ended for call in calls)
    assert w.observer.fallbacks == [("slow", "safe", "unavailable"), ("safe", "", "load")]
    w.supply.failures["slow"].append(RuntimeError("no"))
    w.supply.failures["safe"].append(RuntimeError("no"))
    w.run(200)
    for call in calls:
        assert isinstance(call.error, ModelNotReady)
        assert "its instances are lost" in str(call.error)
    assert w.observer.reasons == {"model_not_ready": 2}
    assert w.condition.usable == 0
    assert w.condition.note.endswith("served by nothing: still lost")
    new = w.send(3)
    w.run()
    assert isinstance(new.error, ModelNotReady), "refused at once"
    w.run(2000)  # the next attempt to fill the place fails too, but now the slow backend works
    assert w.condition.backend == "slow"
    assert w.observer.fallbacks[-1] == ("fast", "slow", "lost")
    new = w.send(4)
    w.run(100)
    assert value(new) == 5


@pytest.mark.parametrize("inline", [False, True])
def test_a_model_whose_instances_are_not_made_anew_refuses_at_once(world, inline):
    w = world(instances=2, supplied=False, inline=inline)
    w.lose(0, 1)
    calls = [w.send(n, timeout_ns=1000 * MS) for n in range(2)]
    w.run(30)
    for call in [*calls, w.send(3)]:
        w.run()
        assert isinstance(call.error, ModelNotReady)
    assert w.condition.note == "2 of 2 instances of fast are lost, served by nothing: out of memory"
    assert w.loop.run_until_complete(w.scheduler.drain(1))
    w.scheduler.close()
    w.run(10)


def test_a_batch_that_was_to_run_beside_the_one_that_loses_all_is_refused_too(world):
    w = world(instances=2, supplied=False, inline=True)
    w.lose(0, 1, with_others=True)
    calls = [w.send(n, rows=8) for n in range(3)]
    w.run()
    assert [type(call.error) for call in calls] == [ModelNotReady] * 3
    assert w.scheduler.depth() == (0, 0)


def test_what_is_lost_again_soon_is_not_waited_for(world):
    w = world(chain=("only",), instances=1)
    w.lose(0)
    calls = [w.send(1)]
    w.run(1020)
    assert value(calls[0]) == 2
    w.lose(-1)
    calls += [w.send(2), w.send(3)]
    w.run(20)
    assert [type(call.error) for call in calls[1:]] == [ModelNotReady] * 2
    w.run(2000)
    calls.append(w.send(4))
    w.run(20)
    assert value(calls[3]) == 5


def test_without_a_chain_requests_wait_for_the_instance_to_be_made_anew(world):
    w = world(chain=("only",), instances=1)
    w.lose(0)
    call = w.send(1, timeout_ns=3000 * MS)
    w.run(500)
    assert not call.ended
    w.run(600)
    assert value(call) == 2
    assert (w.supply.made, w.supply.hurried) == ({"only": 1}, [True])
    assert w.observer.fallbacks == []


def test_callers_that_go_away_meanwhile_are_not_run_again(world):
    w = world(chain=("only",), instances=1)
    w.lose(0)
    calls = [w.send(n) for n in range(3)]
    w.run(5)
    calls[0].cancel()  # while it runs
    w.run(6)
    calls[1].cancel()  # while it waits again
    w.run(2000)
    assert value(calls[2]) == 3
    assert w.runs("only") == [(3, 3), (1, 1)]
    assert w.observer.reasons == {"cancelled": 2}


def test_pieces_of_a_split_request_are_joined_although_one_was_lost(world):
    w = world(instances=2)
    w.lose(0)
    call = w.send(1, rows=20)
    w.run(200)
    (outputs,) = output_arrays(call.response).values()
    assert outputs.tolist() == [[2, 2]] * 20
    assert w.observer.requests == 1


def test_a_server_that_leaves_answers_what_a_lost_instance_had(world):
    w = world(instances=1)
    w.lose(0)
    call = w.send(1)
    w.run(5)
    assert w.loop.run_until_complete(w.scheduler.drain(10))
    assert value(call) == 2
    w.scheduler.close()
    w.run(5000)
    assert w.supply.made["fast"] == 0, "nothing is made any more"
    assert all(instance.closed for model in w.models.values() for instance in model.instances)


def test_an_instance_that_is_made_while_the_server_closes_is_closed(world):
    w = world(instances=1)
    w.supply.takes_ns["safe"] = 100 * MS
    w.lose(0)
    call = w.send(1)
    w.run(50)
    w.scheduler.close()
    assert call.error is not None
    w.run(5000)
    (late,) = w.models["safe"].instances
    assert late.closed


def test_a_lost_instance_is_never_run_again(world):
    w = world(instances=2)
    w.lose(0, 1, with_others=True)
    calls = [w.send(n, rows=8) for n in range(6)]
    w.run(2000)
    assert [value(call) for call in calls] == [1, 2, 3, 4, 5, 6]
    assert not any(instance.runs_after_loss for instance in w.fast.instances)


# --- sequences --------------------------------------------------------------------------------------------------------

KEPT = SequenceConfig(state=(SequenceState(input="before", output="after"),))
KEPT_SIGNATURE = Signature(
    (TensorSpec("before", "FP32", (2,)), TensorSpec("x", "FP32", (2,))),
    (TensorSpec("y", "FP32", (2,)), TensorSpec("after", "FP32", (2,))),
    8,
)
INSIDE = SequenceConfig(
    controls=SequenceControls(start=SequenceControl(input="start"), corrid=SequenceIdControl(input="id"))
)
INSIDE_SIGNATURE = Signature(
    (TensorSpec("start", "BOOL", (1,)), TensorSpec("id", "INT64", (1,)), TensorSpec("x", "FP32", (2,))),
    (TensorSpec("y", "FP32", (2,)),),
    8,
)


def test_a_state_that_the_server_keeps_goes_on_elsewhere(world):
    w = world(instances=1, sequence=KEPT, signature=KEPT_SIGNATURE)
    first = w.send(1, sequence_id=7, sequence_start=True)
    w.run(20)
    w.lose(0)
    second = w.send(2, sequence_id=7)
    w.run(100)
    assert (value(first), value(second)) == (2, 3)
    assert w.observer.reruns == 1


def test_a_sequence_whose_state_the_model_keeps_is_told_that_it_is_lost(world):
    w = world(instances=1, sequence=INSIDE, signature=INSIDE_SIGNATURE)
    first = w.send(1, sequence_id=7, sequence_start=True)
    w.run(20)
    assert value(first) == 2
    w.lose(0)
    second = w.send(2, sequence_id=7)
    w.run(100)
    assert isinstance(second.error, StateLost)
    assert "begin it anew" in str(second.error)
    assert (w.observer.reruns, w.observer.lost, w.observer.reasons) == (0, 1, {"state_lost": 1})
    third = w.send(3, sequence_id=7)
    w.run(100)
    assert "7" in str(third.error), "it has not begun"
    anew = w.send(4, sequence_id=7, sequence_start=True)
    w.run(100)
    assert value(anew) == 5


def test_who_cannot_make_it_behind_what_is_run_again_is_told_at_once(world):
    w = world(chain=("only",), instances=1)
    again = [w.send(n) for n in range(5)]
    w.lose(0)
    w.run(15)
    soon, late = w.send(6, timeout_ns=1050 * MS), w.send(7, timeout_ns=45 * MS)
    w.run()
    assert isinstance(late.error, DeadlineUnreachable), "50 ms are ahead of it"
    again[0].cancel()
    again[1].cancel()
    hardly = w.send(8, timeout_ns=45 * MS)
    w.run()
    assert hardly.error is None
    w.run(1200)
    assert [value(call) for call in again[2:]] == [3, 4, 5]
    assert soon.ended
    w.run(1000)
    quick = w.send(9, timeout_ns=15 * MS)
    w.run(20)
    assert value(quick) == 10
    assert not w.scheduler._wary
