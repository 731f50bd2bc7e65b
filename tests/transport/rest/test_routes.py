import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError, InvalidRequest
from headrace.rpc import inference_pb2 as pb
from headrace.transport.rest.routes import INFER_PATHS, ROUTES
from headrace.transport.service import INFERENCE, ServiceTable


def route(verb, path):
    (found,) = [one for one in ROUTES if (one.verb, one.path) == (verb, path)]
    return found


def request(verb, path, variables=None, body=None):
    """The message that a route makes."""
    found = route(verb, path)
    kind = getattr(pb, INFERENCE.methods_by_name[found.rpc].input_type.name)
    return kind.FromString(found.request(variables or {}, body or {}))


def test_no_route_is_there_twice_and_every_rpc_is_reached():
    assert len({(one.verb, one.path) for one in ROUTES}) == len(ROUTES)
    without = {"ServerLive", "ServerReady", "ModelInfer", "ModelStreamInfer"}  # routes of their own, and gRPC alone
    assert {one.rpc for one in ROUTES} == {method.name for method in INFERENCE.methods} - without
    assert not set(INFER_PATHS) & {one.path for one in ROUTES}


@pytest.mark.parametrize("found", ROUTES, ids=lambda one: f"{one.verb} {one.path}")
def test_every_variable_has_a_field(found):
    variables = {part[1:-1]: "7" for part in found.path.split("/") if part.startswith("{")}
    body = {"key": "k", "byte_size": 1, "raw_handle": {"b64": ""}} if found.path.endswith("register") else {}
    message = getattr(pb, INFERENCE.methods_by_name[found.rpc].input_type.name).FromString(
        found.request(variables, body)
    )
    assert {getattr(message, found.variables[name]) for name in variables} <= {"7"}


@pytest.mark.parametrize(
    ("verb", "path", "variables", "body", "message"),
    [
        ("GET", "/v2", {}, {}, pb.ServerMetadataRequest()),
        ("GET", "/v2/models/{model}", {"model": "m"}, {}, pb.ModelMetadataRequest(name="m")),
        ("GET", "/v2/models/{model}/versions/{version}/config", {"model": "m", "version": "3"}, {},
         pb.ModelConfigRequest(name="m", version="3")),
        ("GET", "/v2/models/stats", {}, {}, pb.ModelStatisticsRequest()),
        ("POST", "/v2/repository/index", {}, {}, pb.RepositoryIndexRequest()),
        ("POST", "/v2/repository/index", {}, {"ready": True, "else": 1}, pb.RepositoryIndexRequest(ready=True)),
        ("POST", "/v2/repository/models/{model}/load", {"model": "m"}, {},
         pb.RepositoryModelLoadRequest(model_name="m")),
        ("POST", "/v2/repository/models/{model}/load", {"model": "m"},
         {"parameters": {"config": "{}", "file:1/model.onnx": "AAE="}},
         pb.RepositoryModelLoadRequest(model_name="m", parameters={
             "config": pb.ModelRepositoryParameter(string_param="{}"),
             "file:1/model.onnx": pb.ModelRepositoryParameter(bytes_param=b"\0\1")})),
        ("POST", "/v2/repository/models/{model}/unload", {"model": "m"}, {"parameters": {"unload_dependents": True}},
         pb.RepositoryModelUnloadRequest(model_name="m", parameters={
             "unload_dependents": pb.ModelRepositoryParameter(bool_param=True)})),
        ("GET", "/v2/systemsharedmemory/status", {}, {}, pb.SystemSharedMemoryStatusRequest()),
        ("GET", "/v2/systemsharedmemory/region/{region}/status", {"region": "r"}, {},
         pb.SystemSharedMemoryStatusRequest(name="r")),
        ("POST", "/v2/systemsharedmemory/region/{region}/register", {"region": "r"},
         {"key": "/k", "offset": 4, "byte_size": 8, "name": "of no meaning"},
         pb.SystemSharedMemoryRegisterRequest(name="r", key="/k", offset=4, byte_size=8)),
        ("POST", "/v2/systemsharedmemory/unregister", {}, {}, pb.SystemSharedMemoryUnregisterRequest()),
        ("POST", "/v2/cudasharedmemory/region/{region}/register", {"region": "r"},
         {"raw_handle": {"b64": "AAE="}, "device_id": 1, "byte_size": 8},
         pb.CudaSharedMemoryRegisterRequest(name="r", raw_handle=b"\0\1", device_id=1, byte_size=8)),
        ("GET", "/v2/models/{model}/trace/setting", {"model": "m"}, {}, pb.TraceSettingRequest(model_name="m")),
        ("POST", "/v2/trace/setting", {},
         {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "5", "log_frequency": 2, "trace_file": None},
         pb.TraceSettingRequest(settings={
             "trace_level": pb.TraceSettingRequest.SettingValue(value=["TIMESTAMPS", "TENSORS"]),
             "trace_rate": pb.TraceSettingRequest.SettingValue(value=["5"]),
             "log_frequency": pb.TraceSettingRequest.SettingValue(value=["2"]),
             "trace_file": pb.TraceSettingRequest.SettingValue()})),
        ("POST", "/v2/logging", {}, {"log_info": False, "log_verbose_level": 1, "log_file": "f", "log_format": None},
         pb.LogSettingsRequest(settings={
             "log_info": pb.LogSettingsRequest.SettingValue(bool_param=False),
             "log_verbose_level": pb.LogSettingsRequest.SettingValue(uint32_param=1),
             "log_file": pb.LogSettingsRequest.SettingValue(string_param="f")})),
    ],
)  # fmt: skip
def test_requests(verb, path, variables, body, message):
    assert request(verb, path, variables, body) == message


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v2/repository/index", [], "the request's JSON is '[]', expected an object"),
        ("/v2/repository/index", {"ready": "yes"}, "Unable to parse 'ready': got 'yes', expected true or false"),
        ("/v2/systemsharedmemory/region/{region}/register", {"byte_size": 1},
         "Shared memory register request has no 'key' field"),
        ("/v2/systemsharedmemory/region/{region}/register", {"key": "k"},
         "Shared memory register request has no 'byte_size' field"),
        ("/v2/systemsharedmemory/region/{region}/register", {"key": "k", "byte_size": -1}, "Unable to parse"),
        ("/v2/cudasharedmemory/region/{region}/register", {"raw_handle": "AAE="},
         "Shared memory register request has no 'raw_handle' field with a member 'b64'"),
        ("/v2/cudasharedmemory/region/{region}/register", {"raw_handle": {"b64": "%"}},
         "Unable to parse 'raw_handle': expected a string in base64"),
        ("/v2/cudasharedmemory/region/{region}/register", {"raw_handle": {"b64": 1}},
         "Unable to parse 'raw_handle': expected a string in base64"),
        ("/v2/repository/models/{model}/load", {"parameters": []},
         "Unable to parse 'parameters': got '[]', expected an object"),
        ("/v2/repository/models/{model}/load", {"parameters": {"config": {}}},
         "Unable to parse parameter 'config': got '{}', expected a string or a number"),
        ("/v2/repository/models/{model}/load", {"parameters": {"file:1/m": "ä"}}, "Unable to parse 'file:1/m'"),
        ("/v2/trace/setting", {"trace_level": {}}, "Unable to parse 'trace_level': got '{}', expected strings"),
        ("/v2/logging", {"log_info": 0.5}, "Unable to parse 'log_info': got '0.5', expected a string or a number"),
    ],
)  # fmt: skip
def test_what_is_wrong(path, body, says):
    with pytest.raises(InvalidRequest) as caught:
        route("POST", path).request({}, body)
    assert str(caught.value).startswith(says)


