"""Stateful models with tritonclient: unary and on a stream, sync and aio, many sequences at once."""

import asyncio
import json
import queue
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as aio
from e2e.calls import SECONDS, failure, floats, request, statistics, tensor
from e2e.conftest import shared
from e2e.onnx_models import write
from e2e.sequence_models import accumulate, write_sequences
from e2e.server_process import Server, eventually
from e2e.test_load_generators import MISSING, PERF_ANALYZER, run_perf_analyzer
from grpc import StatusCode
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

NOT_STARTED = "must specify the START flag on the first request of the sequence"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("stateful")
    write_sequences(root)
    return root


@pytest.fixture(scope="module")
def server(transport, repository):
    yield from shared(repository, transport)


def step(client, model, sequence, number, *, first=False, last=False, output="total", **options):
    result = client.infer(
        model,
        [tensor("x", floats([number]))],
        sequence_id=sequence,
        sequence_start=first,
        sequence_end=last,
        client_timeout=SECONDS,
        **options,
    )
    return result.as_numpy(output)


def sums(client, model, sequence, numbers):
    last = len(numbers) - 1
    return [
        step(client, model, sequence, number, first=at == 0, last=at == last).item()
        for at, number in enumerate(numbers)
    ]


@pytest.mark.parametrize("sequence", [7, "seven", (1 << 63) - 1])
def test_a_sequence_of_calls(client, sequence):
    assert sums(client, "sum", sequence, [1, 2, 3, 4]) == [1, 3, 6, 10]
    assert sums(client, "sum", sequence, [5, 5]) == [5, 10]


def test_states_are_not_seen_by_clients(client):
    metadata = client.get_model_metadata("sum", client_timeout=SECONDS)
    assert [one.name for one in metadata.inputs] == ["x"]
    assert [one.name for one in metadata.outputs] == ["total"]
    config = client.get_model_config("sum", client_timeout=SECONDS).config
    assert config.WhichOneof("scheduling_choice") == "sequence_batching"
    sequences = config.sequence_batching
    assert sequences.oldest.max_candidate_sequences == 1024
    assert sequences.max_sequence_idle_microseconds == 60_000_000
    (state,) = sequences.state
    assert (state.input_name, state.output_name, list(state.dims)) == ("before", "after", [1])
    assert state.initial_state[0].zero_data
    assert "sequence" in client.get_server_metadata(client_timeout=SECONDS).extensions


