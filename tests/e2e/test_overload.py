"""Callers that give up, deadlines, full queues, and callers whose neighbours in a batch are at fault."""

import asyncio
import queue

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from e2e.calls import SECONDS, Held, failure, floats, occupy, output, request, statistics, tensor
from e2e.gated import HELD, let_go
from e2e.server_process import eventually
from grpc import StatusCode


@pytest.fixture
def server(slow_server):
    """In this file, all fixtures talk to the server of the slow models."""
    return slow_server


def refused(server, model, reason):
    """How many requests have ended for this reason."""
    return server.metric("headrace_refused_total", model=model, reason=reason)


def test_what_waits_runs_together(server, stub):
    """Seventeen rows in batches of at most four, of which the first may be alone."""
    before = statistics(stub, "batched")
    busy = Held(server, "batched", stub.ModelInfer.future(request("batched", x=floats(HELD)), timeout=SECONDS))
    waiting = [stub.ModelInfer.future(request("batched", x=floats(n / 100)), timeout=SECONDS) for n in range(16)]
    eventually(lambda: server.waiting("batched") >= 13)
    assert server.metric("headrace_queue_wait_seconds", model="batched") > 0
    busy.let_go()
    for number, call in enumerate(waiting):
        np.testing.assert_array_equal(output(call.result()), floats(number / 100))
    assert output(busy.call.result()).tolist() == [[HELD]]
    after = statistics(stub, "batched")
    assert after.inference_count - before.inference_count == 17
    assert after.execution_count - before.execution_count <= 6
    assert max(batch.batch_size for batch in after.batch_stats) == 4


# --- one caller's mistake ---------------------------------------------------------------------------------------------


def test_a_bad_value_fails_its_caller_alone(server, stub):
    """Eight requests fill a batch. What is wrong with one of them shows only when the model runs."""
    wrong = 5
    calls = [
        stub.ModelInfer.future(request("pick", index=np.array([[99 if n == wrong else n]])), timeout=SECONDS)
        for n in range(8)
    ]
    for number, call in enumerate(calls):
        if number != wrong:
            assert output(call.result()).tolist() == [[10 * number]]
    failed = failure(calls[wrong].result)
    assert (failed.code, failed.reason) == (StatusCode.INTERNAL, "backend_failed")
    text, _, correlation_id = failed.text.rpartition(" ")
    assert text == "model 'pick' could not run this request, correlation id"
    assert "failed a batch of 8 requests, which are run one by one" in server.log
    assert f"correlation id {correlation_id}" in server.log
    assert "out of data bounds" in server.log  # the runtime's own words are for the operator alone
    stats = statistics(stub, "pick")
    assert (stats.inference_stats.success.count, stats.inference_stats.fail.count) == (7, 1)


# --- callers that give up ---------------------------------------------------------------------------------------------


def test_client_timeout(client, server):
    with pytest.raises(triton.InferenceServerException) as caught:
        client.infer("late", [tensor("x", floats(HELD))], client_timeout=0.2)
    let_go(server.repository, "late")
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    got = client.infer("late", [tensor("x", floats(3))], client_timeout=SECONDS)
    assert got.as_numpy("y").tolist() == [[3]]


def test_cancelled_while_it_waits(client, server, stub):
    """The request leaves the queue at once and never runs."""
    before = statistics(stub, "cancel").execution_count
    busy = occupy(server, stub, "cancel")
    gone = refused(server, "cancel", "cancelled")
    answers = queue.Queue()
    waiting = client.async_infer("cancel", [tensor("x", floats(1))], lambda result, error: answers.put(error))
    eventually(lambda: server.waiting("cancel") == 1)
    waiting.cancel()
    assert answers.get(timeout=SECONDS).status() == "StatusCode.CANCELLED"
    eventually(lambda: server.waiting("cancel") == 0)
    assert not busy.done()  # so it was taken out, not run
    assert refused(server, "cancel", "cancelled") == gone + 1
    assert output(busy.result()).tolist() == [[HELD]]
    assert statistics(stub, "cancel").execution_count == before + 1


def test_cancelled_while_it_runs(server, stub):
    """The result is dropped, what it cost is counted, and the next request is served."""
    wasted = server.metric("headrace_wasted_rows_total", model="cancel")
    busy = occupy(server, stub, "cancel")
    busy.call.cancel()
    follower = stub.ModelInfer.future(request("cancel", x=floats(2)), timeout=SECONDS)
    eventually(lambda: server.waiting("cancel") == 1)
    busy.let_go()
    assert output(follower.result()).tolist() == [[2]]
    assert server.metric("headrace_wasted_rows_total", model="cancel") == wasted + 1


