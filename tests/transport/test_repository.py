import asyncio

import pytest

from headrace.errors import InvalidRequest, Unimplemented
from headrace.repository.catalog import Catalog
from headrace.rpc import inference_pb2 as pb
from headrace.testing.condition import FakeCondition
from headrace.transport.repository import RepositoryAdmin


class FakeControl:
    def __init__(self):
        self.asked = []

    async def index(self):
        self.asked.append("index")

    async def load(self, name, config, files):
        self.asked.append(("load", name, config, files))

    async def unload(self, name, *, dependents):
        self.asked.append(("unload", name, dependents))


class Served:
    def __init__(self):
        self.condition = FakeCondition()


@pytest.fixture
def control():
    return FakeControl()


@pytest.fixture
def catalog():
    catalog = Catalog()
    catalog.ready("digits", 1, Served())
    catalog.loading("digits", 2)
    catalog.failed("broken", 1, "no such operator")
    catalog.failed("garbled", None, "model.toml: unknown key")
    return catalog


@pytest.fixture
def admin(control, catalog):
    return RepositoryAdmin(control, catalog)


def test_the_index_tells_state_and_reason(admin, control):
    def asked(**fields):
        reply = asyncio.run(admin.index(pb.RepositoryIndexRequest(**fields)))
        return [(m.name, m.version, m.state, m.reason) for m in reply.models]

    assert asked() == [
        ("broken", "1", "UNAVAILABLE", "no such operator"),
        ("digits", "1", "READY", ""),
        ("digits", "2", "LOADING", ""),
        ("garbled", "", "UNAVAILABLE", "model.toml: unknown key"),
    ]
    assert asked(ready=True) == [("digits", "1", "READY", "")]
    assert control.asked == ["index", "index"]


def test_the_index_tells_the_condition_of_what_serves(admin, catalog):
    def asked(**fields):
        reply = asyncio.run(admin.index(pb.RepositoryIndexRequest(**fields)))
        return [(m.state, m.reason) for m in reply.models if (m.name, m.version) == ("digits", "1")]

    served = Served()
    catalog.ready("digits", 1, served, "falls back to safe")
    assert asked() == [("READY", "falls back to safe")]
    served.condition.note = "1 of 2 instances lost"
    assert asked(ready=True) == [("READY", "1 of 2 instances lost; falls back to safe")]
    served.condition.usable = 0
    assert asked() == [("UNAVAILABLE", "1 of 2 instances lost; falls back to safe")]
    assert asked(ready=True) == []


def test_load_and_unload(admin, control):
    assert asyncio.run(admin.load(pb.RepositoryModelLoadRequest(model_name="m"))) == pb.RepositoryModelLoadResponse()
    request = pb.RepositoryModelUnloadRequest(model_name="m")
    request.parameters["unload_dependents"].bool_param = True
    assert asyncio.run(admin.unload(request)) == pb.RepositoryModelUnloadResponse()
    asyncio.run(admin.unload(pb.RepositoryModelUnloadRequest(model_name="n")))
    assert control.asked == [("load", "m", "", {}), ("unload", "m", True), ("unload", "n", False)]


@pytest.mark.parametrize(
    ("method", "request_class"),
    [
        ("index", pb.RepositoryIndexRequest),
        ("load", pb.RepositoryModelLoadRequest),
        ("unload", pb.RepositoryModelUnloadRequest),
    ],
)
def test_there_is_one_repository(admin, control, method, request_class):
    with pytest.raises(Unimplemented, match=r"^'repository_name' specification is not supported$"):
        asyncio.run(getattr(admin, method)(request_class(repository_name="r")))
    assert control.asked == []


def loading(**parameters):
    request = pb.RepositoryModelLoadRequest(model_name="m")
    for key, value in parameters.items():
        setattr(request.parameters[key], "string_param" if isinstance(value, str) else "bytes_param", value)
    return request


def test_what_a_client_brings_is_switched_off(admin, control):
    for request in (loading(config="{}"), loading(**{"file:1/model.onnx": b"x"})):
        with pytest.raises(Unimplemented, match=r"is switched off. Start the server with '--allow-\w+-override true'"):
            asyncio.run(admin.load(request))
    assert control.asked == []


def test_what_a_client_brings_is_handed_on(control, catalog):
    admin = RepositoryAdmin(control, catalog, allow_config=True, allow_files=True)
    asyncio.run(admin.load(loading(config="{}", **{"file:1/model.onnx": b"x"})))
    assert control.asked == [("load", "m", "{}", {"1/model.onnx": b"x"})]
    with pytest.raises(InvalidRequest, match="unknown parameter 'priority' of a load"):
        asyncio.run(admin.load(loading(priority="1")))
    wrong = loading()
    wrong.parameters["config"].int64_param = 5
    for request in (wrong, loading(config="")):
        with pytest.raises(InvalidRequest, match="'config' of a load: expected a ModelConfig in JSON, as text"):
            asyncio.run(admin.load(request))
    assert len(control.asked) == 1


def test_parameters_of_an_unload(admin, control):
    for key, field, text in (
        ("foo", "bool_param", "unknown parameter 'foo' of an unload, expected 'unload_dependents'"),
        ("unload_dependents", "string_param", "parameter 'unload_dependents' of an unload: expected a boolean"),
    ):
        request = pb.RepositoryModelUnloadRequest(model_name="m")
        setattr(request.parameters[key], field, True if field == "bool_param" else "x")
        with pytest.raises(InvalidRequest, match=text):
            asyncio.run(admin.unload(request))
    assert control.asked == []
