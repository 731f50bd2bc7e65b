import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import DeadlineExceeded, DeadlineUnreachable, InvalidRequest, QueueFull, QueueTimeout, ShuttingDown
from headrace.messages import Batch, Fit, QueuePolicy
from headrace.pipeline.admission import QueueLimits, admit, admit_all, expired, reply_ns, set_deadlines, wait_ns
from headrace.pipeline.bucket_cost import BucketCosts
from headrace.pipeline.cost import CostModel
from headrace.pipeline.queue import HORIZON_NS, RequestQueue, order_of
from headrace.testing.requests import make_request

MS = 1_000_000
NOW = 1000 * MS


def flat(elapsed=10 * MS, rows=8):
    cost = CostModel(rows)
    for n in (1, rows):
        cost.observe(n, elapsed)
    return cost


def running(*since):
    """Full batches that were formed so many ns ago."""
    return [Batch([], 8, "full", batched=NOW - ago) for ago in since]


def ask(request, *waiting, limits=None, cost=None, instances=1, busy=(), draining=False, alone_ns=0):
    queue = RequestQueue()
    for other in waiting:
        queue.push(other)
    return admit(
        request,
        NOW,
        queue,
        limits or QueueLimits(),
        cost or CostModel(8),
        max_rows=8,
        instances=instances,
        running=busy,
        draining=draining,
        alone_ns=alone_ns,
    )


def request(rows=1, **more):
    return make_request(rows, now=NOW, **more)


@given(
    st.lists(st.sampled_from([0, 1, MS, HORIZON_NS - 1, HORIZON_NS, HORIZON_NS + 1, 1 << 70]), min_size=1),
    st.sampled_from([0, 5 * MS, 2 * HORIZON_NS]),
    st.sampled_from([0, 7 * MS]),
    st.integers(0, 3),
)
def test_deadlines_are_the_earliest_of_what_there_is_and_order_the_queue(left, timeout, slo, priority):
    requests = [
        request(rpc_deadline=NOW + ns if ns else 0, timeout_ns=timeout, priority=priority, key="all") for ns in left
    ]
    for one in requests[1:]:
        one.template = requests[0].template
    soonest = set_deadlines(requests, NOW, slo)
    for one in requests:
        given = [moment for moment in (one.rpc_deadline, timeout and NOW + timeout) if moment]
        expires = min(given) if given else slo and NOW + slo
        assert (one.expires, one.decoded) == (expires, NOW)
        assert one.order == order_of(priority, expires, NOW)
    assert soonest == min((one.expires for one in requests if one.expires), default=0)


def test_whoever_has_no_deadline_may_wait():
    assert ask(request(), *(request(8) for _ in range(100)), cost=flat(), busy=running(0)) is None


def test_what_runs_alone_before_all_counts():
    due = request(expires=NOW + 30 * MS)
    alone = ask(due, cost=flat()), ask(due, cost=flat(), alone_ns=10 * MS), ask(due, cost=flat(), alone_ns=100 * MS)
    assert [type(error) for error in alone] == [type(None), type(None), DeadlineUnreachable]
    assert ask(due, cost=flat(), alone_ns=100 * MS, instances=10) is None, "it is shared among the instances"


def test_a_server_that_drains_takes_nothing():
    error = ask(request(), draining=True)
    assert type(error) is ShuttingDown
    assert str(error) == "Server is shutting down and has stopped accepting new requests"


@pytest.mark.parametrize(
    ("limits", "fits"),
    [
        (QueueLimits(max_requests=2), False),
        (QueueLimits(max_requests=3), True),
        (QueueLimits(max_rows=6), False),
        (QueueLimits(max_rows=7), True),
        (QueueLimits(max_bytes=29), False),
        (QueueLimits(max_bytes=30), True),
    ],
)
def test_the_queue_holds_so_many_requests_rows_and_bytes(limits, fits):
    waiting = [request(2, nbytes=10), request(2, nbytes=10)]
    error = ask(request(3, nbytes=10), *waiting, limits=limits)
    assert (error is None) is fits
    if not fits:
        assert type(error) is QueueFull
        assert str(error) == (
            "Exceeds maximum queue size: 2 requests, 4 rows and 20 bytes wait; at most "
            f"{limits.max_requests} requests, {limits.max_rows} rows and {limits.max_bytes} bytes may"
        )


