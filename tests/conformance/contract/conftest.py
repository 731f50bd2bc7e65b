from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory

import pytest
from conformance.contract.ways import Grpc, Rest
from e2e.conftest import pytest_runtest_makereport, shared  # noqa: F401
from e2e.gated import write_gated
from e2e.onnx_models import identity, pair, scale, write
from tritonclient.grpc import service_pb2 as pb

MEMORY = "/v2/systemsharedmemory"


def write_models(root):
    """A model for each row that needs one of its own; the names of them."""
    write(root, "m", identity("FP32", "N", 4))
    write(root, "text", identity("BYTES", "N", 4))
    write(root, "half", identity("FP16", "N", 4))
    write(root, "brain", identity("BF16", "N", 4))
    write(root, "pair", pair())
    write(root, "free", scale(3, "N", "D"))
    write(root, "whole", scale(2, "N", 4), "max_batch = 8\nsplit_oversize = false")
    write(root, "versions", scale(1, "N", 1), 'versions = "all"')
    write(root, "versions", scale(2, "N", 1), version=2)
    write(root, "levels", scale(2, "N", 1), "priority_levels = 3")
    write(root, "broken", b"this is no ONNX file")
    write_gated(root, "held")
    write_gated(root, "queue", "[queue]\nmax_requests = 2")
    return sorted(path.name for path in root.iterdir())


@contextmanager
def running(tmp_path_factory, transport, kind):
    """A server of the `plain` kind is as by default; an `open` one allows clients all that can be allowed."""
    root = tmp_path_factory.mktemp(f"{transport}-{kind}")
    flags = ["--inline-below-us", 0]
    names = write_models(root)
    if kind == "open":
        write_gated(root, "loading", backend="SlowToLoad")
        flags += ["--allow-client-shm", "true", "--model-control-mode", "explicit", "--load-models", ",".join(names)]
    server = shared(root, transport, *flags)
    yield next(server)
    assert next(server, None) is None


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """`servers(transport, kind)`: one of each, started when it is first asked for."""
    started = {}

    def get(transport, kind):
        if (transport, kind) not in started:
            context = running(tmp_path_factory, transport, kind)
            started[transport, kind] = context, context.__enter__()
        return started[transport, kind][1]

    yield get
    for context, _ in started.values():
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def ways(servers):
    """`ways(name, kind)`: how a question is put. REST is the same beside both transports, and asked beside one."""
    made = {}

    def get(name, kind="plain"):
        if (name, kind) not in made:
            server = servers("native" if name == "rest" else name, kind)
            made[name, kind] = Rest(server) if name == "rest" else Grpc(server)
        return made[name, kind]

    yield get
    for way in made.values():
        way.close()


@pytest.fixture
def region():
    """`region(way)`: 64 octets of shared memory, registered as `r`; returns what registers it another time."""
    memory = SharedMemory(create=True, size=64)
    ways = []

    def register(way):
        ways.append(way)

        def again():
            if way.protocol == "grpc":
                message = pb.SystemSharedMemoryRegisterRequest(name="r", key=f"/{memory.name}", byte_size=64)
                return way.call("SystemSharedMemoryRegister", message)
            return way.ask(f"{MEMORY}/region/r/register", {"key": f"/{memory.name}", "byte_size": 64})

        assert again().status in ("OK", 200)
        return again

    register.memory = memory
    yield register
    for way in ways:
        if way.protocol == "grpc":
            way.call("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest())
        else:
            way.ask(f"{MEMORY}/unregister", {})
    memory.close()
    memory.unlink()
