import pytest

from headrace.messages import QueuePolicy, State
from headrace.pipeline.alone import Alone
from headrace.pipeline.cost import CostModel
from headrace.testing.requests import make_request


def batch_of(alone):
    batch = alone.pop(now=7)
    (request,) = batch.requests
    assert (batch.rows, batch.batched) == (request.template.rows, 7)
    return request, batch.losses, batch.reason


def test_in_order_and_each_with_its_losses():
    alone = Alone()
    a, b, c, d = (make_request(rows=rows) for rows in range(1, 5))
    alone.append([a, b])
    alone.put_first([c], 1)
    alone.put_first([d], 2)
    assert (len(alone), alone.rows, list(alone)) == (4, 10, [d, c, a, b])
    assert repr(alone) == "<Alone 4 requests, 10 rows>"
    alone.remove(a)
    assert alone.rows == 9
    assert [batch_of(alone) for _ in range(3)] == [(d, 2, "rerun"), (c, 1, "rerun"), (b, 0, "isolated")]
    assert {one.state for one in (b, c, d)} == {State.RUNNING}
    assert alone.rows == 0
    assert not alone
    alone.append([a, b])
    alone.clear()
    assert (list(alone), alone.rows) == ([], 0)
    with pytest.raises(KeyError):
        alone.remove(a)


def test_one_that_loses_again_is_first_again():
    alone = Alone()
    a, b = make_request(), make_request()
    alone.put_first([a, b], 1)
    assert batch_of(alone) == (a, 1, "rerun")
    alone.put_first([a], 2)
    assert batch_of(alone) == (a, 2, "rerun")
    assert batch_of(alone) == (b, 1, "rerun")


def test_how_long_they_will_take():
    alone, cost = Alone(), CostModel(max_rows=8)
    for rows in (1, 2, 4, 8):
        cost.observe(rows, rows * 1000)
    assert alone.run_ns(cost) == 0
    alone.append([make_request(rows=1), make_request(rows=3)])
    assert alone.run_ns(cost) == 2 * 2000


def test_what_has_expired_leaves():
    alone = Alone()
    never, soon, late = make_request(), make_request(expires=5), make_request(expires=9)
    alone.append([never, late, soon])
    assert alone.next_expiry == 5
    assert alone.pop_expired(4) == []
    assert alone.pop_expired(5) == [soon]
    assert alone.next_expiry == 9
    assert alone.pop_expired(100) == [late]
    assert (alone.next_expiry, list(alone)) == (0, [never])


def test_what_a_timeout_only_delays_leaves_at_the_deadline_of_its_rpc():
    alone = Alone()
    request = make_request(expires=5, rpc_deadline=20, policy=QueuePolicy(delays=True))
    alone.append([request])
    assert alone.pop_expired(5) == []
    assert alone.next_expiry == 20
    assert alone.pop_expired(20) == [request]
