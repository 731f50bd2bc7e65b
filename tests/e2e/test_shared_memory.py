"""Tensors in system shared memory, as a client on the same machine passes them."""

from concurrent.futures import ThreadPoolExecutor
from multiprocessing.shared_memory import SharedMemory

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from e2e.calls import SECONDS, statistics, tensor
from e2e.conftest import shared
from e2e.gated import HELD, at_work, let_go, write_gated
from e2e.server_process import eventually
from e2e.test_load_generators import MISSING, PERF_ANALYZER, run_perf_analyzer
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def shm_server(transport, repository):
    yield from shared(repository, transport, "--allow-client-shm", "true")


@pytest.fixture
def shm_client(shm_server):
    with triton.InferenceServerClient(shm_server.address) as client:
        yield client
        client.unregister_system_shared_memory(client_timeout=SECONDS)


@pytest.fixture
def region(shm_client):
    """16 kB that the client has registered as `r`."""
    memory = SharedMemory(create=True, size=16384)
    try:
        shm_client.register_system_shared_memory("r", f"/{memory.name}", 16384, client_timeout=SECONDS)
        yield memory
    finally:
        memory.close()
        memory.unlink()


def in_region(array, memory, offset, name="x", datatype="FP32"):
    """A tritonclient input that lies in the region."""
    data = array.tobytes()
    memory.buf[offset : offset + len(data)] = data
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_shared_memory("r", len(data), offset)
    return given


def refusal(call, *arguments, **options):
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, client_timeout=SECONDS, **options)
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


def test_inputs_and_outputs(shm_client, region):
    sent = np.arange(8, dtype=np.float32).reshape(2, 4)
    wanted = triton.InferRequestedOutput("y")
    wanted.set_shared_memory("r", 40, 8192)
    for _ in range(3):  # the second time its look is known
        sent += 1
        result = shm_client.infer("echo_fp32", [in_region(sent, region, 64)], outputs=[wanted], client_timeout=SECONDS)
        described = result.get_output("y")
        assert (list(described.shape), described.datatype) == ([2, 4], "FP32")
        assert described.parameters["shared_memory_region"].string_param == "r"
        assert described.parameters["shared_memory_byte_size"].int64_param == 32
        assert list(result.get_response().raw_output_contents) == [b""]
        np.testing.assert_array_equal(np.frombuffer(region.buf, np.float32, 8, 8192).reshape(2, 4), sent)


def test_some_in_shared_memory_and_some_in_the_message(shm_client, region):
    a = np.array([[1, 2], [3, 4]], np.float32)
    b = np.arange(6, dtype=np.int32).reshape(2, 3)
    for inputs in (
        [in_region(a, region, 0, "a"), tensor("b", b)],
        [tensor("a", a), in_region(b, region, 128, "b", "INT32")],
    ):
        wanted = triton.InferRequestedOutput("twice")
        wanted.set_shared_memory("r", 24, 1000)
        result = shm_client.infer("pair", inputs, outputs=[triton.InferRequestedOutput("sum"), wanted])
        assert result.as_numpy("sum").tolist() == [[3], [7]]
        assert np.frombuffer(bytes(region.buf[1000:1024]), np.int32).tolist() == (2 * b).ravel().tolist()


def test_the_output_alone_in_shared_memory(shm_client, region):
    wanted = triton.InferRequestedOutput("y")
    wanted.set_shared_memory("r", 16, 128)
    for n in range(3):  # the second time its look is known
        sent = np.full((1, 4), n, np.float32)
        shm_client.infer("echo_fp32", [tensor("x", sent)], outputs=[wanted], client_timeout=SECONDS)
        np.testing.assert_array_equal(np.frombuffer(region.buf, np.float32, 4, 128)[None], sent)


def test_text(shm_client, region):
    texts = [b"ab", "ä".encode(), b"", b"d"]
    data = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    region.buf[: len(data)] = data
    given = triton.InferInput("x", [1, 4], "BYTES")
    given.set_shared_memory("r", len(data), 0)
    result = shm_client.infer("echo_bytes", [given], client_timeout=SECONDS)
    assert result.as_numpy("y").tolist() == [texts]
    region.buf[4] = 0xFF
    assert "is not UTF-8" in refusal(shm_client.infer, "echo_bytes", [given])[1]


def test_status(shm_client, region):
    (found,) = shm_client.get_system_shared_memory_status(client_timeout=SECONDS).regions.values()
    assert (found.name, found.key, found.offset, found.byte_size) == ("r", f"/{region.name}", 0, 16384)
    key = f"/{region.name}"
    assert refusal(shm_client.register_system_shared_memory, "r", key, 1) == (
        "ALREADY_EXISTS",
        "shared memory region 'r' already in manager",
    )
    code, text = refusal(shm_client.register_system_shared_memory, "s", "/no such", 1)
    assert (code, text.startswith("Unable to open shared memory region: 's'")) == ("INVALID_ARGUMENT", True)
    assert refusal(shm_client.get_system_shared_memory_status, "s") == (
        "NOT_FOUND",
        "Unable to find shared memory region: 's'",
    )


