from hypothesis import given
from hypothesis import strategies as st

from headrace.messages import CLOSE_REASONS, Fit
from headrace.pipeline.batching import BatchLimits, decide
from headrace.pipeline.bucket_cost import BucketCosts
from headrace.pipeline.cost import CostModel
from headrace.pipeline.queue import RequestQueue
from headrace.testing.requests import make_request

MS = 1_000_000
NOW = 1000 * MS


def linear(rows=8, per_row=MS):
    """A cost model that predicts exactly `per_row` for each row."""
    cost = CostModel(rows)
    for n in {1 << power for power in range(rows.bit_length())} | {rows}:
        cost.observe(n, n * per_row)
    return cost


def flat(rows=8, elapsed=MS):
    """One that predicts the same for every size: the largest batch pays most."""
    cost = CostModel(rows)
    for n in {1 << power for power in range(rows.bit_length())} | {rows}:
        cost.observe(n, elapsed)
    return cost


def queue_of(*requests):
    queue = RequestQueue()
    for request in requests:
        queue.push(request)
    return queue


def request(rows=1, **more):
    return make_request(rows, now=NOW, **more)


def run(*requests, slots=1, now=NOW, cost=None, draining=False, **limits):
    queue = queue_of(*requests)
    limits = BatchLimits(**{"max_rows": 8, "margin_ns": 0, **limits})
    return decide(queue, now, limits, slots, cost or CostModel(8), draining=draining), queue


def taken(decision):
    return [(batch.requests, batch.rows, batch.reason) for batch in decision.take]


def test_an_idle_instance_takes_all_there_is():
    one, two = request(2), request(3)
    decision, queue = run(one, two)
    assert taken(decision) == [([one, two], 5, "idle")]
    assert decision.take[0].batched == NOW
    assert decision.wake_at == 0
    assert not queue


def test_without_an_idle_instance_requests_gather():
    decision, queue = run(request(), request(), slots=0)
    assert (decision.take, decision.wake_at, len(queue)) == ([], 0, 2)


def test_an_empty_queue_needs_nothing():
    decision, _ = run()
    assert (decision.drop, decision.take, decision.wake_at) == ([], [], 0)


def test_rows_are_the_limit_and_each_instance_gets_a_batch():
    requests = [request(3) for _ in range(6)]
    decision, queue = run(*requests, slots=2)
    assert taken(decision) == [(requests[:2], 6, "full"), (requests[2:4], 6, "full")]
    assert list(queue) == requests[4:]


def test_exactly_full_is_full():
    requests = [request(4), request(4)]
    decision, _ = run(*requests)
    assert taken(decision) == [(requests, 8, "full")]


def test_bytes_are_a_limit_but_one_request_may_exceed_it():
    big, small, small2 = request(nbytes=90), request(nbytes=30), request(nbytes=30)
    decision, _ = run(big, small, small2, slots=2, max_bytes=64)
    assert taken(decision) == [([big], 1, "full"), ([small, small2], 2, "idle")]


def test_only_equal_keys_share_a_batch_and_the_earliest_goes_first():
    a, b, a2 = request(key="a", expires=NOW + 20 * MS), request(key="b", expires=NOW + 10 * MS), request(key="a")
    decision, queue = run(a, b, a2)
    assert taken(decision) == [([b], 1, "shape")]
    assert list(queue) == [a, a2]
    decision, _ = run(a, b, a2, slots=2)
    assert taken(decision) == [([b], 1, "shape"), ([a, a2], 2, "idle")]


def test_a_batch_takes_in_order_of_deadline():
    late, early, middle = (request(3, expires=NOW + ms * MS) for ms in (300, 100, 200))
    decision, queue = run(late, early, middle)
    assert taken(decision) == [([early, middle], 6, "full")]
    assert list(queue) == [late]


def test_urgent_levels_go_first():
    low, high = request(5, priority=1, expires=NOW + MS), request(5, priority=0)
    decision, _ = run(low, high)
    assert taken(decision) == [([high], 5, "full")]


def test_expired_requests_are_dropped_even_without_an_instance():
    over, alive = request(expires=NOW), request(expires=NOW + 1)
    decision, queue = run(over, alive, slots=0)
    assert decision.drop == [over]
    assert list(queue) == [alive]
    assert decision.wake_at == NOW + 1


