import json

import pytest

from headrace.errors import InvalidRequest
from headrace.rpc import inference_pb2 as pb
from headrace.rpc import model_config_pb2 as mc
from headrace.transport.rest.json_messages import set_member, to_json


def test_statistics():
    message = pb.ModelStatisticsResponse(
        model_stats=[
            pb.ModelStatistics(
                name="m",
                version="1",
                inference_count=2**63,
                inference_stats=pb.InferStatistics(success=pb.StatisticDuration(count=1, ns=2)),
                batch_stats=[pb.InferBatchStatistics(batch_size=4)],
                response_stats={"b": pb.InferResponseStatistics(), "a": pb.InferResponseStatistics()},
            )
        ]
    )
    assert to_json(message) == {
        "model_stats": [
            {
                "name": "m",
                "version": "1",
                "last_inference": 0,
                "inference_count": 2**63,
                "execution_count": 0,
                "inference_stats": {"success": {"count": 1, "ns": 2}},
                "batch_stats": [{"batch_size": 4}],
                "memory_usage": [],
                "response_stats": {"a": {}, "b": {}},
            }
        ]
    }


def test_what_is_not_set_of_a_oneof_is_left_out_and_enums_have_names():
    config = to_json(
        mc.ModelConfig(
            name="m",
            version_policy=mc.ModelVersionPolicy(latest=mc.ModelVersionPolicy.Latest(num_versions=2)),
            input=[mc.ModelInput(name="x", data_type="TYPE_FP32", dims=[-1, 2])],
            parameters={"k": mc.ModelParameter(string_value="v")},
        )
    )
    json.dumps(config)
    assert config["version_policy"] == {"latest": {"num_versions": 2}}
    assert config["parameters"] == {"k": {"string_value": "v"}}
    assert config["max_batch_size"] == 0
    assert (config["input"][0]["data_type"], config["input"][0]["dims"]) == ("TYPE_FP32", [-1, 2])
    assert "optimization" not in config
    assert "dynamic_batching" not in config


def test_octets_are_base64_and_unknown_enums_numbers():
    assert to_json(pb.CudaSharedMemoryRegisterRequest(raw_handle=b"\xff\0"))["raw_handle"] == "/wA="
    unknown = mc.ModelInput.FromString(b"\x10\x63")  # data_type = 99
    assert to_json(unknown)["data_type"] == 99


@pytest.mark.parametrize(
    ("name", "value"),
    [("name", "r"), ("key", "ä"), ("offset", 0), ("byte_size", 2**64 - 1)],
)
def test_set_member(name, value):
    message = pb.SystemSharedMemoryRegisterRequest()
    set_member(message, name, value)
    assert getattr(message, name) == value


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("name", 1, "Unable to parse 'name': got '1', expected a string"),
        ("name", "\ud800", "Unable to parse 'name': got '\\ud800', expected a string that the field can hold"),
        ("offset", "1", "Unable to parse 'offset': got '1', expected a whole number"),
        ("offset", True, "Unable to parse 'offset': got 'True', expected a whole number"),
        ("offset", 1.0, "Unable to parse 'offset': got '1.0', expected a whole number"),
        ("offset", -1, "Unable to parse 'offset': got '-1', expected a whole number that the field can hold"),
        (
            "byte_size",
            2**64,
            f"Unable to parse 'byte_size': got '{2**64}', expected a whole number that the field can hold",
        ),
        ("byte_size", [], "Unable to parse 'byte_size': got '[]', expected a whole number"),
    ],
)
def test_what_is_wrong(name, value, says):
    with pytest.raises(InvalidRequest) as caught:
        set_member(pb.SystemSharedMemoryRegisterRequest(), name, value)
    assert str(caught.value) == says


def test_a_boolean():
    message = pb.RepositoryIndexRequest()
    set_member(message, "ready", True)
    assert message.ready
    with pytest.raises(InvalidRequest, match="expected true or false"):
        set_member(message, "ready", 1)