def test_bounds(shm_client, region):
    def refused(size, offset, **options):
        given = triton.InferInput("x", [1, 4], "FP32")
        given.set_shared_memory("r", size, offset)
        return refusal(shm_client.infer, "echo_fp32", [given], **options)

    assert "Invalid offset + byte size for shared memory region: 'r'" in refused(16, 16380)[1]
    assert "Expected 16, got 12" in refused(12, 0)[1]
    wanted = triton.InferRequestedOutput("y")
    wanted.set_shared_memory("r", 8, 0)
    assert refused(16, 0, outputs=[wanted]) == (
        "INTERNAL",
        "shared memory size specified with the request for output 'y' (8 bytes) should be at least 16 bytes to hold "
        "the results",
    )


def test_a_region_that_is_given_up_or_cut_off(shm_client, shm_server):
    memory = SharedMemory(create=True, size=4096)
    try:
        shm_client.register_system_shared_memory("r", memory.name, 4096, client_timeout=SECONDS)
        given = in_region(np.zeros((1, 4), np.float32), memory, 4000)
        shm_client.infer("echo_fp32", [given], client_timeout=SECONDS)
        with open(f"/dev/shm/{memory.name}", "r+b") as file:
            file.truncate(0)
        assert "has shrunk to 0 bytes" in refusal(shm_client.infer, "echo_fp32", [given])[1]
        shm_client.unregister_system_shared_memory("r", client_timeout=SECONDS)
        assert refusal(shm_client.infer, "echo_fp32", [given]) == (
            "NOT_FOUND",
            "Unable to find shared memory region: 'r'",
        )
        assert shm_client.is_server_live(client_timeout=SECONDS)
    finally:
        memory.close()
        memory.unlink()


@pytest.mark.parametrize("way", ["grpc", "http"])
def test_a_region_that_is_given_up_while_a_request_runs(serve, tmp_path, way):
    """The request is answered where it was to be, and not where the name leads by then."""
    write_gated(tmp_path, "held")
    server = serve(tmp_path, "--allow-client-shm", "true", "--inline-below-us", 0)
    kind, address = (triton, server.address) if way == "grpc" else (triton_http, server.http.removeprefix("http://"))
    mine, theirs = (SharedMemory(create=True, size=4096) for _ in range(2))
    try:
        with triton.InferenceServerClient(server.address) as client, ThreadPoolExecutor(1) as threads:
            client.register_system_shared_memory("o", mine.name, 4096)
            given = kind.InferInput("x", [1, 1], "FP32")
            given.set_data_from_numpy(np.array([[HELD]], np.float32))
            wanted = kind.InferRequestedOutput("y")
            wanted.set_shared_memory("o", 4)
            call = threads.submit(kind.InferenceServerClient(address).infer, "held", [given], outputs=[wanted])
            eventually(lambda: client.is_server_live() and at_work(tmp_path, "held"))
            client.unregister_system_shared_memory("o")
            client.register_system_shared_memory("o", theirs.name, 4096)
            let_go(tmp_path, "held")
            call.result(SECONDS)
        assert np.frombuffer(mine.buf, np.float32, 1).item() == HELD
        assert not any(theirs.buf)
    finally:
        for memory in (mine, theirs):
            memory.close()
            memory.unlink()


def test_cuda_is_told_that_there_is_none(shm_client):
    assert not shm_client.get_cuda_shared_memory_status(client_timeout=SECONDS).regions
    shm_client.unregister_cuda_shared_memory(client_timeout=SECONDS)
    code, text = refusal(shm_client.register_cuda_shared_memory, "c", b"aGFuZGxl", 0, 64)
    assert (code, "GPUs not supported" in text) == ("UNIMPLEMENTED", True)


def test_it_is_off_by_default(client):
    assert "system_shared_memory" not in client.get_server_metadata(client_timeout=SECONDS).extensions
    disabled = (
        "UNIMPLEMENTED",
        "Client shared memory is disabled. Start the server with '--allow-client-shm true' to enable.",
    )
    assert refusal(client.register_system_shared_memory, "r", "/r", 64) == disabled
    assert refusal(client.unregister_cuda_shared_memory) == disabled
    given = triton.InferInput("x", [1, 4], "FP32")
    given.set_shared_memory("r", 16, 0)
    assert refusal(client.infer, "echo_fp32", [given]) == disabled


@pytest.mark.skipif(not PERF_ANALYZER.exists(), reason=f"no perf_analyzer: {MISSING}")
def test_perf_analyzer(shm_server):
    with grpc.insecure_channel(shm_server.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        report = run_perf_analyzer(
            [PERF_ANALYZER, "-m", "pair", "-u", shm_server.address, "-i", "grpc", "--shared-memory", "system",
             "-b", 4, "--concurrency-range", 4, "--measurement-mode", "count_windows",
             "--measurement-request-count", 50, "-s", 90, "--output-shared-memory-size", 4096],
        )  # fmt: skip
        assert "Throughput:" in report
        assert statistics(stub, "pair").inference_stats.fail.count == 0
