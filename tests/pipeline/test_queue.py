import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.messages import LONGEST_NS, QueuePolicy
from headrace.pipeline.queue import HORIZON_NS, PRIORITY_STEP, RequestQueue, is_over, order_of
from headrace.testing.requests import make_request


def queue_of(*requests):
    queue = RequestQueue()
    for request in requests:
        queue.push(request)
    return queue


def everything(queue):
    """All requests, group by group as they would be served, one by one."""
    served = []
    while group := queue.head_group():
        served += queue.pop_front(group, 1)
    return served


def assert_consistent(queue):
    waiting = list(queue)
    assert len(queue) == queue.requests == len(waiting)
    assert queue.rows == sum(r.template.rows for r in waiting)
    assert queue.nbytes == sum(r.nbytes for r in waiting)
    expiries = [r.expires for r in waiting if r.expires]
    assert (0 < queue.next_expiry <= min(expiries)) if expiries else not queue.requests or queue.next_expiry >= 0
    if not waiting:
        assert queue.next_expiry == 0


def test_earliest_deadline_is_first_and_equals_keep_their_order():
    late, early, same = make_request(expires=30), make_request(expires=10), make_request(expires=10)
    assert everything(queue_of(late, early, same)) == [early, same, late]


def test_a_priority_level_is_above_any_deadline():
    urgent = make_request(expires=10**18, priority=0)
    soon = make_request(expires=1, priority=1)
    assert everything(queue_of(soon, urgent)) == [urgent, soon]
    assert order_of(0, 1 << 70, 0) < order_of(1, 1, 0) == PRIORITY_STEP + 1


def test_a_request_without_a_deadline_is_not_starved():
    patient = make_request(now=0)
    before = make_request(now=0, expires=HORIZON_NS - 1)
    after = make_request(now=5, expires=HORIZON_NS + 5)
    assert everything(queue_of(patient, after, before)) == [before, patient, after]


def test_a_far_deadline_is_no_reason_to_be_served_later():
    """Neither than one who has none, nor than those who came after and are due earlier, but not soon."""
    far = make_request(now=0, expires=10 * HORIZON_NS)
    without = make_request(now=1)
    nearer = make_request(now=2, expires=5 * HORIZON_NS)
    soon = make_request(now=3, expires=HORIZON_NS // 2)
    assert everything(queue_of(far, without, nearer, soon)) == [soon, far, without, nearer]


def test_groups_are_served_by_their_first_request():
    a1, a2 = make_request(expires=10, key="a"), make_request(expires=40, key="a")
    b1, b2 = make_request(expires=20, key="b"), make_request(expires=30, key="b")
    queue = queue_of(b1, b2, a1, a2)
    assert queue.head_group() == [a1, a2]
    assert queue.head_group(["a"]) == [b1, b2]
    assert queue.head_group(["a", "b"]) == []
    assert repr(queue) == "<RequestQueue 4 requests, 4 rows, 2 groups>"
    assert everything(queue) == [a1, b1, b2, a2]
    assert queue.head_group() == []


def test_the_only_group_can_be_left_out():
    queue = queue_of(make_request(key="a"))
    assert queue.head_group(["a"]) == []
    assert queue.head_group(["b"]) == queue.head_group()


def test_counters():
    one, two = make_request(3, parts=[b"12", b"3"]), make_request(2, parts=[b"4"], key="b")
    queue = queue_of(one, two)
    assert (queue.requests, queue.rows, queue.nbytes) == (2, 5, 4)
    queue.pop_front(queue.head_group(), 1)
    assert (queue.requests, queue.rows, queue.nbytes) == (1, 2, 1)
    assert queue.remove(two)
    assert (queue.requests, queue.rows, queue.nbytes) == (0, 0, 0)


def test_removal_finds_the_very_request_among_equals():
    twins = [make_request(expires=10) for _ in range(5)]
    queue = queue_of(*twins)
    assert queue.remove(twins[3])
    assert list(queue) == [twins[0], twins[1], twins[2], twins[4]]
    assert not queue.remove(twins[3])
    assert not queue.remove(make_request(expires=10))
    assert not queue.remove(make_request(expires=10, key="never seen"))
    assert queue.requests == 4


def test_expiry_takes_exactly_what_is_over():
    over, now, later, never = (make_request(expires=e, key=k) for e, k in ((5, "a"), (10, "a"), (11, "b"), (0, "b")))
    queue = queue_of(later, never, now, over)
    assert queue.next_expiry == 5
    assert queue.pop_expired(4) == []
    assert queue.pop_expired(10) == [over, now]
    assert queue.next_expiry == 11
    assert queue.pop_expired(11) == [later]
    assert queue.next_expiry == 0
    assert queue.pop_expired(10**18) == []
    assert list(queue) == [never]


def test_next_expiry_may_be_early_but_never_late():
    first, second = make_request(expires=5), make_request(expires=9)
    queue = queue_of(first, second)
    queue.remove(first)
    assert queue.next_expiry <= 9
    assert queue.pop_expired(5) == []
    assert queue.next_expiry == 9
    queue.remove(second)
    assert queue.next_expiry == 0


def test_rows_ahead():
    queue = queue_of(*(make_request(2, expires=e) for e in (10, 20, 30)), make_request(2, expires=15, key="b"))
    # who is due at the same moment was there before
    assert [queue.rows_ahead(order) for order in (5, 10, 14, 15, 20, 25, 30, 99)] == [0, 2, 2, 4, 6, 6, 8, 8]
    assert RequestQueue().rows_ahead(10) == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_pop_front_takes_the_front(count):
    requests = [make_request(expires=e) for e in (1, 2, 3)]
    queue = queue_of(*requests)
    assert queue.pop_front(queue.head_group(), count) == requests[:count]
    assert list(queue) == requests[count:]
    assert_consistent(queue)


operations = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(1, 5), st.sampled_from("abc"), st.integers(0, 40), st.integers(0, 2)),
        st.tuples(
            st.just("extend"),
            st.integers(1, 8),
            st.sampled_from("abc"),
            st.lists(st.sampled_from([0, 1, 5, 9, 20, 40]), max_size=5),
        ),
        st.tuples(st.just("remove"), st.integers(0, 30)),
        st.tuples(st.just("expire"), st.integers(0, 45)),
        st.tuples(st.just("pop"), st.integers(1, 4)),
    ),
    max_size=60,
)


