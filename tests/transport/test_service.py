import asyncio

import pytest

from headrace.engine.control import ModelControl
from headrace.engine.lifecycle import Engine
from headrace.errors import InvalidRequest, ModelControlDisabled, Unimplemented
from headrace.repository.catalog import Catalog
from headrace.rpc import health_pb2, inference_pb2
from headrace.transport.admin import Admin
from headrace.transport.health import Health
from headrace.transport.repository import RepositoryAdmin
from headrace.transport.runtime_settings import RuntimeSettings
from headrace.transport.service import INFER_PATH, INFER_STREAM_PATH, service_table
from headrace.transport.shared_memory import SharedMemoryAdmin

PREFIX = "/inference.GRPCInferenceService/"
IMPLEMENTED = {
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelConfig",
    "ModelStatistics",
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "LogSettings",
    "TraceSetting",
}


TASKS = {"RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"}


class FakeEngine:
    live = True
    ready = True


def never_called(message, sink, received_ns, deadline_ns):
    raise AssertionError("no inference in these tests")


@pytest.fixture
def health():
    return Health()


@pytest.fixture
def table(health, tmp_path):
    catalog = Catalog()
    control = ModelControl(tmp_path, "none", Engine(catalog, None, None, None, None, 0))
    return service_table(
        Admin(FakeEngine(), catalog),
        health,
        never_called,
        SharedMemoryAdmin(None),
        RepositoryAdmin(control, catalog),
        RuntimeSettings(None, None, catalog),
    )


async def messages(*data):
    for item in data:
        yield item


def collect(handler, *data, limit=100):
    async def run():
        responses = handler(messages(*data))
        seen = []
        async for response in responses:
            seen.append(response)
            if len(seen) == limit:
                break
        await responses.aclose()
        return seen

    return asyncio.run(run())


def test_every_method_of_every_service_has_a_handler(table):
    methods = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    paths = {*table.unary, *table.streams, INFER_PATH, INFER_STREAM_PATH}
    assert {PREFIX + method.name for method in methods} == {path for path in paths if path.startswith(PREFIX)}
    assert {path.split("/")[1] for path in paths} == set(table.service_names)
    assert not table.unary.keys() & table.streams.keys()
    assert INFER_PATH not in table.unary
    assert table.infer is never_called


@pytest.mark.parametrize("name", sorted(IMPLEMENTED))
def test_a_malformed_message_is_an_invalid_request(table, name):
    with pytest.raises(InvalidRequest, match=f"^the request is not a valid inference.{name}Request message$"):
        table.unary[PREFIX + name](b"\x0a\x05abc")


@pytest.mark.parametrize("name", ["ServerLive", "ServerReady"])
def test_a_unary_method_takes_and_returns_bytes(table, name):
    assert table.unary[PREFIX + name](b"") == b"\x08\x01"


def test_health_check_and_list(table, health):
    health.set_serving(True)
    assert table.unary["/grpc.health.v1.Health/Check"](b"") == b"\x08\x01"
    listed = health_pb2.HealthListResponse.FromString(table.unary["/grpc.health.v1.Health/List"](b""))
    assert len(listed.statuses) == 2


def test_health_watch_takes_one_message(table):
    watch = table.streams["/grpc.health.v1.Health/Watch"]
    assert collect(watch, b"", limit=1) == [b"\x08\x02"]
    with pytest.raises(InvalidRequest, match=r"not a valid grpc.health.v1.HealthCheckRequest message"):
        collect(watch, b"\x0a\x05abc")
    with pytest.raises(InvalidRequest, match=r"ended without its grpc.health.v1.HealthCheckRequest message"):
        collect(watch)


def test_a_call_that_takes_its_time_is_a_stream_of_one_message_too(table):
    path = PREFIX + "RepositoryIndex"
    assert {PREFIX + name for name in TASKS} == table.tasks.keys()
    assert collect(table.streams[path], b"") == [asyncio.run(table.tasks[path](b""))]
    with pytest.raises(Unimplemented, match=r"^the call ended without a request message$"):
        collect(table.streams[path])
    with pytest.raises(InvalidRequest, match=r"^the request is not a valid inference.RepositoryIndexRequest message$"):
        collect(table.streams[path], b"\x0a\x05abc")
    with pytest.raises(ModelControlDisabled):
        collect(table.streams[PREFIX + "RepositoryModelLoad"], b"")