def test_a_batch_stays_so_small_that_its_members_make_it():
    tight = request(2, expires=NOW + 4 * MS)
    others = [request(2, expires=NOW + 100 * MS) for _ in range(3)]
    decision, _ = run(tight, *others, cost=linear(), policy="delay", delay_ns=0)
    assert taken(decision) == [([tight, others[0]], 4, "deadline")]


def test_a_part_of_the_longest_run_is_kept_in_hand_of_a_deadline():
    tight = request(2, expires=NOW + 9 * MS // 2)
    others = [request(1, expires=NOW + 100 * MS) for _ in range(4)]
    for margin, rows in ((0, 4), (MS // 4, 4), (MS, 3), (50 * MS, 3)):
        decision, _ = run(tight, *others, cost=linear(), margin_ns=margin)
        assert decision.take[0].rows == rows


def test_the_earliest_deadline_in_the_batch_counts_wherever_it_stands():
    first = request(2, priority=0, expires=NOW + 100 * MS)
    tight = request(2, priority=1, expires=NOW + 4 * MS)
    third = request(2, priority=1, expires=NOW + 50 * MS)
    decision, _ = run(first, tight, third, cost=linear(), policy="delay")
    assert taken(decision) == [([first, tight], 4, "deadline")]


def test_a_request_that_is_late_anyway_takes_no_place_of_others():
    hopeless = request(4, expires=NOW + 2 * MS)
    others = [request(1, expires=NOW + 50 * MS) for _ in range(3)]
    decision, _ = run(hopeless, *others, cost=linear(), policy="delay")
    assert (decision.drop, decision.give_up) == ([], [hopeless])
    assert taken(decision) == [(others, 3, "delay")]


def test_where_all_are_late_anyway_they_are_given_a_chance():
    """Nobody is harmed by it, and a prediction that has become wrong is noticed in no other way."""
    hopeless = [request(4, expires=NOW + 2 * MS), request(4, expires=NOW + 3 * MS)]
    decision, _ = run(*hopeless, cost=linear(), policy="delay")
    assert decision.drop == decision.give_up == []
    assert taken(decision) == [(hopeless, 8, "full")]


def test_a_larger_batch_that_makes_no_row_cheaper_is_not_waited_for():
    cost = CostModel(8)
    for rows, elapsed in ((1, 8 * MS), (2, 8 * MS), (4, 8 * MS), (8, 80 * MS)):
        cost.observe(rows, elapsed)
    cost.observe(1, 8 * MS)
    requests = [request() for _ in range(8)]
    decision, _ = run(*requests, slots=2, cost=cost)
    # of four that wait, four is what pays: nothing is held back
    assert taken(decision) == [(requests[:4], 4, "cost"), (requests[4:], 4, "idle")]


def test_what_pays_and_what_is_late_is_a_matter_of_the_bucket():
    cost = BucketCosts(8)
    quick, slow = ({"key": size, "fit": Fit((size,), (size,), ((size,),), 1, 0)} for size in (2, 64))
    for rows, elapsed in ((1, 2 * MS), (2, 2 * MS), (4, 2 * MS), (8, 2 * MS)):
        cost.observe(rows, elapsed, quick["fit"])
    for rows, elapsed in ((1, 9 * MS), (2, 18 * MS), (4, 36 * MS), (8, 160 * MS)):
        cost.observe(rows, elapsed, slow["fit"])
    requests = [request(**quick) for _ in range(8)]
    assert taken(run(*requests, cost=cost)[0]) == [(requests, 8, "full")]
    requests = [request(**slow) for _ in range(8)]
    ((members, rows, reason),) = taken(run(*requests, cost=cost)[0])
    assert (len(members), rows, reason) == (4, 4, "cost")
    for bucket, members in ((quick, 8), (slow, 1)):
        requests = [request(**bucket, expires=NOW + 15 * MS) for _ in range(8)]
        assert len(taken(run(*requests, cost=cost)[0])[0][0]) == members


class TestDeadlinePolicy:
    def test_it_waits_as_long_as_all_make_it(self):
        one, two = request(expires=NOW + 100 * MS), request(expires=NOW + 80 * MS)
        decision, queue = run(one, two, policy="deadline", cost=flat(elapsed=2 * MS), margin_ns=MS)
        assert decision.take == []
        assert decision.wake_at == NOW + 80 * MS - 2 * MS - MS
        assert len(queue) == 2
        decision, _ = run(one, two, policy="deadline", cost=flat(elapsed=2 * MS), margin_ns=MS, now=NOW + 77 * MS)
        assert taken(decision) == [([two, one], 2, "deadline")]

    def test_a_member_without_a_deadline_does_not_wait(self):
        one, two = request(expires=NOW + 100 * MS), request()
        decision, _ = run(one, two, policy="deadline")
        assert len(decision.take[0].requests) == 2

    def test_a_full_batch_does_not_wait(self):
        decision, _ = run(request(8, expires=NOW + 100 * MS), policy="deadline")
        assert decision.take[0].reason == "full"

    def test_draining_does_not_wait(self):
        decision, _ = run(request(expires=NOW + 100 * MS), policy="deadline", draining=True)
        assert decision.take[0].reason == "drain"

    def test_the_run_itself_is_counted(self):
        held = request(expires=NOW + 100 * MS)
        decision, _ = run(held, policy="deadline", cost=flat(elapsed=10 * MS), margin_ns=0)
        assert decision.wake_at == NOW + 90 * MS

    def test_a_long_deadline_may_have_been_rounded_up(self):
        decision, _ = run(request(expires=NOW + 2000 * MS), policy="deadline", margin_ns=0)
        assert decision.wake_at == NOW + 1980 * MS


class TestDelayPolicy:
    def test_it_waits_for_the_first_requests_delay(self):
        first, second = request(), make_request(now=NOW + 3 * MS)
        first.admitted, second.admitted = NOW, NOW + 3 * MS
        decision, _ = run(first, second, policy="delay", delay_ns=5 * MS, now=NOW + 3 * MS)
        assert (decision.take, decision.wake_at) == ([], NOW + 5 * MS)
        decision, _ = run(first, second, policy="delay", delay_ns=5 * MS, now=NOW + 5 * MS)
        assert taken(decision) == [([first, second], 2, "delay")]

    def test_a_full_batch_does_not_wait(self):
        decision, _ = run(request(8), policy="delay", delay_ns=5 * MS)
        assert taken(decision)[0][1:] == (8, "full")

    def test_it_does_not_wait_beyond_what_a_deadline_allows(self):
        decision, _ = run(
            request(expires=NOW + 4 * MS), policy="delay", delay_ns=50 * MS, cost=flat(elapsed=2 * MS), margin_ns=MS
        )
        assert decision.wake_at == NOW + MS

    def test_draining_does_not_wait(self):
        decision, _ = run(request(), policy="delay", delay_ns=50 * MS, draining=True)
        assert taken(decision)[0][1:] == (1, "drain")

    def test_a_group_that_waits_does_not_hold_up_the_others(self):
        """The first group's delay runs on, while the second's is over and the third is full."""
        soon = make_request(now=NOW + 4 * MS, expires=NOW + 500 * MS, key="a")
        over = make_request(now=NOW, key="b")
        full = make_request(8, now=NOW + 4 * MS, key="c")
        decision, queue = run(soon, over, full, slots=3, policy="delay", delay_ns=5 * MS, now=NOW + 5 * MS)
        assert {batch.requests[0].template.key: batch.reason for batch in decision.take} == {"b": "shape", "c": "full"}
        assert list(queue) == [soon]
        assert decision.wake_at == NOW + 9 * MS


class TestPreferredSizes:
    def test_the_largest_that_the_first_requests_make_runs(self):
        requests = [request() for _ in range(7)]
        decision, queue = run(*requests, preferred=(2, 4))
        assert taken(decision) == [(requests[:4], 4, "preferred")]
        assert list(queue) == requests[4:]
        decision, _ = run(*requests, slots=3, preferred=(2, 4))
        assert [batch.rows for batch in decision.take] == [4, 2, 1]
        assert [batch.reason for batch in decision.take] == ["preferred", "preferred", "idle"]

    def test_without_one_all_there_is_runs(self):
        decision, _ = run(request(3), request(2), preferred=(4,))
        assert taken(decision)[0][1:] == (5, "idle")

    def test_a_full_batch_is_called_full(self):
        decision, _ = run(request(4), request(4), request(), preferred=(4, 8))
        assert taken(decision)[0][1:] == (8, "full")

    def test_what_is_configured_counts_not_what_was_learned(self):
        decision, _ = run(*(request() for _ in range(8)), preferred=(8,), cost=linear())
        assert taken(decision)[0][1:] == (8, "full")

    def test_with_a_delay_a_preferred_size_runs_at_once_and_others_wait(self):
        more = {"policy": "delay", "delay_ns": 5 * MS, "preferred": (4,)}
        decision, _ = run(*(request() for _ in range(5)), **more)
        assert taken(decision)[0][1:] == (4, "preferred")
        decision, _ = run(*(request() for _ in range(3)), **more)
        assert (decision.take, decision.wake_at) == ([], NOW + 5 * MS)

    def test_who_has_waited_the_delay_gets_as_large_a_batch_as_there_is(self):
        more = {"policy": "delay", "delay_ns": 5 * MS, "preferred": (4,), "now": NOW + 5 * MS}
        decision, _ = run(*(request() for _ in range(6)), **more)
        assert taken(decision)[0][1:] == (6, "delay")
        decision, _ = run(*(request() for _ in range(9)), **more)
        assert taken(decision)[0][1:] == (8, "full")

    def test_draining_prefers_nothing(self):
        decision, _ = run(*(request() for _ in range(5)), preferred=(4,), draining=True)
        assert taken(decision)[0][1:] == (5, "drain")


def test_each_request_runs_alone_under_the_policy_that_says_so():
    requests = [request(2), request(1), request(8)]
    decision, queue = run(*requests, slots=2, policy="single")
    assert taken(decision) == [([requests[0]], 2, "single"), ([requests[1]], 1, "single")]
    assert list(queue) == requests[2:]


requests = st.builds(
    lambda rows, deadline, key, priority, nbytes, age: make_request(
        rows, now=NOW - age, expires=deadline and NOW + deadline, key=key, priority=priority, nbytes=nbytes
    ),
    st.integers(1, 8),
    st.one_of(st.just(0), st.integers(-5 * MS, 40 * MS)),
    st.sampled_from("ab"),
    st.integers(0, 1),
    st.integers(0, 50),
    st.integers(0, 10 * MS),
)


@given(
    st.lists(requests, max_size=30),
    st.integers(0, 4),
    st.sampled_from(["slot", "deadline", "delay", "single"]),
    st.sampled_from([(), (), (2, 5), (8,)]),
    st.sampled_from([0, 60]),
    st.sampled_from([CostModel(8), linear(), flat()]),
    st.booleans(),
)
def test_whatever_waits(waiting, slots, policy, preferred, max_bytes, cost, draining):
    decision, queue = run(
        *waiting,
        slots=slots,
        policy=policy,
        preferred=preferred,
        delay_ns=5 * MS,
        max_bytes=max_bytes,
        cost=cost,
        draining=draining,
    )
    members = [request for batch in decision.take for request in batch.requests]
    # everyone is in exactly one place
    assert sorted(map(id, [*decision.drop, *decision.give_up, *members, *queue])) == sorted(map(id, waiting))
    assert all(0 < request.expires <= NOW for request in decision.drop)
    for request in decision.give_up:
        rows = request.template.rows
        assert NOW < request.expires < NOW + min(cost.mean(rows), cost.predict(rows))
    assert not any(0 < request.expires <= NOW for request in [*members, *queue])
    assert len(decision.take) <= slots
    for batch in decision.take:
        assert batch.requests
        assert batch.rows == sum(request.template.rows for request in batch.requests) <= 8
        assert batch.reason in CLOSE_REASONS
        assert batch.reason != "preferred" or batch.rows in preferred
        assert policy != "single" or len(batch.requests) == 1
        assert len({request.template.key for request in batch.requests}) == 1
        assert [request.order for request in batch.requests] == sorted(request.order for request in batch.requests)
        assert not max_bytes or len(batch.requests) == 1 or sum(r.nbytes for r in batch.requests) <= max_bytes
        key = batch.requests[0].template.key
        passed_over = [r for r in queue if r.template.key == key and r.order < batch.requests[-1].order]
        assert all(0 < r.expires < NOW + cost.predict(batch.rows) for r in passed_over), "who could have come along"
        late = [r for r in batch.requests if r.expires and NOW + cost.predict(batch.rows) > r.expires]
        assert all(NOW + cost.predict(r.template.rows) > r.expires for r in late), "late because of the batch"
    if len(decision.take) < slots and queue:
        assert policy not in ("slot", "single"), "an idle instance and work"
        assert not draining
        assert decision.wake_at > NOW
    if any(request.expires for request in queue):
        assert 0 < decision.wake_at <= min(request.expires for request in queue if request.expires)
