"""Every RPC and every route of the protocol and of Triton's extensions answers with the fields that it is to have."""

import json

import numpy as np
import pytest
from conformance.contract.ways import WAYS
from e2e.calls import SECONDS, floats, request
from e2e.server_process import eventually
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import model_config_pb2 as mc
from tritonclient.grpc import service_pb2 as pb

from headrace import __version__

EXTENSIONS = [
    "classification", "model_repository", "model_repository(unload_dependents)", "schedule_policy",
    "model_configuration", "binary_tensor_data", "parameters", "statistics", "trace", "logging",
]  # fmt: skip
"""Those of Triton's that a plain server has, in Triton's order; `sequence` comes with sequence batching."""
GRPC = WAYS[:2]
PAIR = {"a": floats([1, 2], [3, 4]), "b": np.arange(6, dtype=np.int32).reshape(2, 3)}


@pytest.fixture
def stub(request, ways):
    return ways(request.param).stub


def on_grpc(rpc):
    """A row for each transport."""
    return pytest.mark.parametrize("stub", [pytest.param(way, id=f"rpc {rpc}, {way}") for way in GRPC], indirect=True)


@on_grpc("ServerLive, ServerReady")
def test_server_state(stub):
    assert stub.ServerLive(pb.ServerLiveRequest(), timeout=SECONDS).live is True
    assert stub.ServerReady(pb.ServerReadyRequest(), timeout=SECONDS).ready is True


@on_grpc("ServerMetadata")
def test_server_metadata(stub):
    told = stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=SECONDS)
    assert (told.name, told.version) == ("headrace", __version__)
    assert [one for one in told.extensions if one != "sequence"] == EXTENSIONS


@on_grpc("ModelReady")
def test_model_ready(stub):
    for version in ("", "1"):
        assert stub.ModelReady(pb.ModelReadyRequest(name="m", version=version), timeout=SECONDS).ready is True


@on_grpc("ModelMetadata")
def test_model_metadata(stub):
    told = stub.ModelMetadata(pb.ModelMetadataRequest(name="pair"), timeout=SECONDS)
    assert (told.name, list(told.versions), told.platform) == ("pair", ["1"], "onnxruntime_onnx")
    inputs, outputs = ([(t.name, t.datatype, list(t.shape)) for t in side] for side in (told.inputs, told.outputs))
    assert inputs == [("a", "FP32", [-1, 2]), ("b", "INT32", [-1, 3])]  # with the batch dimension
    assert outputs == [("sum", "FP32", [-1, 1]), ("twice", "INT32", [-1, 3])]


@on_grpc("ModelMetadata, versions")
def test_model_metadata_versions(stub):
    for version, versions in (("", ["1", "2"]), ("1", ["1"])):
        asked = pb.ModelMetadataRequest(name="versions", version=version)
        assert list(stub.ModelMetadata(asked, timeout=SECONDS).versions) == versions


@on_grpc("ModelConfig")
def test_model_config(stub):
    config = stub.ModelConfig(pb.ModelConfigRequest(name="pair"), timeout=SECONDS).config
    assert (config.name, config.max_batch_size, config.platform) == ("pair", 64, "onnxruntime_onnx")
    assert [(t.name, list(t.dims)) for t in config.input] == [("a", [2]), ("b", [3])]  # without the batch dimension
    assert [t.name for t in config.output] == ["sum", "twice"]
    assert config.input[0].data_type == mc.TYPE_FP32
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert config.model_transaction_policy.decoupled is False


@on_grpc("ModelInfer")
def test_model_infer(stub):
    told = stub.ModelInfer(request("pair", id="7", **PAIR), timeout=SECONDS)
    assert (told.model_name, told.model_version, told.id) == ("pair", "1", "7")
    outputs = [(t.name, t.datatype, list(t.shape)) for t in told.outputs]
    assert outputs == [("sum", "FP32", [2, 1]), ("twice", "INT32", [2, 3])]
    assert list(told.raw_output_contents) == [floats([3], [7]).tobytes(), (2 * PAIR["b"]).tobytes()]
    assert not any(t.HasField("contents") for t in told.outputs)


