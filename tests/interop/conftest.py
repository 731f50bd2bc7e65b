import grpc
import pytest
from e2e.calls import connect, floats, occupy, request
from e2e.conftest import (  # noqa: F401
    pytest_generate_tests,
    pytest_runtest_makereport,
    shared,
    stub_of,
    transport,
)
from e2e.gated import write_gated
from e2e.onnx_models import identity, pair, scale, write
from e2e.server_process import eventually
from tritonclient.grpc import service_pb2_grpc


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """A model for each thing that the clients ask."""
    root = tmp_path_factory.mktemp("models")
    write(root, "echo_fp32", identity("FP32", "N", 4))
    write(root, "echo_bytes", identity("BYTES", "N", 4))
    write(root, "free", scale(3, "N", "D"))
    write(root, "pair", pair())
    write(root, "broken", b"this is no ONNX file")
    write_gated(root, "held")
    write_gated(root, "queue", "[queue]\nmax_requests = 2")
    return root


@pytest.fixture(scope="session")
def server(transport, repository):  # noqa: F811 - a fixture, not the import
    """One server for all clients of a transport."""
    yield from shared(repository, transport, "--allow-client-shm", "true", "--inline-below-us", 0)


class Busy:
    """A server whose models `held` and `queue` are at work, the queue of the latter full, until it is let go."""

    def __init__(self, server):
        self._server = server
        self._channel = grpc.insecure_channel(server.address)
        connect(self._channel)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._held = [occupy(server, stub, model, 90) for model in ("held", "queue")]
        self._waiting = [stub.ModelInfer.future(request("queue", x=floats(n)), timeout=90) for n in range(2)]
        eventually(lambda: server.waiting("queue") == 2)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for held in self._held:
            held.let_go()
        assert all(call.result() for call in (*self._waiting, *(held.call for held in self._held)))
        self._channel.close()


@pytest.fixture
def busy(server):
    """For one test."""
    with Busy(server):
        yield
