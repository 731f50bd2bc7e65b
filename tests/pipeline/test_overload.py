"""How much is answered in time, and how much in vain, as more is asked than can be done: in virtual time."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest

from headrace.messages import Batch, InferRequest
from headrace.pipeline.admission import QueueLimits, admit, set_deadlines
from headrace.pipeline.batching import BatchLimits, decide
from headrace.pipeline.cost import CostModel
from headrace.pipeline.queue import RequestQueue
from headrace.testing.requests import FakeTemplate, RecordingSink

MS = 1_000_000
MAX_ROWS = 64
SECONDS = 2


@dataclass
class Server:
    """The pipeline around instances that take 4 ms and 0.36 ms for each row, more or less by `noise`."""

    instances: int = 1
    noise: float = 0.1
    limits: BatchLimits = field(default_factory=lambda: BatchLimits(MAX_ROWS))
    now: int = 0
    done: Counter = field(default_factory=Counter)
    running: list[tuple[int, int, Batch]] = field(default_factory=list)  # end, elapsed
    batches: list[Batch] = field(default_factory=list)

    def __post_init__(self):
        self.random = np.random.default_rng(0)
        self.queue, self.cost = RequestQueue(), CostModel(MAX_ROWS)
        self.wake_at = 0
        for rows in (1, 2, 4, 8, 16, 32, 64):
            self.cost.observe(rows, self.run_ns(rows))

    def run_ns(self, rows):
        return int((4 + 0.36 * rows) * MS * max(0.5, 1 + self.noise * self.random.standard_normal()))

    @property
    def capacity(self):
        """Rows a second of the largest batches."""
        rows = 1 if self.limits.policy == "single" else self.limits.max_rows
        return self.instances * rows / ((4 + 0.36 * rows) / 1000)

    def serve(self, arrivals):
        """arrivals: (ns, deadline after it in ns, rows), by time."""
        arrivals = list(reversed(arrivals))
        while arrivals or self.running or self.queue:
            moments = [end for end, _, _ in self.running] + [at for at, _, _ in arrivals[-1:]]
            self.now = min([*moments, max(self.wake_at, self.now)] if self.wake_at else moments)
            for run in [run for run in self.running if run[0] <= self.now]:
                self.running.remove(run)
                self.finish(*run)
            while arrivals and arrivals[-1][0] <= self.now:
                self.arrive(*arrivals.pop())
            self.dispatch()

    def arrive(self, at, deadline, rows):
        template = FakeTemplate(rows, key="all")
        request = InferRequest(template, (b"1",), 1, RecordingSink(), b"", at, at + deadline)
        set_deadlines([request], self.now, 0)
        request.admitted = self.now
        refusal = admit(
            request, self.now, self.queue, QueueLimits(), self.cost, instances=self.instances,
            max_rows=1 if self.limits.policy == "single" else MAX_ROWS,
            running=[batch for _, _, batch in self.running], draining=False,
        )  # fmt: skip
        if refusal is None:
            self.queue.push(request)
        else:
            self.done["refused"] += rows

    def dispatch(self):
        decision = decide(
            self.queue, self.now, self.limits, self.instances - len(self.running), self.cost,
            instances=self.instances,
        )  # fmt: skip
        self.done["dropped"] += sum(request.template.rows for request in (*decision.drop, *decision.give_up))
        for batch in decision.take:
            elapsed = self.run_ns(batch.rows)
            self.running.append((self.now + elapsed, elapsed, batch))
            self.batches.append(batch)
        self.wake_at = decision.wake_at

    def finish(self, end, elapsed, batch):
        self.cost.observe(batch.rows, elapsed)
        for request in batch.requests:
            self.done["in time" if end <= request.expires else "late"] += request.template.rows


def calls(rate, deadlines_ms, rows=(1,), seed=0):
    """Independent calls, each with one of the deadlines and one of the sizes."""
    draw = np.random.default_rng(seed)
    count = draw.poisson(rate * SECONDS / np.mean(rows))
    moments = np.sort(draw.uniform(0, SECONDS, count)) * 1e9
    deadlines = draw.choice(deadlines_ms, count) * MS
    return list(zip(moments.astype(int).tolist(), deadlines.tolist(), draw.choice(rows, count).tolist(), strict=True))


@pytest.mark.parametrize("load", [1.2, 1.5, 3.0])
@pytest.mark.parametrize(
    ("deadlines_ms", "rows", "instances"),
    [((100,), (1,), 1), ((100, 300), (1,), 1), ((60, 1000), (1,), 2), ((100, 300), (1, 2, 8), 1), ((80,), (1,), 4)],
)
def test_a_server_of_which_too_much_is_asked_does_all_it_can(load, deadlines_ms, rows, instances):
    """What it computes is in time, or nearly all of it, and it computes as much as ever it could."""
    server = Server(instances)
    server.serve(calls(load * server.capacity, deadlines_ms, rows))
    in_time = server.done["in time"] / SECONDS / server.capacity
    assert in_time > 0.9, f"{in_time:.0%} of what can be done; {server.done}"
    assert server.done["late"] < 0.06 * server.done["in time"], server.done


@pytest.mark.parametrize("deadlines_ms", [(50,), (20, 200)])
def test_requests_that_run_alone_are_not_run_in_vain_either(deadlines_ms):
    server = Server(limits=BatchLimits(MAX_ROWS, policy="single"))
    server.serve(calls(2 * server.capacity, deadlines_ms))
    assert server.done["in time"] / SECONDS > 0.9 * server.capacity, server.done


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_runs_that_cannot_be_foretold_cost_some_of_it(noise):
    server = Server(noise=noise)
    server.serve(calls(1.5 * server.capacity, (100, 300)))
    assert server.done["in time"] / SECONDS > 0.85 * server.capacity


@pytest.mark.parametrize("load", [0.3, 0.6, 0.85])
@pytest.mark.parametrize("deadlines_ms", [(100,), (100, 300)])
def test_as_long_as_all_can_be_served_all_are(load, deadlines_ms):
    server = Server()
    asked = calls(load * server.capacity, deadlines_ms)
    server.serve(asked)
    assert server.done["in time"] > 0.99 * len(asked), server.done


def test_a_burst_is_served_as_far_as_its_deadline_reaches():
    server = Server(noise=0.0)
    server.serve([(0, 100 * MS, 1)] * 1000)
    most = MAX_ROWS * (100 // (4 + 0.36 * MAX_ROWS))
    assert server.done["in time"] >= most
    assert server.done["late"] == 0


def test_one_in_a_hurry_has_a_batch_of_its_own_while_there_is_time_for_it():
    server = Server(noise=0.0)
    patient = [(0, 500 * MS, 1)] * 60
    server.serve([*patient[:1], (1, 500 * MS, 1), *[(2, 500 * MS, 1)] * 60, (3, 20 * MS, 1)])
    assert server.done == {"in time": 63, "dropped": 0}
    assert any(batch.rows < 40 and batch.reason == "deadline" for batch in server.batches)