def test_a_full_queue_says_when_to_come_again():
    waiting = [request(8) for _ in range(4)]
    error = ask(request(), *waiting, limits=QueueLimits(max_requests=4), cost=flat(), busy=running(4 * MS))
    assert error.retry_after_ms == 46  # 6 ms of the running batch, and four more
    error = ask(request(), *waiting, limits=QueueLimits(max_requests=4))
    assert error.retry_after_ms == 1  # nothing is known: not at once


@pytest.mark.parametrize(("rows", "nbytes"), [(11, 1), (1, 101)])
def test_what_can_never_be_admitted_is_the_fault_of_the_request(rows, nbytes):
    error = ask(request(rows, nbytes=nbytes), limits=QueueLimits(max_rows=10, max_bytes=100))
    assert type(error) is InvalidRequest
    assert str(error) == (
        f"the request has {rows} rows and {nbytes} bytes, more than may ever wait for this model: 10 rows and 100 bytes"
    )


def test_a_deadline_that_is_over():
    error = ask(request(expires=NOW, rpc_deadline=NOW))
    assert type(error) is DeadlineExceeded
    assert str(error) == "Deadline exceeded while the request waited for execution"
    error = ask(request(expires=NOW - 1, rpc_deadline=NOW + MS))
    assert type(error) is QueueTimeout
    assert str(error) == "Request timeout expired"


def test_the_rpcs_deadline_decides_what_an_expiry_is_called():
    assert type(expired(request(expires=5, rpc_deadline=5), 5)) is DeadlineExceeded
    assert type(expired(request(expires=5, rpc_deadline=6), 5)) is QueueTimeout
    assert type(expired(request(expires=5), 5)) is QueueTimeout


def test_a_deadline_out_of_reach_is_refused_at_once():
    error = ask(request(expires=NOW + 9 * MS), cost=flat())
    assert type(error) is DeadlineUnreachable
    assert str(error) == ("The deadline is 9.000 ms away and the reply is expected to take 10.000 ms (0 rows wait)")
    assert error.retry_after_ms == -1
    assert ask(request(expires=NOW + 10 * MS), cost=flat()) is None


def test_while_nothing_is_known_everybody_gets_a_chance():
    assert ask(request(expires=NOW + 1), *(request(8) for _ in range(9)), busy=running(0)) is None


@pytest.mark.parametrize(
    ("rows_ahead", "ago", "instances", "need"),
    [
        (0, [], 1, 10),  # idle: its own run
        (7, [], 1, 10),  # in one batch with what waits
        (8, [], 1, 20),  # idle, but a whole batch is ahead: the next dispatch takes that
        (17, [], 1, 30),
        (8, [], 2, 10),  # the other instance takes it
        (16, [], 2, 20),
        (0, [4], 1, 16),  # what is left of the running batch
        (0, [40], 1, 10),  # it is overdue: any moment
        (8, [4], 1, 26),
        (0, [4], 2, 10),
        (8, [4], 2, 16),
        (16, [4], 2, 20),
        (0, [2, 7], 2, 13),
        (8, [2, 7], 2, 18),
        (16, [2, 7], 2, 23),
    ],
)
def test_the_expected_wait(rows_ahead, ago, instances, need):
    busy = running(*(ms * MS for ms in ago))
    assert reply_ns(1, rows_ahead, NOW, 8, instances, busy, flat()) == need * MS


def test_a_small_batch_under_way_is_not_taken_for_a_full_one():
    cost = CostModel(8)
    cost.observe(1, MS)
    cost.observe(8, 80 * MS)
    busy = [Batch([], 1, "idle", batched=NOW)]
    assert wait_ns(0, NOW, 8, 1, busy, cost) == MS
    assert ask(request(expires=NOW + 3 * MS), cost=cost, busy=busy) is None


