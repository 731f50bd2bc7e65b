"""ModelStreamInfer with tritonclient: thousands of messages on one stream, in order, errors among them."""

import asyncio
import queue

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as aio
from e2e.calls import SECONDS, floats, output, request, statistics, tensor
from e2e.test_load_generators import MISSING, PERF_ANALYZER, run_perf_analyzer
from grpc import StatusCode
from tritonclient.grpc import service_pb2 as pb

MESSAGES = 5000


@pytest.fixture
def stream(client):
    """Starts a stream of the client; what comes back is a queue of (result, error)."""
    answers = queue.Queue()

    def start(**options):
        client.start_stream(lambda result, error: answers.put((result, error)), **options)
        return answers

    yield start
    client.stop_stream()


def pair(answers):
    return answers.get(timeout=SECONDS)


def test_thousands_of_messages_come_back_in_order(client, stream, stub):
    before = statistics(stub, "digits").inference_stats.success.count
    answers = stream()
    pixels = np.random.default_rng(0).integers(0, 17, (MESSAGES, 1, 64)).astype(np.float32)
    for number in range(MESSAGES):
        client.async_stream_infer("digits", [tensor("pixels", pixels[number])], request_id=str(number))
    expected = client.infer("digits", [tensor("pixels", pixels.reshape(-1, 64))]).as_numpy("probabilities")
    for number in range(MESSAGES):
        result, error = pair(answers)
        assert error is None
        assert result.get_response().id == str(number)
        np.testing.assert_allclose(result.as_numpy("probabilities")[0], expected[number], atol=1e-5)
    assert statistics(stub, "digits").inference_stats.success.count - before == MESSAGES + 1


def test_an_error_is_one_answer_among_others(client, stream):
    answers = stream()
    good = [tensor("x", floats([1, 2, 3, 4]))]
    client.async_stream_infer("echo_fp32", good, request_id="a")
    client.async_stream_infer("nothing", good, request_id="b")
    client.async_stream_infer("echo_fp32", [tensor("x", floats([1, 2]))], request_id="c")
    client.async_stream_infer("echo_fp32", good, request_id="d")
    (first, none), (_, unknown), (_, shape), (last, _) = (pair(answers) for _ in range(4))
    assert none is None
    assert unknown.message() == "Request for unknown model: 'nothing' is not found"
    assert "unexpected shape for input 'x'" in shape.message()
    assert (first.get_response().id, last.get_response().id) == ("a", "d")


def test_the_final_flag(client, stream):
    answers = stream()
    inputs = [tensor("x", floats([1, 2, 3, 4]))]
    client.async_stream_infer("echo_fp32", inputs, enable_empty_final_response=True)
    client.async_stream_infer("echo_fp32", inputs)
    flags = [pair(answers)[0].get_response().parameters.get("triton_final_response") for _ in range(2)]
    assert flags[0].bool_param is True
    assert flags[1] is None


def test_split_and_timed_requests_on_a_stream(client, stream):
    answers = stream()
    rows = np.arange(400, dtype=np.float32).reshape(100, 4)
    client.async_stream_infer(
        "echo_fp32", [tensor("x", rows)], parameters={"headrace_timing": True}, enable_empty_final_response=True
    )
    result, error = pair(answers)
    assert error is None
    np.testing.assert_array_equal(result.as_numpy("y"), rows)
    assert result.get_response().parameters["headrace_total_us"].int64_param > 0
    assert result.get_response().parameters["triton_final_response"].bool_param is True


def test_a_stream_may_ask_to_end_with_the_status_of_an_error(stub):
    def messages():
        yield request("echo_fp32", x=floats([1, 2, 3, 4]))
        yield request("nothing", x=floats([1, 2, 3, 4]))
        yield request("echo_fp32", x=floats([5, 6, 7, 8]))

    call = stub.ModelStreamInfer(messages(), timeout=SECONDS, metadata=[("triton_grpc_error", "true")])
    assert output(next(call).infer_response).tolist() == [[1, 2, 3, 4]]
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() is StatusCode.NOT_FOUND
    assert caught.value.details() == "Request for unknown model: 'nothing' is not found"


def test_a_client_that_reads_late(stub):
    """What it does not read is not computed without end; when it reads, all is there."""
    sent = []

    def messages():
        for number in range(64):
            sent.append(number)
            yield request("wide", id=str(number), x=floats([number]))

    call = stub.ModelStreamInfer(messages(), timeout=3 * SECONDS)
    ids = [reply.infer_response.id for reply in call]
    assert ids == [str(number) for number in range(64)]


def test_the_aio_client(server):
    async def main():
        async def requests():
            for number in range(200):
                yield {"model_name": "echo_fp32", "inputs": [given], "request_id": str(number)}

        given = aio.InferInput("x", [1, 4], "FP32")
        given.set_data_from_numpy(floats([1, 2, 3, 4]))
        async with aio.InferenceServerClient(server.address) as client:
            return [(r.get_response().id, e) async for r, e in client.stream_infer(requests(), stream_timeout=SECONDS)]

    assert asyncio.run(main()) == [(str(number), None) for number in range(200)]


def test_cancelled_streams_leave_the_server_as_it_was(server, stub):
    for _ in range(20):
        call = stub.ModelStreamInfer(
            iter([request("echo_fp32", x=floats([1, 2, 3, 4])) for _ in range(50)]), timeout=SECONDS
        )
        next(call)
        call.cancel()
    assert stub.ServerReady(pb.ServerReadyRequest(), timeout=SECONDS).ready


@pytest.mark.skipif(not PERF_ANALYZER.exists(), reason=f"no perf_analyzer: {MISSING}")
def test_perf_analyzer(server, stub):
    before = statistics(stub, "pair").inference_stats
    report = run_perf_analyzer(
        [PERF_ANALYZER, "-m", "pair", "-u", server.address, "-i", "grpc", "--streaming", "--async",
         "--concurrency-range", 8, "--measurement-mode", "count_windows", "--measurement-request-count", 200,
         "-s", 90]
    )  # fmt: skip
    assert "Throughput:" in report
    after = statistics(stub, "pair").inference_stats
    assert after.success.count - before.success.count >= 200
    assert after.fail.count == before.fail.count


def test_one_stream_after_another(client):
    """tritonclient has one at a time."""
    for _ in range(2):
        answers = queue.Queue()
        client.start_stream(lambda result, error, answers=answers: answers.put((result, error)))
        client.async_stream_infer("echo_fp32", [tensor("x", floats([1, 2, 3, 4]))])
        assert pair(answers)[0].as_numpy("y").tolist() == [[1, 2, 3, 4]]
        client.stop_stream()
