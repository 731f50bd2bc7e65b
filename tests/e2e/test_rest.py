"""The HTTP port with the clients that people use: tritonclient, curl, http.client, perf_analyzer, h2load."""

import asyncio
import gzip
import json
import shutil
import subprocess
import uuid
from multiprocessing.shared_memory import SharedMemory

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from e2e.calls import SECONDS, floats
from e2e.conftest import shared
from e2e.rest_calls import address, ask, connect, infer, octets
from e2e.test_load_generators import MISSING, PERF_ANALYZER, run_perf_analyzer
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from compare.clients import parse_h2load, parse_perf_analyzer

ROWS = {
    "BOOL": np.array([[True, False, True, True]]),
    **{name: np.array([[0, 1, 100, 7]], name.lower()) for name in ("UINT8", "UINT16", "UINT32", "UINT64")},
    **{name: np.array([[0, -1, 100, 7]], name.lower()) for name in ("INT8", "INT16", "INT32", "INT64")},
    "FP16": np.array([[0, -1.5, 100, 7]], np.float16),
    "FP32": np.array([[0, -1.5, 1e30, 0.1]], np.float32),
    "FP64": np.array([[0, -1.5, 1e300, 0.1]], np.float64),
    "BYTES": np.array([["", "a", "ä", '"\\']], object),
}


@pytest.fixture(scope="module")
def server(repository):
    """On the native transport alone: HTTP is the same beside both."""
    yield from shared(repository, "native", "--allow-client-shm", "true")


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(address(server), concurrency=4) as client:
        yield client


def given(name, array, datatype=None, binary=True):
    """A tritonclient input."""
    made = triton.InferInput(name, list(array.shape), datatype or np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def wanted(name, **options):
    return triton.InferRequestedOutput(name, **options)


def same(got, array):
    if array.dtype == object:
        got = [[one if isinstance(one, str) else one.decode() for one in row] for row in got.tolist()]
        assert got == array.tolist()
    else:
        np.testing.assert_array_equal(got, array)


# --- tritonclient -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("datatype", sorted(ROWS))
def test_every_datatype(client, datatype, binary_in, binary_out):
    rows = np.repeat(ROWS[datatype], 2, axis=0)
    outputs = None if binary_out is None else [wanted("y", binary_data=binary_out)]
    result = client.infer(f"echo_{datatype.lower()}", [given("x", rows, datatype, binary_in)], outputs=outputs)
    same(result.as_numpy("y"), rows)
    assert ("data" in result.get_output("y")) == (binary_out is False)


def test_bfloat16(client, server):
    rows = np.array([[1.5, -2, 0.1, 3e38]], ml_dtypes.bfloat16)
    binary = given("x", rows.astype(np.float32), "BF16")
    np.testing.assert_array_equal(client.infer("echo_bf16", [binary]).as_numpy("y"), rows.astype(np.float32))
    values = rows.astype(np.float32).ravel().tolist()
    told = infer(server, "echo_bf16", {"inputs": [{"name": "x", "datatype": "BF16", "shape": [1, 4], "data": values}]})
    assert told.json["outputs"][0]["data"] == pytest.approx(values)


def test_numbers_that_json_does_not_have(client):
    rows = np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)
    result = client.infer("echo_fp32", [given("x", rows, binary=False)], outputs=[wanted("y", binary_data=False)])
    np.testing.assert_array_equal(result.as_numpy("y"), rows)


