import subprocess
import sys

import pytest
from google.protobuf import descriptor_pool

from headrace.rpc import health_pb2, inference_pb2, model_config_pb2
from headrace.rpc.pool import POOL

OURS = "from headrace.rpc import health_pb2, inference_pb2, model_config_pb2"
THEIRS = "import tritonclient.grpc; from grpc_health.v1 import health_pb2 as their_health"

ROUND_TRIP = """
from tritonclient.grpc import service_pb2

tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 2])
ours = inference_pb2.ModelInferRequest(model_name="m", id="7", inputs=[tensor], raw_input_contents=[b"12345678"])
ours.parameters["priority"].uint64_param = 3
theirs = service_pb2.ModelInferRequest.FromString(ours.SerializeToString())
assert theirs.inputs[0].shape == [1, 2] and theirs.parameters["priority"].uint64_param == 3
assert theirs.raw_input_contents == [b"12345678"]
assert inference_pb2.ModelInferRequest.FromString(theirs.SerializeToString()) == ours
"""


@pytest.mark.parametrize("imports", [(OURS, THEIRS), (THEIRS, OURS)], ids=["ours first", "theirs first"])
@pytest.mark.parametrize("implementation", ["upb", "python"])
def test_lives_beside_the_clients_own_definitions(imports, implementation):
    """tritonclient and grpcio-health-checking define the same names in protobuf's default pool."""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join([*imports, ROUND_TRIP])],
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation},
    )


def test_default_pool_stays_free_of_our_definitions():
    for name in ("headrace/rpc/inference.proto", "headrace/rpc/model_config.proto", "headrace/rpc/health.proto"):
        assert POOL.FindFileByName(name).name == name
        with pytest.raises(KeyError):
            descriptor_pool.Default().FindFileByName(name)


def test_classes_are_reachable_as_the_stubs_say():
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="x")
    assert type(inference_pb2.ModelInferRequest(inputs=[tensor]).inputs[0]) is type(tensor)
    assert health_pb2.HealthCheckResponse.SERVING == 1
    assert health_pb2.HealthCheckResponse.ServingStatus.Name(2) == "NOT_SERVING"
    assert model_config_pb2.TYPE_FP32 == model_config_pb2.DataType.Value("TYPE_FP32") == 11
    assert inference_pb2.ModelInferRequest.__module__ == "headrace.rpc.inference_pb2"
    assert inference_pb2.ModelConfigResponse(config=model_config_pb2.ModelConfig(name="m")).config.name == "m"