def test_sequences_of_many_clients(client, server, stub):
    before = statistics(stub, "sum")
    results = {}

    def run(sequence):
        with triton.InferenceServerClient(server.address) as own:
            results[sequence] = sums(own, "sum", sequence, range(1, 41))

    threads = [threading.Thread(target=run, args=(100 + number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    expected = np.cumsum(range(1, 41)).tolist()
    assert results == {100 + number: expected for number in range(8)}
    after = statistics(stub, "sum")
    assert after.inference_stats.success.count - before.inference_stats.success.count == 320


def test_sequences_pipelined_on_a_stream(client, server, stub):
    """Each request waits for the one before it in its sequence, and for no other."""
    before = statistics(stub, "sum")
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    steps = [(sequence, at) for at in range(60) for sequence in range(1, 5)]
    for sequence, at in steps:
        client.async_stream_infer(
            "sum",
            [tensor("x", floats([sequence]))],
            request_id=f"{sequence}/{at}",
            sequence_id=sequence,
            sequence_start=at == 0,
            sequence_end=at == 59,
        )
    for sequence, at in steps:
        result, error = answers.get(timeout=SECONDS)
        assert error is None
        assert result.get_response().id == f"{sequence}/{at}"
        assert result.as_numpy("total").item() == sequence * (at + 1)
    client.stop_stream()
    assert statistics(stub, "sum").inference_stats.success.count - before.inference_stats.success.count == 240


def test_the_aio_client(server):
    async def main():
        async def requests():
            for at in range(50):
                yield {
                    "model_name": "sum",
                    "inputs": [given],
                    "sequence_id": "aio",
                    "sequence_start": at == 0,
                    "sequence_end": at == 49,
                }

        given = aio.InferInput("x", [1, 1], "FP32")
        given.set_data_from_numpy(floats([2]))
        async with aio.InferenceServerClient(server.address) as client:
            streamed = [
                result.as_numpy("total").item()
                async for result, error in client.stream_infer(requests(), stream_timeout=SECONDS)
            ]
            single = await client.infer("sum", [given], sequence_id=3, sequence_start=True, sequence_end=True)
            return streamed, single.as_numpy("total").item()

    assert asyncio.run(main()) == ([2.0 * (at + 1) for at in range(50)], 2.0)


def test_over_http(server):
    def add(number, **flags):
        body = {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [number]}],
            "parameters": {"sequence_id": "http", **flags},
        }
        call = urllib.request.Request(f"{server.http}/v2/models/sum/infer", json.dumps(body).encode())
        with urllib.request.urlopen(call, timeout=SECONDS) as response:
            return json.loads(response.read())["outputs"][0]["data"]

    assert [add(1, sequence_start=True), add(2), add(3, sequence_end=True)] == [[1], [3], [6]]
    with pytest.raises(urllib.error.HTTPError) as caught:
        add(4)
    with caught.value as error:
        assert error.code == 400
        assert NOT_STARTED in json.loads(error.read())["error"]


def test_what_a_model_is_told(client):
    said = [
        step(client, "told", 9, 0, first=first, last=last, output="said").tolist()
        for first, last in ((True, False), (False, False), (False, True), (True, True))
    ]
    assert said == [[[1, -1, 1]], [[0, -1, 1]], [[0, 1, 1]], [[1, 1, 1]]]
    assert step(client, "told", 5, 0, first=True, last=True, output="same_id").item() == 5


def test_an_unsigned_id(stub):
    large = (1 << 64) - 2
    call = request(
        "told", x=floats([0]), outputs=["same_id"], parameters={"sequence_start": True, "sequence_end": True}
    )
    call.parameters["sequence_id"].uint64_param = large
    reply = stub.ModelInfer(call, timeout=SECONDS)
    assert np.frombuffer(reply.raw_output_contents[0], np.uint64).tolist() == [large]


def test_a_state_from_a_file_that_grows_to_its_limit(client):
    def one(number, **flags):
        result = client.infer(
            "grown", [tensor("x", np.array([number], np.float32))], sequence_id=1, client_timeout=SECONDS, **flags
        )
        return result.as_numpy("first").item(), result.as_numpy("all").item()

    assert one(1, sequence_start=True) == (10, 31)
    assert one(2) == (10, 33)
    for number in range(12):
        assert one(0) == (10, 33), number
    with pytest.raises(InferenceServerException, match="the sequence has ended") as caught:
        one(0)
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    with pytest.raises(InferenceServerException, match=NOT_STARTED):
        one(0)
    assert one(5, sequence_start=True) == (10, 35)


@pytest.mark.parametrize(
    ("parameters", "rows", "text"),
    [
        ({"sequence_id": 4}, 1, f"inference request for sequence 4 to model 'sum' {NOT_STARTED}"),
        ({"sequence_id": "four", "sequence_end": True}, 1, f"for sequence four to model 'sum' {NOT_STARTED}"),
        ({}, 1, "inference request to model 'sum' must specify a non-zero or non-empty correlation ID"),
        ({"sequence_start": True}, 1, "must specify a non-zero or non-empty correlation ID"),
        ({"sequence_id": "", "sequence_start": True}, 1, "must specify a non-zero or non-empty correlation ID"),
        ({"sequence_id": 4, "sequence_start": True}, 2, "must specify batch-size 1 due to requirements of sequence"),
        ({"sequence_id": 4, "sequence_start": True}, 99, "must specify batch-size 1 due to requirements of sequence"),
        ({"sequence_id": "x" * 129, "sequence_start": True}, 1, "cannot be longer than 128 characters"),
    ],
)
def test_errors(stub, parameters, rows, text):
    found = failure(stub.ModelInfer, request("sum", x=floats(*range(rows)), parameters=parameters))
    assert (found.code, found.reason) == (StatusCode.INVALID_ARGUMENT, "invalid_request")
    assert text in found.text


def test_text_for_a_model_that_takes_a_number(stub):
    parameters = {"sequence_id": "four", "sequence_start": True}
    found = failure(stub.ModelInfer, request("told", x=floats(1), parameters=parameters))
    assert (found.code, found.text) == (
        StatusCode.INVALID_ARGUMENT,
        "sequence id 'four' is text, but the model takes it as UINT64",
    )


def test_an_idle_sequence_is_over(client, server):
    before = server.metric("headrace_sequences_expired_total", model="impatient")
    assert step(client, "impatient", 1, 5, first=True).item() == 5
    eventually(lambda: server.metric("headrace_sequences_expired_total", model="impatient") == before + 1)
    assert server.metric("headrace_sequences_active", model="impatient") == 0
    with pytest.raises(InferenceServerException, match=NOT_STARTED):
        step(client, "impatient", 1, 5)


def test_a_start_in_the_middle_begins_anew(client):
    assert step(client, "sum", 21, 5, first=True).item() == 5
    assert step(client, "sum", 21, 6, first=True).item() == 6
    assert step(client, "sum", 21, 1, last=True).item() == 7


def test_with_one_slot_the_others_wait_for_its_end(stub, server):
    def call(sequence, number, **flags):
        parameters = {"sequence_id": sequence, **flags}
        return stub.ModelInfer.future(request("narrow", x=floats([number]), parameters=parameters), timeout=SECONDS)

    assert value(call(1, 1, sequence_start=True).result()) == 1
    second = [call(2, 10, sequence_start=True), call(2, 20, sequence_end=True)]
    eventually(lambda: server.metric("headrace_sequences_waiting", model="narrow") == 1)
    third = call(3, 7, sequence_start=True, sequence_end=True)
    eventually(lambda: server.waiting("narrow") == 3)
    assert not any(one.done() for one in (*second, third))
    assert value(call(1, 2, sequence_end=True).result()) == 3
    assert [value(one.result()) for one in (*second, third)] == [10, 30, 7]


def test_a_caller_that_gives_up_in_the_backlog_leaves_it(stub, server):
    def call(sequence, **flags):
        parameters = {"sequence_id": sequence, **flags}
        return stub.ModelInfer.future(request("narrow", x=floats([1]), parameters=parameters), timeout=SECONDS)

    call(1, sequence_start=True).result()
    waiting = call(2, sequence_start=True)
    eventually(lambda: server.metric("headrace_sequences_waiting", model="narrow") == 1)
    waiting.cancel()
    eventually(lambda: server.metric("headrace_sequences_waiting", model="narrow") == 0)
    assert value(call(1, sequence_end=True).result()) == 2
    assert NOT_STARTED in failure(call(2).result).text


def test_a_deadline_in_the_backlog(stub, server):
    hold = {"sequence_id": 1, "sequence_start": True}
    stub.ModelInfer(request("narrow", x=floats([1]), parameters=hold), timeout=SECONDS)
    late = {"sequence_id": 2, "sequence_start": True, "timeout": 100_000}
    found = failure(stub.ModelInfer, request("narrow", x=floats([1]), parameters=late))
    assert (found.code, found.reason) == (StatusCode.UNAVAILABLE, "queue_timeout")
    done = {"sequence_id": 1, "sequence_end": True}
    assert value(stub.ModelInfer(request("narrow", x=floats([1]), parameters=done), timeout=SECONDS)) == 2


def value(reply):
    names = [tensor.name for tensor in reply.outputs]
    return np.frombuffer(reply.raw_output_contents[names.index("total")], np.float32).item()


def test_in_an_ensemble(client):
    assert sums(client, "doubled_sum", 5, [1, 2, 3]) == [2, 6, 12]
    with pytest.raises(InferenceServerException, match=NOT_STARTED):
        step(client, "doubled_sum", 5, 1)


def test_the_timing_of_a_request_that_waited_for_its_turn(stub):
    parameters = {"sequence_id": 31, "sequence_start": True, "sequence_end": True, "headrace_timing": True}
    reply = stub.ModelInfer(request("sum", id="a", x=floats([1]), parameters=parameters), timeout=SECONDS)
    assert reply.id == "a"
    phases = ("decode", "admit", "queue", "batch", "execute", "encode")
    spent = [reply.parameters[f"headrace_{phase}_us"].int64_param for phase in phases]
    assert min(spent) >= 0
    assert sum(spent) == reply.parameters["headrace_total_us"].int64_param


def test_what_a_stream_leaves_behind(stub, server):
    """Its requests are run to the last one that has arrived; then the sequence is idle."""
    messages = [
        request("impatient", x=floats([1]), parameters={"sequence_id": 77, "sequence_start": at == 0})
        for at in range(100)
    ]
    call = stub.ModelStreamInfer(iter(messages), timeout=SECONDS)
    next(call)
    call.cancel()
    eventually(lambda: server.metric("headrace_sequences_active", model="impatient") == 0)
    assert stub.ServerReady(pb.ServerReadyRequest(), timeout=SECONDS).ready


def test_the_end_of_the_server_ends_idle_sequences(transport, repository):
    with Server(repository, "--transport", transport) as server, triton.InferenceServerClient(server.address) as client:
        assert step(client, "sum", 1, 5, first=True).item() == 5
        assert server.stop() == 0, server.log


@pytest.mark.skipif(not PERF_ANALYZER.exists(), reason=f"no perf_analyzer: {MISSING}")
@pytest.mark.parametrize("way", [("--async",), ("--streaming", "--async"), ("--string-ids",)])
def test_perf_analyzer(server, stub, way):
    flags = {"--string-ids": ["--sync"]}.get(way[0], list(way))
    before = statistics(stub, "sum").inference_stats
    report = run_perf_analyzer(
        [PERF_ANALYZER, "-m", "sum", "-u", server.address, "-i", "grpc", *flags,
         "--sequence-length", 20, "--concurrency-range", 4, "--measurement-mode", "count_windows",
         "--measurement-request-count", 200, "-s", 90]
    )  # fmt: skip
    assert "Throughput:" in report
    after = statistics(stub, "sum").inference_stats
    assert after.success.count - before.success.count >= 200
    assert after.fail.count == before.fail.count


PBTXT = """
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "total" data_type: TYPE_FP32 dims: [ 1 ] } ]
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  oldest { max_candidate_sequences: 4 }
  state [ { input_name: "before" output_name: "after" data_type: TYPE_FP32 dims: [ 1 ]
            initial_state { name: "zero" data_type: TYPE_FP32 dims: [ 1 ] zero_data: true } } ]
}
"""


def test_a_stateful_model_of_a_triton_repository(serve, tmp_path):
    write(tmp_path, "sum", accumulate("N", 1))
    (tmp_path / "sum" / "config.pbtxt").write_text(PBTXT)
    server = serve(tmp_path)
    with triton.InferenceServerClient(server.address) as client:
        assert sums(client, "sum", 5, [1, 2, 3]) == [1, 3, 6]
        config = client.get_model_config("sum", client_timeout=SECONDS).config
        assert [tensor.name for tensor in config.input] == ["x"]
        assert config.sequence_batching.oldest.max_candidate_sequences == 4