def test_a_split_request_needs_all_its_batches():
    assert reply_ns(24, 0, NOW, 8, 1, [], flat()) == 30 * MS
    assert reply_ns(24, 0, NOW, 8, 3, [], flat()) == 10 * MS
    assert reply_ns(17, 7, NOW, 8, 1, [], flat()) == 30 * MS


def test_only_what_is_served_before_counts_as_ahead():
    later = [request(8, expires=NOW + 500 * MS) for _ in range(5)]
    assert ask(request(expires=NOW + 15 * MS), *later, cost=flat()) is None
    sooner = [request(8, expires=NOW + 14 * MS) for _ in range(5)]
    error = ask(request(expires=NOW + 15 * MS), *sooner, cost=flat())
    assert str(error) == ("The deadline is 15.000 ms away and the reply is expected to take 60.000 ms (40 rows wait)")


@given(st.integers(1, 100), st.integers(0, 200), st.lists(st.integers(0, 20), max_size=3), st.integers(1, 3))
def test_more_ahead_is_never_sooner(rows, rows_ahead, ago, instances):
    busy = running(*(ms * MS for ms in ago[:instances]))
    cost = flat()
    need = reply_ns(rows, rows_ahead, NOW, 8, instances, busy, cost)
    assert need >= cost.predict(min(rows, 8))
    assert reply_ns(rows + 1, rows_ahead, NOW, 8, instances, busy, cost) >= need
    assert reply_ns(rows, rows_ahead + 1, NOW, 8, instances, busy, cost) >= need


waiting = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 300)), max_size=12)


@given(
    waiting,
    st.lists(st.integers(-2, 400), min_size=1, max_size=6),
    st.integers(1, 8),
    st.lists(st.integers(0, 20), max_size=3),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([QueueLimits(), QueueLimits(max_requests=8), QueueLimits(max_rows=30), QueueLimits(max_bytes=60)]),
    st.lists(st.tuples(st.integers(1, 8), st.integers(1, 30 * MS)), max_size=8),
)
def test_whom_the_quick_look_admits_would_be_admitted_one_by_one(
    before, deadlines, rows, ago, instances, draining, limits, learned
):
    """Whatever the cost model has learned, also nonsense; and without any deadline both ways say the same."""
    cost = CostModel(8)
    for size, elapsed in learned:
        cost.observe(size, elapsed)
    busy = running(*(ms * MS for ms in ago[:instances]))
    queue = RequestQueue()
    for size, deadline in before:
        queue.push(request(size, expires=deadline and NOW + deadline * MS, nbytes=5))
    requests = [request(rows, expires=deadline and NOW + deadline * MS, nbytes=5) for deadline in deadlines]
    soonest = min((r.expires for r in requests if r.expires), default=0)
    quick = admit_all(
        len(requests), rows * len(requests), 5 * len(requests), soonest, NOW, queue, limits, cost,
        max_rows=8, wary=draining,
    )  # fmt: skip
    refused = []
    for one in requests:
        error = admit(one, NOW, queue, limits, cost, max_rows=8, instances=instances, running=busy, draining=draining)
        if error is None:
            queue.push(one)
        else:
            refused.append(error)
    if quick or not any(deadlines):
        assert quick is not bool(refused), refused


def test_the_quick_look_is_not_too_cautious():
    queue = RequestQueue()
    queue.push(request(8))
    for deadline, admitted in ((30, False), (40, True)):
        expires = NOW + deadline * MS
        quick = admit_all(8, 8, 0, expires, NOW, queue, QueueLimits(), flat(), max_rows=8, wary=False)
        assert quick is admitted


def test_a_level_may_be_full_while_others_are_not():
    two = QueuePolicy(max_requests=2)
    waiting = [request(priority=0, policy=two), request(8, priority=1), request(priority=0, policy=two, key="other")]
    error = ask(request(priority=0, policy=two), *waiting)
    assert type(error) is QueueFull
    assert str(error) == "Exceeds maximum queue size: 2 requests of priority level 1 wait, no more may"
    assert error.retry_after_ms == 1
    assert ask(request(priority=0, policy=two), *waiting, cost=flat(), busy=running(0)).retry_after_ms == 10
    assert ask(request(priority=1, policy=two), *waiting) is None
    assert ask(request(priority=0), *waiting) is None


