"""gRPC server reflection over our own descriptor pool: grpcio-reflection's answers, under both names of the service.

Version 1 of the protocol is v1alpha under another name, message for message, so one implementation serves both.
Source: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha.reflection import aio  # type: ignore[attr-defined]
from grpc_reflection.v1alpha.reflection_pb2 import DESCRIPTOR, ServerReflectionRequest, ServerReflectionResponse

from headrace.rpc.pool import POOL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

SERVICE_NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

Request = ServerReflectionRequest


def responder(
    service_names: Sequence[str],
) -> Callable[[AsyncIterator[ServerReflectionRequest]], AsyncIterator[ServerReflectionResponse]]:
    """The method ServerReflectionInfo: answers each request from the pool. `service_names` is what it lists."""
    servicer = aio.ReflectionServicer(service_names, pool=POOL)  # type: ignore[attr-defined]

    def respond(requests: AsyncIterator[ServerReflectionRequest]) -> AsyncIterator[ServerReflectionResponse]:
        return cast("AsyncIterator[ServerReflectionResponse]", servicer.ServerReflectionInfo(requests, None))

    return respond


def _describe_reflection() -> None:
    """Puts both versions of the reflection service itself into the pool: clients look up every service listed."""
    v1alpha = FileDescriptorProto.FromString(DESCRIPTOR.serialized_pb)
    v1 = text_format.Parse(text_format.MessageToString(v1alpha).replace("v1alpha", "v1"), FileDescriptorProto())
    for file in (v1alpha, v1):
        POOL.AddSerializedFile(file.SerializeToString())


_describe_reflection()
