"""Through grpcio-reflection's own client, over a socket."""

import asyncio

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from headrace.repository.catalog import Catalog
from headrace.rpc import inference_pb2
from headrace.transport.admin import Admin
from headrace.transport.grpc_reference import ReferenceTransport
from headrace.transport.health import Health
from headrace.transport.repository import RepositoryAdmin
from headrace.transport.runtime_settings import RuntimeSettings
from headrace.transport.service import service_table
from headrace.transport.shared_memory import SharedMemoryAdmin

SERVICES = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "inference.GRPCInferenceService",
]


@pytest.fixture(scope="module")
def answers():
    """`ask(client)` calls the client in a thread with a channel to a server."""
    table = service_table(
        Admin(None, Catalog()),
        Health(),
        None,
        SharedMemoryAdmin(None),
        RepositoryAdmin(None, None),
        RuntimeSettings(None, None, None),
    )

    def ask(client):
        async def run():
            transport = ReferenceTransport(table, "127.0.0.1", 0, max_message_bytes=1 << 20)
            port = await transport.start()
            try:
                return await asyncio.to_thread(call, port)
            finally:
                await transport.close()

        def call(port):
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                return client(channel)

        return asyncio.run(run())

    return ask


def test_the_client_lists_all_services(answers):
    assert sorted(answers(lambda channel: ProtoReflectionDescriptorDatabase(channel).get_services())) == SERVICES


def test_the_client_can_build_every_service_from_what_it_is_told(answers):
    def describe(channel):
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        services = [pool.FindServiceByName(name) for name in SERVICES]
        # a field of a message of a file that the service's file imports
        config = pool.FindMessageTypeByName("inference.ModelConfig").fields_by_name["runtime"].number
        return {service.full_name: len(service.methods) for service in services}, config

    methods, config = answers(describe)
    assert methods == dict(zip(SERVICES, [3, 1, 1, 20], strict=True))
    assert config == 25


def test_an_unknown_symbol_is_not_found(answers):
    def look_up(channel):
        with pytest.raises(KeyError):
            ProtoReflectionDescriptorDatabase(channel).FindFileContainingSymbol("no.such.Symbol")

    answers(look_up)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_both_versions_answer(answers, version):
    def ask(channel):
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        requests = [
            reflection_pb2.ServerReflectionRequest(file_by_filename="headrace/rpc/inference.proto"),
            reflection_pb2.ServerReflectionRequest(),
        ]
        return list(call(iter(requests), timeout=10))

    file, nothing_asked = answers(ask)
    names = [FileDescriptorProto.FromString(f).name for f in file.file_descriptor_response.file_descriptor_proto]
    assert set(names) == {"headrace/rpc/inference.proto", "headrace/rpc/model_config.proto"}
    assert inference_pb2.DESCRIPTOR.serialized_pb in file.file_descriptor_response.file_descriptor_proto
    assert nothing_asked.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
