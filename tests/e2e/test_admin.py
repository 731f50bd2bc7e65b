"""What tritonclient learns about the server and its models, health, and reflection."""

import numpy as np
import pytest
import tritonclient.grpc as triton
from e2e.calls import SECONDS, floats, statistics, tensor
from e2e.onnx_models import DATATYPES, SHIPPED, scale, write
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import model_config_pb2 as mc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from headrace import __version__

EXTENSIONS = [
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
]


def test_live_and_ready(client):
    assert client.is_server_live(client_timeout=SECONDS)
    assert client.is_server_ready(client_timeout=SECONDS)
    assert client.is_model_ready("digits", client_timeout=SECONDS)
    assert client.is_model_ready("versions", "2", client_timeout=SECONDS)


def test_server_metadata(client):
    metadata = client.get_server_metadata(client_timeout=SECONDS)
    assert (metadata.name, metadata.version, list(metadata.extensions)) == ("headrace", __version__, EXTENSIONS)


def described(tensors):
    return [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in tensors]


def test_model_metadata(client):
    digits = client.get_model_metadata("digits", client_timeout=SECONDS)
    assert (digits.name, digits.platform, list(digits.versions)) == ("digits", "onnxruntime_onnx", ["1"])
    assert described(digits.inputs) == [("pixels", "FP32", [-1, 64])]
    assert described(digits.outputs) == [("probabilities", "FP32", [-1, 10]), ("label", "INT64", [-1])]
    fixed = client.get_model_metadata("fixed", client_timeout=SECONDS)
    assert described(fixed.inputs) == [("x", "FP32", [2, 3])]
    free = client.get_model_metadata("free", client_timeout=SECONDS)
    assert described(free.inputs) == [("x", "FP32", [-1, -1])]
    assert list(client.get_model_metadata("versions", client_timeout=SECONDS).versions) == ["1", "2"]
    assert list(client.get_model_metadata("versions", "1", client_timeout=SECONDS).versions) == ["1"]


@pytest.mark.parametrize("datatype", DATATYPES)
def test_each_datatype_is_called_by_its_name(client, datatype):
    name = f"echo_{datatype.lower()}"
    assert described(client.get_model_metadata(name, client_timeout=SECONDS).inputs) == [("x", datatype, [-1, 4])]
    (given,) = client.get_model_config(name, client_timeout=SECONDS).config.input
    assert mc.DataType.Name(given.data_type) == ("TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}")


def test_model_config(client):
    digits = client.get_model_config("digits", client_timeout=SECONDS).config
    assert (digits.name, digits.backend, digits.platform) == ("digits", "onnxruntime", "onnxruntime_onnx")
    assert digits.max_batch_size == 64
    assert digits.HasField("dynamic_batching")
    assert [(tensor.name, list(tensor.dims)) for tensor in digits.input] == [("pixels", [64])]
    assert [(tensor.name, list(tensor.dims)) for tensor in digits.output] == [("probabilities", [10]), ("label", [])]
    assert digits.instance_group[0].kind == mc.ModelInstanceGroup.KIND_CPU
    fixed = client.get_model_config("fixed", client_timeout=SECONDS).config
    assert (fixed.max_batch_size, fixed.HasField("dynamic_batching")) == (0, False)
    assert list(fixed.input[0].dims) == [2, 3]
    levels = client.get_model_config("levels", client_timeout=SECONDS).config.dynamic_batching
    assert (levels.priority_levels, levels.default_priority_level) == (3, 3)


def test_statistics_count_requests_rows_and_batches(client, stub):
    before = statistics(stub, "versions", "1")
    for rows in (1, 1, 3):
        client.infer("versions", [tensor("x", floats(*range(rows)))], model_version="1", client_timeout=SECONDS)
    after = statistics(stub, "versions", "1")
    assert (after.name, after.version) == ("versions", "1")
    assert after.inference_count - before.inference_count == 5
    assert after.execution_count - before.execution_count == 3
    assert after.last_inference > before.last_inference
    for phase in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        now, then = getattr(after.inference_stats, phase), getattr(before.inference_stats, phase)
        assert now.count - then.count == 3, phase
        assert now.ns > then.ns, phase
    sizes = {batch.batch_size: batch.compute_infer.count for batch in after.batch_stats}
    sizes_before = {batch.batch_size: batch.compute_infer.count for batch in before.batch_stats}
    assert {size: sizes[size] - sizes_before.get(size, 0) for size in sizes} == {1: 2, 3: 1}


def test_statistics_of_a_model_and_of_all(client):
    of_model = client.get_inference_statistics("versions", client_timeout=SECONDS).model_stats
    assert [(entry.name, entry.version) for entry in of_model] == [("versions", "1"), ("versions", "2")]
    of_all = client.get_inference_statistics(client_timeout=SECONDS).model_stats
    names = {entry.name for entry in of_all}
    assert {"digits", "versions", "pair"} <= names
    assert not {"broken", "misconfigured"} & names