def test_levels_are_looked_at_one_by_one():
    queue = RequestQueue()
    for by_level in (False, True):
        limits = QueueLimits(by_level=by_level)
        assert admit_all(1, 1, 0, 0, NOW, queue, limits, flat(), max_rows=8, wary=False) is not by_level


def test_a_timeout_that_only_delays_refuses_nobody():
    patient = QueuePolicy(delays=True)
    assert ask(request(expires=NOW + MS, policy=patient), cost=flat()) is None
    assert ask(request(expires=NOW, policy=patient), cost=flat()) is None
    assert type(ask(request(expires=NOW + MS), cost=flat())) is DeadlineUnreachable
    both = request(expires=NOW + MS, rpc_deadline=NOW + 2 * MS, policy=patient)
    assert type(ask(both, cost=flat())) is DeadlineUnreachable


# --- buckets: rows of different cost ---


def of_bucket(size, rows=1, **more):
    return request(rows, key=size, fit=Fit((size,), (size,), ((size,),), 1, 0), **more)


def bucket_costs(**elapsed):
    """ns of a row, by the size of the bucket."""
    cost = BucketCosts(8)
    for size, each in elapsed.items():
        for rows in (1, 8):
            cost.observe(rows, rows * each, of_bucket(int(size[1:])).template.fit)
    cost.spread = 1.0
    return cost


@pytest.mark.parametrize(
    ("size", "waiting", "busy", "need"),
    [
        (2, [], 0, 1),
        (4, [], 0, 10),
        (2, [(2, 3)], 1, 10 + 4),  # what runs, of bucket 4; then with the three
        (2, [(4, 3)], 1, 10 + 30 + 1),  # the three run by themselves
        (2, [(4, 19), (2, 1)], 1, 10 + (80 + 80 + 30) + 2),
        (4, [(2, 8), (4, 1)], 1, 10 + 8 + 20),
    ],
)
def test_what_is_ahead_counts_by_the_cost_of_its_bucket(size, waiting, busy, need):
    cost = bucket_costs(b2=MS, b4=10 * MS)
    ahead = [of_bucket(other, expires=NOW + MS) for other, rows in waiting for _ in range(rows)]
    runs = [Batch([of_bucket(4)], 1, "full", batched=NOW)] * busy
    late, made = (of_bucket(size, expires=NOW + need * MS - less) for less in (1, 0))
    assert isinstance(ask(late, *ahead, cost=cost, busy=runs), DeadlineUnreachable)
    assert ask(made, *ahead, cost=cost, busy=runs) is None


def test_instances_share_what_is_ahead_in_other_buckets():
    cost = bucket_costs(b2=MS, b4=10 * MS)
    ahead = [of_bucket(4, 4, expires=NOW + MS)]
    request = of_bucket(2, expires=NOW + 21 * MS)
    assert isinstance(ask(request, *ahead, cost=cost), DeadlineUnreachable)
    assert ask(request, *ahead, cost=cost, instances=2) is None


@given(st.lists(st.tuples(st.sampled_from([2, 4, 8]), st.integers(1, 8)), min_size=1, max_size=12))
def test_the_quick_look_counts_a_batch_for_each_bucket(waiting):
    """What it lets in is never late by what was learned, were every bucket to run its batches one after another."""
    cost = bucket_costs(b2=MS, b4=10 * MS, b8=20 * MS)
    queue = RequestQueue()
    for size, rows in waiting:
        queue.push(of_bucket(size, rows, expires=NOW + 10**12))
    totals = {size: sum(rows for other, rows in waiting if other == size) for size, _ in waiting}
    batches = sum(-(-rows // 8) for rows in totals.values()) + 1  # and one that runs
    soonest = NOW + batches * cost.slowest - 1
    assert not admit_all(1, 0, 0, soonest, NOW, queue, QueueLimits(), cost, max_rows=8, wary=False)
