"""tritonclient's asynchronous clients, and many callers at a time."""

import asyncio
import queue

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from e2e.calls import SECONDS, floats, statistics, tensor

ROUNDS = 20


def test_asyncio_callers_each_get_their_own_rows(server, stub):
    """Batches are formed: there are fewer executions than requests."""

    async def caller(client, number):
        for round_ in range(ROUNDS):
            rows = 1 + (number + round_) % 3
            sent = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) + 1000 * number + 100 * round_
            result = await client.infer("echo_fp32", [tensor("x", sent)], request_id=f"{number}.{round_}")
            np.testing.assert_array_equal(result.as_numpy("y"), sent)
            assert result.get_response().id == f"{number}.{round_}"

    async def main():
        async with triton_aio.InferenceServerClient(server.address) as client:
            await asyncio.wait_for(asyncio.gather(*(caller(client, number) for number in range(40))), 3 * SECONDS)

    before = statistics(stub, "echo_fp32")
    asyncio.run(main())
    after = statistics(stub, "echo_fp32")
    rows = sum(1 + (number + round_) % 3 for number in range(40) for round_ in range(ROUNDS))
    assert after.inference_stats.success.count - before.inference_stats.success.count == 40 * ROUNDS
    assert after.inference_count - before.inference_count == rows
    assert after.execution_count - before.execution_count < 40 * ROUNDS


def test_asyncio_error_and_metadata(server):
    async def main():
        async with triton_aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata("digits")).name == "digits"
            with pytest.raises(triton.InferenceServerException) as caught:
                await client.infer("nobody", [tensor("x", floats(1))])
            assert caught.value.status() == "StatusCode.NOT_FOUND"

    asyncio.run(asyncio.wait_for(main(), SECONDS))


def test_callbacks(client):
    answers = queue.Queue()
    for number in range(50):
        sent = np.full((1, 4), number, np.float32)
        client.async_infer(
            "echo_fp32",
            [tensor("x", sent)],
            lambda result, error: answers.put((result, error)),
            request_id=str(number),
            client_timeout=SECONDS,
        )
    got = {}
    for _ in range(50):
        result, error = answers.get(timeout=SECONDS)
        assert error is None
        got[result.get_response().id] = result.as_numpy("y")[0, 0]
    assert got == {str(number): number for number in range(50)}


def test_a_callback_gets_the_error(client):
    answers = queue.Queue()
    client.async_infer("nobody", [tensor("x", floats(1))], lambda result, error: answers.put((result, error)))
    result, error = answers.get(timeout=SECONDS)
    assert result is None
    assert error.status() == "StatusCode.NOT_FOUND"
    assert "'nobody' is not found" in error.message()