def test_asyncio_cancellation(server, stub):
    async def main():
        async with triton_aio.InferenceServerClient(server.address) as client:
            task = asyncio.create_task(client.infer("cancel", [tensor("x", floats(1))]))
            await asyncio.to_thread(eventually, lambda: server.waiting("cancel") == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(eventually, lambda: server.waiting("cancel") == 0)

    busy = occupy(server, stub, "cancel")
    asyncio.run(asyncio.wait_for(main(), SECONDS))
    assert not busy.done()
    assert output(busy.result()).tolist() == [[HELD]]


def test_a_split_request_that_is_cancelled(server, stub):
    """All of its pieces leave the queue, and it counts as one request."""
    busy = occupy(server, stub, "cancel")
    gone = refused(server, "cancel", "cancelled")
    split = stub.ModelInfer.future(request("cancel", x=floats(*range(8))), timeout=SECONDS)
    eventually(lambda: server.waiting("cancel") == 8)
    split.cancel()
    eventually(lambda: server.waiting("cancel") == 0)
    assert not busy.done()
    assert refused(server, "cancel", "cancelled") == gone + 1
    assert output(busy.result()).tolist() == [[HELD]]


def expired(reply):
    """DEADLINE_EXCEEDED; grpcio, on the reference transport, may also end the call without a word: CANCEL."""
    return reply.status == StatusCode.DEADLINE_EXCEEDED.value[0] or (reply.status is None and reply.reset == 8)


# --- deadlines and limits ---------------------------------------------------------------------------------------------


def test_a_deadline_that_passes_in_the_queue(server, stub, h2):
    """The server says so itself, by a timer: the instance is still busy. What has expired never runs."""
    before = statistics(stub, "deadline").execution_count
    busy = occupy(server, stub, "deadline")
    reply = h2.reply(h2.call(request("deadline", x=floats(1)).SerializeToString(), grpc_timeout="150m"))
    assert not busy.done()
    assert expired(reply)
    eventually(lambda: server.waiting("deadline") == 0)
    assert not busy.done()
    assert output(busy.result()).tolist() == [[HELD]]
    assert statistics(stub, "deadline").execution_count == before + 1


def test_the_client_sees_deadline_exceeded(server, stub):
    busy = occupy(server, stub, "late")
    assert failure(stub.ModelInfer, request("late", x=floats(1)), timeout=0.15).code is StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: server.waiting("late") == 0)
    assert not busy.done()
    busy.result()


@pytest.mark.parametrize(("model", "parameters"), [("timeout", {"timeout": 150_000}), ("objective", {})])
def test_a_limit_of_its_own_that_passes_in_the_queue(server, stub, model, parameters):
    """The request's `timeout`, or the model's objective: UNAVAILABLE, and not worth a retry."""
    busy = occupy(server, stub, model)
    late = failure(stub.ModelInfer, request(model, x=floats(1), parameters=parameters), timeout=None)
    assert (late.code, late.reason) == (StatusCode.UNAVAILABLE, "queue_timeout")
    assert late.text == "Request timeout expired"
    assert late.trailers["grpc-retry-pushback-ms"] == "-1"
    assert not busy.done()
    busy.result()
    assert statistics(stub, model).inference_stats.fail.count >= 1


def test_a_deadline_that_cannot_be_met_is_refused_at_once(server, stub):
    """By what the model is known to take: at least 150 units of work."""
    before = statistics(stub, "slow").execution_count
    refusal = failure(stub.ModelInfer, request("slow", x=floats(1), parameters={"timeout": 5000}))
    assert (refusal.code, refusal.reason) == (StatusCode.UNAVAILABLE, "deadline_unreachable")
    assert "and the reply is expected to take" in refusal.text
    assert refusal.trailers["grpc-retry-pushback-ms"] == "-1"
    assert statistics(stub, "slow").execution_count == before


def test_a_full_queue(server, stub):
    busy = occupy(server, stub, "queue")
    waiting = stub.ModelInfer.future(request("queue", x=floats(1)), timeout=SECONDS)
    eventually(lambda: server.waiting("queue") == 1)
    full = failure(stub.ModelInfer, request("queue", x=floats(2)))
    assert (full.code, full.reason) == (StatusCode.UNAVAILABLE, "queue_full")
    assert full.text.startswith("Exceeds maximum queue size: 1 requests, 1 rows and 4 bytes wait; at most 1 requests")
    assert int(full.trailers["grpc-retry-pushback-ms"]) >= 1
    assert server.metric("nv_inference_request_failure", model="queue", reason="REJECTED") == 1
    assert (output(busy.result()).tolist(), output(waiting.result()).tolist()) == ([[HELD]], [[1]])


def test_the_more_urgent_runs_first(server, stub):
    busy = occupy(server, stub, "urgent")
    answered = queue.SimpleQueue()
    for level in (2, 1):
        call = stub.ModelInfer.future(
            request("urgent", x=floats(level), parameters={"priority": level}), timeout=SECONDS
        )
        eventually(lambda level=level: server.waiting("urgent") == 3 - level)
        call.add_done_callback(lambda call: answered.put(output(call.result()).item()))
    busy.result()
    assert [answered.get(timeout=SECONDS) for _ in range(2)] == [1, 2]


def test_other_models_serve_meanwhile(server, stub):
    busy = occupy(server, stub, "late")
    for number in range(20):
        assert output(stub.ModelInfer(request("quick", x=floats(number)), timeout=SECONDS)).tolist() == [[2 * number]]
    assert not busy.done()
    assert server.get("/v2/health/live")[0] == 200
    busy.result()


def test_expired_before_it_was_read(h2):
    reply = h2.reply(h2.call(request("quick", x=floats(1)).SerializeToString(), grpc_timeout="0n"))
    assert expired(reply)