MEMBERS = st.sampled_from(["key", "byte_size", "offset", "raw_handle", "b64", "parameters", "file:x", "ready", "n"])
BODIES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MEMBERS, inner, max_size=5),
)


@given(st.sampled_from([one for one in ROUTES if one.has_body]), BODIES)
def test_whatever_comes_only_errors_of_ours_go(found, body):
    try:
        found.request({}, body)
    except HeadraceError:
        return


@pytest.mark.parametrize(
    ("verb", "path", "message", "expected"),
    [
        ("GET", "/v2/models/{model}/ready", pb.ModelReadyResponse(ready=True), {"ready": True}),
        ("GET", "/v2/models/{model}/config", pb.ModelConfigResponse(config={"name": "m"}), "m"),
        ("POST", "/v2/repository/index", pb.RepositoryIndexResponse(models=[
            pb.RepositoryIndexResponse.ModelIndex(name="a", version="1", state="READY"),
            pb.RepositoryIndexResponse.ModelIndex(name="b", state="UNAVAILABLE", reason="why")]),
         [{"name": "a", "version": "1", "state": "READY"}, {"name": "b", "state": "UNAVAILABLE", "reason": "why"}]),
        ("GET", "/v2/systemsharedmemory/status", pb.SystemSharedMemoryStatusResponse(regions={
            "r": pb.SystemSharedMemoryStatusResponse.RegionStatus(name="r", key="k", offset=1, byte_size=2)}),
         [{"name": "r", "key": "k", "offset": 1, "byte_size": 2}]),
        ("POST", "/v2/systemsharedmemory/unregister", pb.SystemSharedMemoryUnregisterResponse(), None),
        ("POST", "/v2/repository/models/{model}/load", pb.RepositoryModelLoadResponse(), None),
        ("GET", "/v2/trace/setting", pb.TraceSettingResponse(settings={
            "trace_level": pb.TraceSettingResponse.SettingValue(value=["OFF"]),
            "trace_rate": pb.TraceSettingResponse.SettingValue(value=["1000"]),
            "trace_file": pb.TraceSettingResponse.SettingValue()}),
         {"trace_level": ["OFF"], "trace_rate": "1000", "trace_file": ""}),
        ("GET", "/v2/logging", pb.LogSettingsResponse(settings={
            "log_info": pb.LogSettingsResponse.SettingValue(bool_param=False),
            "log_verbose_level": pb.LogSettingsResponse.SettingValue(uint32_param=0),
            "log_file": pb.LogSettingsResponse.SettingValue(string_param="")}),
         {"log_info": False, "log_verbose_level": 0, "log_file": ""}),
    ],
)  # fmt: skip
def test_replies(verb, path, message, expected):
    made = route(verb, path).reply(message.SerializeToString())
    assert (made["name"] if isinstance(expected, str) else made) == expected


def test_a_route_asks_whoever_the_table_names():
    index = route("POST", "/v2/repository/index")
    metadata = route("GET", "/v2")

    async def slow(message):
        ready = pb.RepositoryIndexRequest.FromString(message).ready
        return pb.RepositoryIndexResponse(models=[{"name": str(ready), "state": "s"}]).SerializeToString()

    table = ServiceTable(
        unary={metadata.method: lambda _: pb.ServerMetadataResponse(name="n").SerializeToString()},
        streams={},
        infer=None,
        service_names=(),
        tasks={index.method: slow},
    )
    assert asyncio.run(metadata.call(table, {}, {})) == {"name": "n", "version": "", "extensions": []}
    assert asyncio.run(index.call(table, {}, {"ready": True})) == [{"name": "True", "state": "s"}]