@on_grpc("ModelStreamInfer")
def test_model_stream_infer(stub):
    asked = [request("m", id=str(n), x=floats([n, 2, 3, 4])) for n in range(10)]
    told = list(stub.ModelStreamInfer(iter(asked), timeout=SECONDS))
    assert [one.infer_response.id for one in told] == [str(n) for n in range(10)]  # in the order of the requests
    assert [one.error_message for one in told] == [""] * 10
    assert np.frombuffer(told[3].infer_response.raw_output_contents[0], np.float32).tolist() == [3, 2, 3, 4]


@on_grpc("ModelStatistics")
def test_model_statistics(stub):
    def told():
        (one,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name="whole"), timeout=SECONDS).model_stats
        return one

    before = told()
    for rows in (1, 3):
        stub.ModelInfer(request("whole", x=np.zeros((rows, 4), np.float32)), timeout=SECONDS)
    after = told()
    assert (after.name, after.version) == ("whole", "1")
    assert after.last_inference > 1_600_000_000_000  # ms since 1970
    assert after.inference_count - before.inference_count == 4  # rows
    assert after.execution_count - before.execution_count == 2
    for phase in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        now, then = getattr(after.inference_stats, phase), getattr(before.inference_stats, phase)
        assert now.count - then.count == 2
        assert now.ns > then.ns
    assert after.inference_stats.fail.count == before.inference_stats.fail.count
    assert after.inference_stats.cache_hit.count == after.inference_stats.cache_miss.count == 0
    assert {1, 3} <= {batch.batch_size for batch in after.batch_stats}
    assert all(batch.compute_infer.count and batch.compute_infer.ns for batch in after.batch_stats)


@on_grpc("RepositoryIndex")
def test_repository_index(stub):
    told = stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=SECONDS).models
    index = {(one.name, one.version): one for one in told}
    assert (index["m", "1"].state, index["m", "1"].reason) == ("READY", "")
    assert (index["broken", "1"].state, bool(index["broken", "1"].reason)) == ("UNAVAILABLE", True)
    ready = stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True), timeout=SECONDS).models
    assert {(one.name, one.version) for one in ready} == set(index) - {("broken", "1")}


@pytest.mark.parametrize("way", [pytest.param(way, id=f"rpc RepositoryModelUnload, Load, {way}") for way in GRPC])
def test_repository_control(ways, way):
    stub = ways(way, "open").stub
    assert (
        stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="text"), timeout=SECONDS).ByteSize() == 0
    )
    eventually(lambda: ways(way, "open").call("ModelReady", pb.ModelReadyRequest(name="text")).status == "NOT_FOUND")
    assert stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="text"), timeout=SECONDS).ByteSize() == 0
    assert stub.ModelReady(pb.ModelReadyRequest(name="text"), timeout=SECONDS).ready


@pytest.mark.parametrize("way", [pytest.param(way, id=f"rpc SystemSharedMemory*, {way}") for way in GRPC])
def test_system_shared_memory(ways, way, region):
    stub = ways(way, "open").stub
    region(ways(way, "open"))
    for name in ("", "r"):
        told = stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(name=name), timeout=SECONDS).regions
        assert set(told) == {"r"}
        one = told["r"]
        assert (one.name, one.key, one.offset, one.byte_size) == ("r", f"/{region.memory.name}", 0, 64)
    stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(name=""), timeout=SECONDS)  # all
    assert not stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(), timeout=SECONDS).regions


@pytest.mark.parametrize("way", [pytest.param(way, id=f"rpc CudaSharedMemory*, {way}") for way in GRPC])
def test_cuda_shared_memory(ways, way):
    stub = ways(way, "open").stub
    assert not stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest(), timeout=SECONDS).regions
    told = stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest(), timeout=SECONDS)
    assert told.ByteSize() == 0  # perf_analyzer asks so before it begins