@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_compression(client, coding):
    rows = np.arange(4 * 512, dtype=np.float32).reshape(-1, 4)
    result = client.infer(
        "echo_fp32",
        [given("x", rows)],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    np.testing.assert_array_equal(result.as_numpy("y"), rows)


def test_two_inputs_two_outputs_one_of_each_form(client):
    a, b = floats([1, 2], [3, 4]), np.arange(6, dtype=np.int32).reshape(2, 3)
    for outputs in (None, [wanted("twice"), wanted("sum", binary_data=False)], [wanted("sum")]):
        result = client.infer("pair", [given("b", b), given("a", a, binary=False)], outputs=outputs)
        assert result.as_numpy("sum").tolist() == [[3], [7]]
        if outputs is None or len(outputs) > 1:
            np.testing.assert_array_equal(result.as_numpy("twice"), 2 * b)


def test_ids_versions_and_parameters(client):
    for number in range(3):
        result = client.infer("versions", [given("x", floats(5))], request_id=f"id {number}", model_version="1")
        told = result.get_response()
        assert (told["id"], told["model_version"], result.as_numpy("y").item()) == (f"id {number}", "1", 5)
    result = client.infer(
        "levels", [given("x", floats(5))], priority=2, timeout=5_000_000, sequence_id=7, sequence_start=True,
        sequence_end=True, parameters={"headrace_timing": True, "mine": "x"},
    )  # fmt: skip
    assert "id" not in result.get_response()
    phases = result.get_response()["parameters"]
    assert phases["headrace_total_us"] == sum(
        value for name, value in phases.items() if name.endswith("_us") and name != "headrace_total_us"
    )


def test_classification(client):
    rows = np.array([[0.1, 3, 2, -1]], np.float32)
    for binary in (True, False):
        outputs = [wanted("y", class_count=2, binary_data=binary)]
        (got,) = client.infer("echo_fp32", [given("x", rows)], outputs=outputs).as_numpy("y").tolist()
        assert [one if isinstance(one, str) else one.decode() for one in got] == ["3.000000:1", "2.000000:2"]


def test_a_large_request_and_a_large_reply(client):
    rows = np.random.default_rng(0).random((64, 100_000), np.float32)  # 25.6 MB
    np.testing.assert_array_equal(client.infer("free", [given("x", rows)]).as_numpy("y"), 3 * rows)


def test_more_rows_than_a_batch_holds(client):
    rows = np.arange(1000 * 4, dtype=np.int64).reshape(-1, 4)
    np.testing.assert_array_equal(client.infer("echo_int64", [given("x", rows)]).as_numpy("y"), rows)


def test_many_at_once(client):
    calls = [client.async_infer("echo_fp32", [given("x", floats([n, 0, 0, 0]))], request_id=str(n)) for n in range(50)]
    for number, call in enumerate(calls):
        result = call.get_result()
        assert (result.get_response()["id"], result.as_numpy("y")[0, 0]) == (str(number), number)


def test_asyncio(server):
    async def main():
        async with triton_aio.InferenceServerClient(address(server)) as client:
            assert await client.is_server_live()
            assert await client.is_model_ready("echo_fp32")
            results = await asyncio.gather(
                *(client.infer("echo_fp32", [given("x", floats([n, 0, 0, 0]))], request_id=str(n)) for n in range(20))
            )
            with pytest.raises(InferenceServerException, match="'nobody' is not found"):
                await client.infer("nobody", [given("x", floats(1))])
            return [(result.get_response()["id"], result.as_numpy("y")[0, 0]) for result in results]

    assert asyncio.run(main()) == [(str(n), n) for n in range(20)]


def test_what_is_said_of_server_and_models_is_what_grpc_says(client, server):
    def numbers(value):
        """protobuf's JSON has 64-bit integers as strings."""
        if isinstance(value, dict):
            return {key: numbers(one) for key, one in value.items()}
        if isinstance(value, list):
            return [numbers(one) for one in value]
        return int(value) if isinstance(value, str) and value.lstrip("-").isdigit() else value

    def within(part, whole):
        """Whether all that is in `part`, which leaves defaults out, is in `whole`."""
        if isinstance(part, dict):
            return all(within(value, whole[key]) for key, value in part.items())
        if isinstance(part, list):
            return len(part) == len(whole) and all(map(within, part, whole))
        return numbers(part) == numbers(whole)

    with triton_grpc.InferenceServerClient(server.address) as other:
        assert client.get_server_metadata() == other.get_server_metadata(as_json=True)
        for name in ("pair", "versions", "grid", "levels"):
            assert numbers(client.get_model_metadata(name)) == numbers(other.get_model_metadata(name, as_json=True))
            assert within(other.get_model_config(name, as_json=True)["config"], client.get_model_config(name))
        client.infer("pair", [given("a", floats([1, 2])), given("b", np.ones((1, 3), np.int32))])
        for version in ("", "1"):
            told = client.get_inference_statistics("pair", version)
            assert within(other.get_inference_statistics("pair", version, as_json=True), told)
            assert told["model_stats"][0]["inference_stats"]["cache_hit"] == {"count": 0, "ns": 0}
        assert len(client.get_inference_statistics()["model_stats"]) > 10
        index = other.get_model_repository_index(as_json=True)["models"]
        assert within(index, client.get_model_repository_index())


def test_readiness(client, server):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("versions")
    assert client.is_model_ready("versions", "2")
    assert not client.is_model_ready("versions", "9")
    assert not client.is_model_ready("broken")
    assert [ask(server, f"/v2/models/{path}/ready").status for path in ("nobody", "broken/versions/1")] == [404, 503]
    assert ask(server, "/v2/health/ready").json == {"ready": True}  # KServe's client reads it


def test_shared_memory(client):
    memory = SharedMemory(create=True, size=4096)
    try:
        client.register_system_shared_memory("r", f"/{memory.name}", 4096)
        assert client.get_system_shared_memory_status() == [
            {"name": "r", "key": f"/{memory.name}", "offset": 0, "byte_size": 4096}
        ]
        assert client.get_system_shared_memory_status("r")[0]["name"] == "r"
        rows = np.arange(8, dtype=np.float32).reshape(2, 4)
        memory.buf[:32] = rows.tobytes()
        in_memory = triton.InferInput("x", [2, 4], "FP32")
        in_memory.set_shared_memory("r", 32)
        out = wanted("y")
        out.set_shared_memory("r", 64, 1024)
        for _ in range(2):
            result = client.infer("echo_fp32", [in_memory], outputs=[out])
            assert result.get_output("y") == {"name": "y", "datatype": "FP32", "shape": [2, 4]}
            np.testing.assert_array_equal(np.frombuffer(bytes(memory.buf[1024:1056]), np.float32), rows.ravel())
        with pytest.raises(InferenceServerException, match="shared memory region 'r' already in manager") as caught:
            client.register_system_shared_memory("r", f"/{memory.name}", 4096)
        assert caught.value.status() == "400"
        client.unregister_system_shared_memory("r")
        assert client.get_system_shared_memory_status() == []
        with pytest.raises(InferenceServerException, match="Unable to find shared memory region: 'r'") as caught:
            client.infer("echo_fp32", [in_memory])
        assert caught.value.status() == "404"
        assert client.get_cuda_shared_memory_status() == []
        client.unregister_cuda_shared_memory()
        with pytest.raises(InferenceServerException, match="GPUs not supported"):
            client.register_cuda_shared_memory("c", "aGFuZGxl", 0, 64)
    finally:
        client.unregister_system_shared_memory()
        memory.close()
        memory.unlink()


def test_settings_of_the_log(client):
    before = client.get_log_settings()
    assert (before["log_info"], before["log_file"], before["log_format"]) == (True, "", "ISO8601")
    changed = client.update_log_settings({"log_warning": False, "log_format": "ISO8601"})
    assert changed == before | {"log_warning": False}
    assert client.update_log_settings({"log_warning": True}) == before
    with pytest.raises(InferenceServerException, match="unknown log setting 'log_colour'"):
        client.update_log_settings({"log_colour": "red"})


def test_settings_of_tracing(client):
    before = client.get_trace_settings()
    assert before["trace_level"] == ["OFF"]
    assert {type(value) for key, value in before.items() if key != "trace_level"} == {str}
    changed = client.update_trace_settings("pair", {"trace_level": ["TIMESTAMPS"], "trace_rate": "5"})
    assert (changed["trace_level"], changed["trace_rate"]) == (["TIMESTAMPS"], "5")
    assert client.get_trace_settings("pair") == changed
    assert client.update_trace_settings("pair", {"trace_level": None, "trace_rate": None}) == before
    with pytest.raises(InferenceServerException, match="'nobody' is not found") as caught:
        client.get_trace_settings("nobody")
    assert caught.value.status() == "404"


# --- others -----------------------------------------------------------------------------------------------------------


def test_as_kserve_does_it(server):
    """An id that is different each time, in the first place; elements or octets; lower-case fields."""
    rows = floats([1, 2, 3, 4])
    for binary in (False, True, True):
        request_id = str(uuid.uuid4())
        tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32"}
        if binary:
            tensor["parameters"] = {"binary_data_size": 16}
            reply = infer(server, "echo_fp32", {"id": request_id, "inputs": [tensor]}, rows.tobytes())
        else:
            tensor["data"] = rows.tolist()
            reply = infer(server, "echo_fp32", {"id": request_id, "model_name": "ignored", "inputs": [tensor]})
        assert reply.fields["content-type"] == "application/json"
        assert reply.json == {
            "id": request_id, "model_name": "echo_fp32", "model_version": "1",
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}],
        }  # fmt: skip


