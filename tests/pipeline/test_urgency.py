from dataclasses import dataclass

import pytest

from headrace.messages import QueuePolicy
from headrace.pipeline.batching import BatchLimits
from headrace.pipeline.urgency import choose
from headrace.testing.requests import make_request

MS = 1_000_000
NOW = 1000 * MS
PAYS = 64


@dataclass
class Cost:
    """4 ms and 0.36 ms for each row, on average and at the most."""

    usual: float = 1.0
    longest: float = 1.0

    def mean(self, rows):
        return int(self.usual * (4 + 0.36 * rows) * MS)

    def predict(self, rows):
        return int(self.longest * (4 + 0.36 * rows) * MS)


def due(ms, rows=1, **more):
    return make_request(rows, now=NOW, expires=NOW + int(ms * MS), **more)


def chosen(group, instances=1, cost=None, max_bytes=0, pays=PAYS):
    choice = choose(group, pays, NOW, BatchLimits(PAYS, max_bytes), cost or Cost(), instances)
    assert choice.rows == sum(request.template.rows for request in choice.members)
    return choice.hopeless, choice.members


def test_nobody_is_in_anybodys_way():
    group = [due(1000), due(1000), make_request(now=NOW)]
    assert chosen(group) == ([], [])


def test_the_earliest_has_its_way_while_those_behind_it_are_served():
    group = [due(6), *(due(100) for _ in range(63))]
    assert chosen(group) == ([], group[:5])


def test_those_who_cannot_wait_are_passed_over_where_others_would_be_late():
    group = [due(6), *(due(30 + at / 10) for at in range(100))]
    assert chosen(group) == ([], group[1:65])


@pytest.mark.parametrize(("instances", "served"), [(1, False), (2, True)])
def test_other_instances_serve_those_behind_too(instances, served):
    """Sixty-four rows take 27 ms: two batches of them, and 6 ms before, are done after 60 or 46."""
    group = [due(6), *(due(45) for _ in range(64)), *(due(50) for _ in range(64))]
    assert chosen(group, instances) == ([], group[:5] if served else group[1:65])


def test_a_batch_that_is_nearly_as_good_keeps_the_earliest():
    group = [due(25), *(due(40) for _ in range(200))]
    assert chosen(group) == ([], group[:58])


def test_where_no_full_batch_is_in_time_the_largest_that_is_runs():
    group = [due(4.5), *(due(10) for _ in range(200))]
    assert chosen(group) == ([], group[1:17])


def test_nobody_is_passed_over_for_a_smaller_batch():
    group = [due(6) for _ in range(10)]
    assert chosen(group) == ([], group[:5])


@pytest.mark.parametrize(("rows", "in_time"), [(20, True), (32, False)])
def test_a_request_of_many_rows_is_a_batch_if_it_is_in_time(rows, in_time):
    group = [due(6), *(due(12, rows=rows) for _ in range(6))]
    assert chosen(group, cost=Cost(usual=0.5)) == ([], group[1:2] if in_time else group[:1])


@pytest.mark.parametrize(
    ("cost", "lost"), [(Cost(), True), (Cost(usual=0.5), False), (Cost(longest=0.5), False), (Cost(usual=0.9), True)]
)
def test_whoever_may_still_make_it_is_not_hopeless(cost, lost):
    """By its usual time, or by the longest if that has become the shorter of the two."""
    group = [due(3), due(1000)]
    assert chosen(group, cost=cost)[0] == (group[:1] if lost else [])


def test_the_hopeless_leave_their_places_to_others():
    group = [due(1), due(2), *(due(100) for _ in range(3))]
    assert chosen(group) == (group[:2], [])


def test_where_nobody_has_hope_nobody_is_given_up():
    assert chosen([due(1), due(2)]) == ([], [])


def test_a_timeout_that_only_delays_gives_nobody_up():
    patient = QueuePolicy(timeout_ns=1, delays=True)
    late = due(1, policy=patient)
    over = due(1, policy=patient, rpc_deadline=NOW + MS)
    other = due(1000)
    assert chosen([late, over, other])[0] == [over]


@pytest.mark.parametrize(("level", "passed_over"), [(0, False), (1, True)])
def test_nobody_is_passed_over_in_favour_of_a_lower_level(level, passed_over):
    group = [due(6, priority=level), *(due(30 + at / 10, priority=1) for at in range(100))]
    assert chosen(group) == ([], group[1:65] if passed_over else group[:5])


def test_those_of_a_level_are_passed_over_in_favour_of_a_higher_one_too():
    group = [*(due(40, priority=0) for _ in range(30)), due(6, priority=1), *(due(40, priority=1) for _ in range(99))]
    assert chosen(group) == ([], [*group[:30], *group[31:65]])


def test_bytes_are_a_limit_too():
    group = [due(6, nbytes=10), *(due(28, nbytes=10) for _ in range(100))]
    assert chosen(group, max_bytes=35, pays=8) == ([], [])
    assert chosen([due(4.4, nbytes=10), *group[1:]], max_bytes=35, pays=8)[1] == group[1:4]