@on_grpc("TraceSetting")
def test_trace_setting(stub):
    asked = pb.TraceSettingRequest(model_name="m")
    asked.settings["trace_rate"].value.append("5")
    told = stub.TraceSetting(asked, timeout=SECONDS).settings
    assert (list(told["trace_rate"].value), list(told["trace_level"].value)) == (["5"], ["OFF"])
    back = pb.TraceSettingRequest(model_name="m")
    back.settings["trace_rate"].SetInParent()
    assert list(stub.TraceSetting(back, timeout=SECONDS).settings["trace_rate"].value) != ["5"]


@on_grpc("LogSettings")
def test_log_settings(stub):
    told = stub.LogSettings(pb.LogSettingsRequest(), timeout=SECONDS).settings
    assert (told["log_info"].bool_param, told["log_verbose_level"].uint32_param) == (True, 0)
    assert told["log_format"].string_param == "ISO8601"


@pytest.mark.parametrize("way", [pytest.param(way, id=f"rpc grpc.health.v1.Health, {way}") for way in GRPC])
def test_health(ways, way):
    health = health_pb2_grpc.HealthStub(ways(way).channel)
    for service in ("", "inference.GRPCInferenceService"):
        asked = health_pb2.HealthCheckRequest(service=service)
        assert health.Check(asked, timeout=SECONDS).status == health_pb2.HealthCheckResponse.SERVING


# --- routes -----------------------------------------------------------------------------------------------------------

MODELS = ("/v2/models/versions", "/v2/models/versions/versions/1")


def rest(*rows):
    return pytest.mark.parametrize("path", [pytest.param(path, id=f"rest {verb} {path}") for verb, path in rows])


@pytest.fixture
def http(ways):
    return ways("rest")


@rest(("GET", "/v2"))
def test_rest_server(http, path):
    told = http.ask(path)
    assert (told.status, told.fields["content-type"]) == (200, "application/json")
    assert (told.reply["name"], told.reply["version"]) == ("headrace", __version__)
    assert [one for one in told.reply["extensions"] if one != "sequence"] == EXTENSIONS


@rest(("GET", "/v2/health/live"), ("GET", "/v2/health/ready"))
def test_rest_health(http, path):
    told = http.ask(path)
    assert (told.status, told.reply) == (200, {path.rpartition("/")[2]: True})  # Triton's clients read the status alone


@rest(*(("GET", path) for path in MODELS))
def test_rest_metadata(http, path):
    told = http.ask(path).reply
    assert (told["name"], told["platform"]) == ("versions", "onnxruntime_onnx")
    assert told["versions"] == (["1"] if path.endswith("1") else ["1", "2"])
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}]
    assert told["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}]


@rest(*(("GET", f"{path}/ready") for path in MODELS))
def test_rest_model_ready(http, path):
    assert http.ask(path).status == 200


@rest(*(("GET", f"{path}/config") for path in MODELS))
def test_rest_config(http, path):
    told = http.ask(path).reply
    assert (told["name"], told["max_batch_size"]) == ("versions", 64)
    assert (told["input"][0]["name"], told["input"][0]["data_type"], told["input"][0]["dims"]) == (
        "x",
        "TYPE_FP32",
        [1],
    )
    assert "dynamic_batching" in told


@rest(*(("GET", f"{path}/stats") for path in MODELS), ("GET", "/v2/models/stats"))
def test_rest_statistics(http, path):
    told = {(one["name"], one["version"]): one for one in http.ask(path).reply["model_stats"]}
    one = told["versions", "1"]
    assert ("versions", "2") in told or path.endswith("versions/1/stats")
    assert one["inference_stats"].keys() >= {
        "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
    }  # fmt: skip
    assert one["inference_stats"]["success"].keys() == {"count", "ns"}
    assert {type(one[name]) for name in ("inference_count", "execution_count", "last_inference")} == {int}


@rest(*(("POST", f"{path}/infer") for path in MODELS))
def test_rest_infer(http, path):
    told = http.ask(path, {"id": "7", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [3]}]})
    version = "1" if "/versions/1" in path else "2"
    assert (told.status, told.fields["content-type"]) == (200, "application/json")
    assert "inference-header-content-length" not in told.fields
    assert told.reply == {
        "id": "7", "model_name": "versions", "model_version": version,
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [3.0 * int(version)]}],
    }  # fmt: skip