def test_repository_index(client, stub):
    index = {(m.name, m.version): m for m in client.get_model_repository_index(client_timeout=SECONDS).models}
    assert index["digits", "1"].state == "READY"
    assert not index["digits", "1"].reason
    assert {version for name, version in index if name == "versions"} == {"1", "2"}
    assert index["broken", "1"].state == "UNAVAILABLE"
    assert "ONNX Runtime cannot load" in index["broken", "1"].reason
    assert "unknown key 'max_bach'" in index["misconfigured", ""].reason
    ready = stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True), timeout=SECONDS).models
    assert {(m.name, m.version) for m in ready} == set(index) - {("broken", "1"), ("misconfigured", "")}


# --- health and reflection --------------------------------------------------------------------------------------------

SERVING, UNKNOWN = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService"])
def test_health(channel, service):
    health = health_pb2_grpc.HealthStub(channel)
    asked = health_pb2.HealthCheckRequest(service=service)
    assert health.Check(asked, timeout=SECONDS).status == SERVING
    watch = health.Watch(asked, timeout=SECONDS)
    assert next(watch).status == SERVING
    watch.cancel()


def test_watching_an_unknown_service_goes_on(channel):
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="nobody"), timeout=SECONDS)
    assert next(watch).status == UNKNOWN
    assert watch.is_active()
    watch.cancel()


def test_reflection_describes_every_service(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert sorted(database.get_services()) == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    ]
    pool = DescriptorPool(database)
    described = pool.FindServiceByName("inference.GRPCInferenceService")
    own = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert [method.name for method in described.methods] == [method.name for method in own.methods]
    assert pool.FindMessageTypeByName("inference.ModelInferRequest").fields_by_name["raw_input_contents"].number == 7


# --- the shipped models -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHIPPED / "filetype/1/model.onnx").exists(), reason="models/filetype/fetch.py has not run")
def test_filetype_serves(client):
    metadata = client.get_model_metadata("filetype", client_timeout=SECONDS)
    assert described(metadata.inputs) == [("bytes", "INT32", [-1, 2048])]
    scores = client.infer("filetype", [tensor("bytes", np.full((1, 2048), 256, np.int32))], client_timeout=SECONDS)
    assert scores.as_numpy("target_label").shape == (1, 214)


def test_log_settings(client, server):
    before = client.get_log_settings(client_timeout=SECONDS).settings
    assert (before["log_info"].bool_param, before["log_verbose_level"].uint32_param) == (True, 0)
    try:
        told = client.update_log_settings({"log_verbose_level": 1, "log_info": False}, client_timeout=SECONDS).settings
        assert (told["log_info"].bool_param, told["log_verbose_level"].uint32_param) == (False, 1)
        with pytest.raises(InferenceServerException, match="it cannot be changed"):
            client.update_log_settings({"log_file": "/tmp/elsewhere"}, client_timeout=SECONDS)
    finally:
        client.update_log_settings({"log_verbose_level": 0, "log_info": True}, client_timeout=SECONDS)


def test_trace_settings(client, server):
    settings = {"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_count": "2"}
    told = client.update_trace_settings("digits", settings, client_timeout=SECONDS).settings
    assert list(told["trace_level"].value) == ["TIMESTAMPS"]
    try:
        for _ in range(4):
            client.infer("digits", [tensor("pixels", np.zeros((1, 64), np.float32))], client_timeout=SECONDS)
        server.await_log(lambda line: "trace of a request model=digits" in line and "execute_us=" in line)
    finally:
        client.update_trace_settings("digits", {"trace_level": ["OFF"]}, client_timeout=SECONDS)
    assert server.log.count("trace of a request model=digits") == 2
    assert list(client.get_trace_settings(client_timeout=SECONDS).settings["trace_level"].value) == ["OFF"]


def test_the_response_cache(serve, tmp_path):
    write(tmp_path, "m", scale(2, "N", 4), "response_cache = true")
    server = serve(tmp_path, "--response-cache-bytes", 100_000)
    with triton.InferenceServerClient(server.address) as client:
        for number in (1, 2, 1, 1):
            sent = np.full((1, 4), number, np.float32)
            got = client.infer("m", [tensor("x", sent)], client_timeout=SECONDS).as_numpy("y")
            np.testing.assert_array_equal(got, 2 * sent)
        assert client.get_model_config("m", client_timeout=SECONDS).config.response_cache.enable
        (found,) = client.get_inference_statistics("m", client_timeout=SECONDS).model_stats
    stats = found.inference_stats
    assert (stats.success.count, stats.queue.count, stats.compute_infer.count) == (4, 4, 2)
    assert (stats.cache_hit.count, stats.cache_miss.count) == (2, 2)
    assert (found.inference_count, found.execution_count) == (2, 2)
    assert server.metric("nv_cache_num_hits_per_model", model="m") == 2
