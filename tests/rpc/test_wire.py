"""Our messages against those of the clients that must be able to read them: every name, number, type and method."""

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2 as their_health_pb2
from tritonclient.grpc import model_config_pb2 as their_model_config_pb2
from tritonclient.grpc import service_pb2 as their_service_pb2

from headrace.rpc import health_pb2, inference_pb2, model_config_pb2

PAIRS = [
    (inference_pb2, their_service_pb2),
    (model_config_pb2, their_model_config_pb2),
    (health_pb2, their_health_pb2),
]

NEWER = {
    # in Triton since, but not in every tritonclient
    "InferResponseStatistics",
    "ModelStatistics.ResponseStatsEntry",
    "ModelStatistics.response_stats",
    "ModelInput.is_non_linear_format_io",
    "ModelOutput.is_non_linear_format_io",
    "ModelConfig.runtime",
    "ModelConfig.model_metrics",
    "ModelEnsembling.max_inflight_responses",
    "ModelMetrics",
}


def describe(module):
    """All that the wire depends on, by path: `Message.field` or `Service.Method` to a tuple."""
    file = FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
    facts = {"package": file.package, "syntax": file.syntax}
    for message in file.message_type:
        facts |= describe_message(message, message.name)
    for enum in file.enum_type:
        facts |= describe_enum(enum, enum.name)
    for service in file.service:
        for method in service.method:
            streams = (method.client_streaming, method.server_streaming)
            facts[f"{service.name}.{method.name}"] = (method.input_type, method.output_type, *streams)
    return facts


def describe_message(message, path):
    facts = {path: ("message", message.options.map_entry)}
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
        facts[f"{path}.{field.name}"] = (field.number, field.type, field.label, field.type_name, oneof)
    for nested in message.nested_type:
        facts |= describe_message(nested, f"{path}.{nested.name}")
    for enum in message.enum_type:
        facts |= describe_enum(enum, f"{path}.{enum.name}")
    return facts


def describe_enum(enum, path):
    return {f"{path}.{value.name}": value.number for value in enum.value}


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda module: module.DESCRIPTOR.name)
def test_everything_the_client_knows_is_the_same_here(ours, theirs):
    ours, theirs = describe(ours), describe(theirs)
    assert len(theirs) > 5
    assert {path: ours.get(path) for path in theirs} == theirs


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda module: module.DESCRIPTOR.name)
def test_what_the_client_does_not_know_is_known_to_be_newer(ours, theirs):
    extra = describe(ours).keys() - describe(theirs).keys()
    assert {path for path in extra if path not in NEWER and path.split(".")[0] not in NEWER} <= {
        path for path in extra if path.startswith("ModelStatistics.ResponseStatsEntry.")
    }


def test_newer_fields_have_their_published_numbers():
    statistics = inference_pb2.ModelStatistics.DESCRIPTOR.fields_by_name
    config = model_config_pb2.ModelConfig.DESCRIPTOR.fields_by_name
    durations = inference_pb2.InferResponseStatistics.DESCRIPTOR.fields
    assert statistics["response_stats"].number == 9
    assert (config["runtime"].number, config["model_metrics"].number) == (25, 26)
    assert model_config_pb2.ModelEnsembling.DESCRIPTOR.fields_by_name["max_inflight_responses"].number == 2
    assert [(d.number, d.name) for d in durations] == [
        (1, "compute_infer"),
        (2, "compute_output"),
        (3, "success"),
        (4, "fail"),
        (5, "empty_response"),
        (6, "cancel"),
    ]


def test_the_service_has_all_twenty_methods():
    service = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == "inference.GRPCInferenceService"
    assert len(service.methods) == 20