def test_a_body_without_json(server):
    rows = floats([1, 2, 3, 4], [5, 6, 7, 8])
    reply = ask(server, "/v2/models/echo_fp32/infer", rows.tobytes(), inference_header_content_length=0)
    assert reply.json["outputs"][0]["shape"] == [2, 4]
    assert reply.binary == rows.tobytes()
    refused = ask(server, "/v2/models/pair/infer", b"xxxx", inference_header_content_length=0)
    assert (refused.status, "model 'pair' has 2 inputs" in refused.json["error"]) == (400, True)


def test_one_connection_for_everything(server):
    """http.client sends head and body one after the other."""
    connection = connect(server)
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]})
    for number in range(6):
        if number % 3 == 2:
            connection.request("GET", "/v2")
        else:
            connection.request("POST", "/v2/models/echo_fp32/infer", body)
        response = connection.getresponse()
        assert (response.status, bool(json.loads(response.read()))) == (200, True)
    connection.request("POST", "/v2/models/echo_fp32/infer", iter([body[:20].encode(), body[20:].encode()]))  # chunked
    response = connection.getresponse()
    assert json.loads(response.read())["outputs"][0]["data"] == [1, 2, 3, 4]
    connection.close()


def curl(*arguments, data=None):
    """What curl writes; it must end well."""
    command = ["curl", "-sS", "--max-time", str(SECONDS), *arguments]
    done = subprocess.run(command, input=data, capture_output=True, timeout=2 * SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
@pytest.mark.parametrize(
    "arguments",
    [
        ["-d", "@-"],
        ["-d", "@-", "--http1.0"],
        ["-d", "@-", "--http2"],  # by an Upgrade, which the server passes over
        ["-d", "@-", "-H", "Expect: 100-continue"],
        ["-T", "-", "-X", "POST", "-H", "Transfer-Encoding: chunked"],
        ["-d", "@-", "--compressed"],
    ],
    ids=" ".join,
)
def test_curl(server, arguments):
    values = [float(n) for n in range(4 * 300)]
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [300, 4], "data": values}]}
    out = curl(*arguments, f"{server.http}/v2/models/echo_fp32/infer", data=json.dumps(body).encode())
    assert json.loads(out)["outputs"][0]["data"] == values


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl_with_a_compressed_body(server):
    body = gzip.compress(
        json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0] * 4}]}).encode()
    )
    url = f"{server.http}/v2/models/echo_fp32/infer"
    out = curl("--data-binary", "@-", "-H", "Content-Encoding: gzip", url, data=body)
    assert json.loads(out)["outputs"][0]["data"] == [0] * 4


