from contextlib import ExitStack

import grpc
import pytest
import tritonclient.grpc as triton
from e2e.calls import SECONDS, connect
from e2e.gated import let_all_go
from e2e.h2_client import H2Client
from e2e.onnx_models import write_repository, write_slow_repository
from e2e.server_process import Server
from tritonclient.grpc import service_pb2_grpc

UNFORESEEN = ("internal error, correlation id", "Task exception was never retrieved", "Exception in callback", "Fatal ")
"""What a server's log must not hold at the end: errors that no caller can bring about."""


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """The models of the shared servers."""
    root = tmp_path_factory.mktemp("models")
    write_repository(root)
    return root


TRANSPORTS = {
    "native": ("--transport", "native"),
    "reference": ("--transport", "reference"),
    "workers": ("--transport", "native", "--grpc-workers", 2),
}
WITH_WORKERS = ("admin", "connections", "drain", "errors", "infer", "overload", "streams", "tls")
"""Files of tests of what workers have a part in."""


def pytest_generate_tests(metafunc):
    """On which transports a test runs that does not say so itself."""
    said = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "transport" in metafunc.fixturenames and "transport" not in said:
        with_workers = metafunc.module.__name__.rpartition("test_")[2] in WITH_WORKERS
        transports = [name for name in TRANSPORTS if with_workers or name != "workers"]
        metafunc.parametrize("transport", transports, indirect=True, scope="session")


@pytest.fixture(scope="session")
def transport(request):
    return request.param


@pytest.fixture(scope="session")
def server(transport, repository):
    """One server for all tests of a transport."""
    yield from shared(repository, transport)


@pytest.fixture(scope="session")
def slow_server(transport, tmp_path_factory):
    """Another for those that fill queues; with few models, so that its metrics are read quickly."""
    root = tmp_path_factory.mktemp("slow")
    write_slow_repository(root)
    # what is short on the whole runs on a thread as well: a held call would keep the server from reading
    yield from shared(root, transport, "--inline-below-us", 0)


def shared(root, transport, *flags):
    """Runs a server, which has to end cleanly whatever the tests did to it."""
    with Server(root, *TRANSPORTS[transport], *flags) as server:
        yield server
        let_all_go(root)
        assert server.stop() == 0, server.log
        found = [text for text in UNFORESEEN if text in server.log]
        assert not found, server.log


@pytest.fixture
def serve(transport):
    """Starts servers of the test's own: `serve(repository, *flags)`."""
    servers = []

    def start(repository, *flags, **options):
        servers.append(Server(repository, *TRANSPORTS[transport], *flags, **options))
        return servers[-1]

    start.servers = servers
    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def client(server):
    """tritonclient's."""
    with triton.InferenceServerClient(server.address) as client:
        assert client.is_server_live(client_timeout=SECONDS)
        yield client


@pytest.fixture
def channel(server):
    """grpcio's, as its makers configure it; connected."""
    with grpc.insecure_channel(server.address) as channel:
        connect(channel)
        yield channel


@pytest.fixture
def stub(channel):
    """The RPCs, in messages."""
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
def stub_of():
    """The RPCs of a server of the test's own: `stub_of(server)`."""
    with ExitStack() as stack:
        yield lambda server: service_pb2_grpc.GRPCInferenceServiceStub(
            stack.enter_context(grpc.insecure_channel(server.address))
        )


@pytest.fixture
def h2(server):
    """A connection by hand."""
    with H2Client(server.port) as client:
        yield client


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows what its servers said."""
    report = yield
    if report.failed:
        values = getattr(item, "funcargs", {}).values()
        servers = [value for value in values if isinstance(value, Server)]
        servers += [server for value in values for server in getattr(value, "servers", ())]
        report.sections += [(f"log of {server}", server.log_since_ready[-8000:]) for server in servers]
    return report