@rest(("POST", "/v2/repository/index"))
def test_rest_index(http, path):
    for body in ({}, {"ready": False}, b""):
        told = http.ask(path, body, "POST").reply
        assert {"name": "m", "version": "1", "state": "READY"} in told
        assert any(one["name"] == "broken" and one["state"] == "UNAVAILABLE" and one["reason"] for one in told)
    assert {one["state"] for one in http.ask(path, {"ready": True}).reply} == {"READY"}


@rest(("POST", "/v2/repository/models/text/unload"))
def test_rest_control(ways, path):
    http = ways("rest", "open")
    told = http.ask(path, {"parameters": {"unload_dependents": False}})
    assert (told.status, told.reply) == (200, None)
    eventually(lambda: http.ask("/v2/models/text/ready").status == 404)
    assert http.ask("/v2/repository/models/text/load", {}).status == 200
    assert http.ask("/v2/models/text/ready").status == 200


@rest(("POST", "/v2/systemsharedmemory/region/r/register"))
def test_rest_system_memory(ways, path, region):
    http = ways("rest", "open")
    region(http)
    one = {"name": "r", "key": f"/{region.memory.name}", "offset": 0, "byte_size": 64}
    for status in ("/v2/systemsharedmemory/status", "/v2/systemsharedmemory/region/r/status"):
        assert http.ask(status).reply == [one]
    assert http.ask("/v2/systemsharedmemory/region/r/unregister", {}).status == 200
    assert http.ask("/v2/systemsharedmemory/unregister", {}).status == 200
    assert http.ask("/v2/systemsharedmemory/status").reply == []


@rest(("GET", "/v2/cudasharedmemory/status"))
def test_rest_cuda_memory(ways, path):
    http = ways("rest", "open")
    assert (http.ask(path).status, http.ask(path).reply) == (200, [])
    assert http.ask("/v2/cudasharedmemory/unregister", {}).status == 200


@rest(("GET", "/v2/trace/setting"), ("GET", "/v2/models/m/trace/setting"))
def test_rest_trace(http, path):
    before = http.ask(path).reply
    assert before["trace_level"] == ["OFF"]
    assert http.ask(path, {"trace_rate": "7"}).reply["trace_rate"] == "7"
    assert http.ask(path, {"trace_rate": None}).reply == before


@rest(("GET", "/v2/logging"))
def test_rest_logging(http, path):
    told = http.ask(path)
    assert told.reply["log_info"] is True
    assert http.ask(path, {"log_verbose_level": 0}).reply == told.reply


@rest(("GET", "/metrics"))
def test_metrics(http, path):
    status, text = http.server.get(path)
    assert status == 200
    for name in (
        "nv_inference_request_success", "nv_inference_request_failure", "nv_inference_count", "nv_inference_exec_count",
        "nv_inference_request_duration_us", "nv_inference_queue_duration_us", "nv_inference_compute_input_duration_us",
        "nv_inference_compute_infer_duration_us", "nv_inference_compute_output_duration_us",
        "nv_inference_pending_request_count",
    ):  # fmt: skip
        assert f'{name}{{model="m"' in text
    for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER"):  # from the start, at 0
        assert f'nv_inference_request_failure{{model="m",reason="{reason}",version="1"}} ' in text


@rest(("GET", "/openapi.json"))
def test_description(http, path):
    told = http.ask(path).reply
    assert told["openapi"].startswith("3.")
    assert json.dumps(told["paths"]).count("{model}") > 5