@given(operations)
def test_it_behaves_as_a_sorted_list(steps):
    queue = RequestQueue()
    model = []  # in order of arrival
    now = 0
    for step in steps:
        if step[0] == "push":
            _, rows, key, expires, priority = step
            request = make_request(rows, key=key, expires=expires and now + expires, now=now, priority=priority)
            queue.push(request)
            model.append(request)
        elif step[0] == "extend":
            _, rows, key, deadlines = step
            requests = [make_request(rows, key=key, expires=d and now + d, now=now) for d in deadlines]
            if requests:
                soonest = min((r.expires for r in requests if r.expires), default=0)
                queue.extend(requests, rows * len(requests), 0, soonest)
            model += requests
        elif step[0] == "remove" and model:
            request = model.pop(step[1] % len(model))
            assert queue.remove(request)
            assert not queue.remove(request)
        elif step[0] == "expire":
            now = max(now, step[1])
            gone = queue.pop_expired(now)
            assert set(gone) == {r for r in model if 0 < r.expires <= now}
            model = [r for r in model if r not in gone]
        elif step[0] == "pop" and model:
            first = min(model, key=lambda r: r.order)
            group = sorted((r for r in model if r.template.key == first.template.key), key=lambda r: r.order)
            head = queue.head_group()
            if head[0].template.key == first.template.key:
                assert head == group
            assert head[0].order == first.order
            taken = queue.pop_front(head, min(step[1], len(head)))
            model = [r for r in model if r not in taken]
        assert set(queue) == set(model)
        assert_consistent(queue)
    assert [r.order for r in everything(queue)] == sorted(r.order for r in model)


PATIENT = QueuePolicy(timeout_ns=10, delays=True)


def test_a_timeout_that_delays_puts_behind_all_others_of_the_level():
    late = [make_request(expires=10, policy=PATIENT), make_request(expires=11, policy=PATIENT)]
    later, patient = make_request(expires=10**12, policy=PATIENT), make_request(now=5)
    for_ever = make_request(expires=1 << 70)
    lower = make_request(expires=20, priority=1, policy=PATIENT)
    queue = queue_of(*late, later, patient, for_ever, lower)
    assert queue.pop_expired(15) == []
    assert queue.next_expiry == 20
    assert_consistent(queue)
    new = make_request(now=15, expires=10**15)
    queue.push(new)
    assert everything(queue) == [later, for_ever, patient, new, *late, lower]


def test_the_deadline_of_the_call_is_no_matter_of_patience():
    over = make_request(expires=10, rpc_deadline=12, policy=PATIENT)
    waits = make_request(expires=10, rpc_deadline=40, policy=PATIENT)
    queue = queue_of(over, waits)
    assert queue.pop_expired(10) == []
    assert (over.expires, waits.expires, queue.next_expiry) == (12, 40, 12)
    assert queue.pop_expired(12) == [over]
    assert queue.remove(waits)
    assert_consistent(queue)


def test_whom_a_timeout_ends():
    assert is_over(make_request(expires=10), 10)
    assert not is_over(make_request(expires=10, policy=PATIENT), 10)
    assert not is_over(make_request(expires=10, rpc_deadline=11, policy=PATIENT), 10)
    assert is_over(make_request(expires=10, rpc_deadline=10, policy=PATIENT), 10)


def test_how_many_of_a_priority_wait():
    queue = queue_of(
        *(make_request(priority=priority, key=key, expires=5) for priority in (0, 0, 2) for key in "ab"),
        make_request(priority=1, expires=1 << 70),
        make_request(priority=1),
    )
    assert [queue.waiting(priority) for priority in range(4)] == [4, 2, 2, 0]
    queue.pop_expired(5)
    assert [queue.waiting(priority) for priority in range(4)] == [0, 2, 0, 0]


def test_how_long_a_request_may_wait():
    assert [QueuePolicy().limit_ns(own) for own in (0, 7)] == [0, 7]
    assert [QueuePolicy(timeout_ns=5).limit_ns(own) for own in (0, 3, 7)] == [5, 3, 5]
    assert [QueuePolicy(timeout_ns=5, override=False).limit_ns(own) for own in (0, 3, 7)] == [5, 5, 5]
    assert QueuePolicy(override=False).limit_ns(3) == 0
    for policy, own in ((QueuePolicy(), 1 << 80), (QueuePolicy(timeout_ns=1 << 80), 0)):
        assert np.int64(policy.limit_ns(own)) == LONGEST_NS  # a moment has 64 bits, of which telemetry makes columns


def test_what_is_ahead_by_group():
    queue = queue_of(*(make_request(2, key=key, expires=expires) for key, expires in (("a", 5), ("a", 9), ("b", 7))))
    assert queue.groups == 2
    assert [(template.key, rows) for template, rows in queue.groups_ahead(7)] == [("a", 2), ("b", 2)]
    assert [(template.key, rows) for template, rows in queue.groups_ahead(4)] == [("a", 0), ("b", 0)]
    assert list(RequestQueue().groups_ahead(7)) == []