@pytest.mark.skipif(not PERF_ANALYZER.exists(), reason=f"no perf_analyzer: {MISSING}")
@pytest.mark.parametrize(("model", "rows"), [("pair", 4), ("echo_bytes", 1)])
def test_perf_analyzer(client, server, model, rows):
    def stats():
        (one,) = client.get_inference_statistics(model)["model_stats"]
        return (
            one["inference_stats"]["success"]["count"],
            one["inference_count"],
            one["inference_stats"]["fail"]["count"],
        )

    before = stats()
    text = run_perf_analyzer(
        [PERF_ANALYZER, "-m", model, "-i", "http", "-u", address(server), "-b", rows, "--concurrency-range", 8,
         "--async", "-p", 1000, "-r", 3, "-s", 1000]
    )  # fmt: skip
    success, inferences, failures = (now - then for now, then in zip(stats(), before, strict=True))
    assert 100 < parse_perf_analyzer(text).requests <= success
    assert (inferences, failures) == (success * rows, 0)


@pytest.mark.skipif(shutil.which("h2load") is None, reason=f"no h2load: {MISSING}")
@pytest.mark.parametrize("in_flight", [1, 8])
def test_h2load(client, server, tmp_path, in_flight):
    """Pipelined, too: then requests of one connection are answered in order."""
    header = {
        "id": "1",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}],
    }
    text = json.dumps(header).encode()
    payload = tmp_path / "body"
    payload.write_bytes(text + floats([1, 2, 3, 4]).tobytes())
    command = ["h2load", "--h1", "-t", "1", "-c", "8", "-m", str(in_flight), "-n", "2000", "-d", str(payload)]
    command += ["-H", f"Inference-Header-Content-Length: {len(text)}", f"{server.http}/v2/models/echo_fp32/infer"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    report = parse_h2load(done.stdout)
    assert (report.requests, report.failed) == (2000, 0)


def test_the_description_of_the_port(server):
    document = ask(server, "/openapi.json").json
    assert "/v2/models/{model}/infer" in document["paths"]
    assert b"/v2/models/{model}/infer" in ask(server, "/docs").body


def test_what_is_counted(server, client):
    def count(route, status):
        return server.metric("headrace_http_requests_total", route=route, status=str(status))

    before = count("infer", 200), count("infer", 404), count("/v2", 405)
    client.infer("echo_fp32", [given("x", floats([1, 2, 3, 4]))])
    infer(server, "nobody", {"inputs": []})
    ask(server, "/v2", b"")
    assert (count("infer", 200), count("infer", 404), count("/v2", 405)) == tuple(one + 1 for one in before)
    assert server.metric("headrace_http_connections") >= 1
    assert b"host: x" in octets("/")
