"""The RPCs of the server, once for all transports: full method paths and what answers them, bytes in and bytes out.

Inference has a door of its own (`Infer`), with a sink instead of a return value: it is answered when its batch is
done, without a task or a future of its own on the native transport.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from headrace.errors import InvalidRequest, Unimplemented
from headrace.messages import ReplySink
from headrace.rpc import health_pb2, inference_pb2
from headrace.transport import reflection

if TYPE_CHECKING:
    from headrace.messages import Buffer
    from headrace.transport.admin import Admin
    from headrace.transport.health import Health
    from headrace.transport.repository import RepositoryAdmin
    from headrace.transport.runtime_settings import RuntimeSettings
    from headrace.transport.shared_memory import SharedMemoryAdmin

UnaryHandler = Callable[[bytes], bytes]
"""Request message to response message. Raises HeadraceError."""

TaskHandler = Callable[[bytes], Awaitable[bytes]]
"""Request message to response message of a unary call that takes its time. Raises HeadraceError."""

StreamHandler = Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]
"""Request messages to response messages, of a call that streams in either direction. Raises HeadraceError."""

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
INFER_PATH = f"/{INFERENCE.full_name}/ModelInfer"
INFER_STREAM_PATH = f"/{INFERENCE.full_name}/ModelStreamInfer"
"""Each transport serves these two in its own way, on `ServiceTable.infer`."""
SERVICE_NAMES = (INFERENCE.full_name, HEALTH.full_name, *reflection.SERVICE_NAMES)

RequestT = TypeVar("RequestT", bound=Message)


class InferCall(ReplySink, Protocol):
    """A ModelInfer call, or a request on a stream, that has arrived.

    request: serialised ModelInferRequest; None once it has been taken, or when the caller has gone away before that.
    received, deadline: monotonic nanoseconds; no deadline is 0.
    """

    request: Buffer | None
    received: int
    deadline: int


class Infer(Protocol):
    """ModelInfer."""

    def __call__(self, call: InferCall, /) -> None:
        """Answers a call, now or later. Never raises: errors go to `call.fail`."""
        ...


@dataclass(frozen=True)
class ServiceTable:
    """What a transport serves. The keys are full paths, as in `:path`; whatever is not here is UNIMPLEMENTED.

    tasks: unary calls that take their time. On gRPC they look like streams of one message, and `streams` has them too.
    later: other unary calls that are answered when their answers come, by `call.reply` and `call.fail`.
    """

    unary: Mapping[str, UnaryHandler]
    streams: Mapping[str, StreamHandler]
    infer: Infer
    service_names: tuple[str, ...]
    tasks: Mapping[str, TaskHandler] = field(default_factory=dict)
    later: Mapping[str, Infer] = field(default_factory=dict)


def service_table(
    admin: Admin[Any],
    health: Health,
    infer: Infer,
    memory: SharedMemoryAdmin,
    repository: RepositoryAdmin,
    runtime: RuntimeSettings,
) -> ServiceTable:
    """All services of the server."""
    unary = {
        "ServerLive": _unary(inference_pb2.ServerLiveRequest, admin.server_live),
        "ServerReady": _unary(inference_pb2.ServerReadyRequest, admin.server_ready),
        "ModelReady": _unary(inference_pb2.ModelReadyRequest, admin.model_ready),
        "ServerMetadata": _unary(inference_pb2.ServerMetadataRequest, admin.server_metadata),
        "ModelMetadata": _unary(inference_pb2.ModelMetadataRequest, admin.model_metadata),
        "ModelConfig": _unary(inference_pb2.ModelConfigRequest, admin.model_config),
        "ModelStatistics": _unary(inference_pb2.ModelStatisticsRequest, admin.model_statistics),
        "SystemSharedMemoryStatus": _unary(inference_pb2.SystemSharedMemoryStatusRequest, memory.status),
        "SystemSharedMemoryRegister": _unary(inference_pb2.SystemSharedMemoryRegisterRequest, memory.register),
        "SystemSharedMemoryUnregister": _unary(inference_pb2.SystemSharedMemoryUnregisterRequest, memory.unregister),
        "CudaSharedMemoryStatus": _unary(inference_pb2.CudaSharedMemoryStatusRequest, memory.cuda_status),
        "CudaSharedMemoryRegister": _unary(inference_pb2.CudaSharedMemoryRegisterRequest, memory.cuda_register),
        "CudaSharedMemoryUnregister": _unary(inference_pb2.CudaSharedMemoryUnregisterRequest, memory.cuda_unregister),
        "LogSettings": _unary(inference_pb2.LogSettingsRequest, runtime.log),
        "TraceSetting": _unary(inference_pb2.TraceSettingRequest, runtime.trace),
    }
    slow = {
        "RepositoryIndex": _task(inference_pb2.RepositoryIndexRequest, repository.index),
        "RepositoryModelLoad": _task(inference_pb2.RepositoryModelLoadRequest, repository.load),
        "RepositoryModelUnload": _task(inference_pb2.RepositoryModelUnloadRequest, repository.unload),
    }
    tasks = {f"/{INFERENCE.full_name}/{name}": handler for name, handler in slow.items()}
    return ServiceTable(
        unary={
            **{f"/{INFERENCE.full_name}/{name}": handler for name, handler in unary.items()},
            f"/{HEALTH.full_name}/Check": _unary(health_pb2.HealthCheckRequest, health.check),
            f"/{HEALTH.full_name}/List": _unary(health_pb2.HealthListRequest, health.list),
        },
        tasks=tasks,
        streams={
            **{path: as_stream(handler) for path, handler in tasks.items()},
            **standing(health),
        },
        infer=infer,
        service_names=SERVICE_NAMES,
    )


def standing(health: Health) -> dict[str, StreamHandler]:
    """The calls that stay open: health, watched, and reflection. Of the server they know no more than its health."""
    reflect = _stream(reflection.Request, reflection.responder(SERVICE_NAMES))
    return {
        f"/{HEALTH.full_name}/Watch": _server_stream(health_pb2.HealthCheckRequest, health.watch),
        **{f"/{name}/ServerReflectionInfo": reflect for name in reflection.SERVICE_NAMES},
    }


def _parse(message_class: type[RequestT], data: bytes) -> RequestT:
    try:
        return message_class.FromString(data)
    except DecodeError:
        raise InvalidRequest(f"the request is not a valid {message_class.DESCRIPTOR.full_name} message") from None


def _unary(request_class: type[RequestT], method: Callable[[RequestT], Message]) -> UnaryHandler:
    def handle(data: bytes) -> bytes:
        return method(_parse(request_class, data)).SerializeToString()

    return handle


def _stream(
    request_class: type[RequestT], method: Callable[[AsyncIterator[RequestT]], AsyncIterator[Message]]
) -> StreamHandler:
    async def handle(messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        requests = (_parse(request_class, data) async for data in messages)
        async for response in method(requests):
            yield response.SerializeToString()

    return handle


def _task(request_class: type[RequestT], method: Callable[[RequestT], Awaitable[Message]]) -> TaskHandler:
    async def handle(data: bytes) -> bytes:
        return (await method(_parse(request_class, data))).SerializeToString()

    return handle


def as_stream(handler: TaskHandler) -> StreamHandler:
    """A call that takes its time, as gRPC has it: a stream of one message."""

    async def handle(messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        request = await anext(messages, None)
        if request is None:
            raise Unimplemented("the call ended without a request message")
        yield await handler(request)

    return handle


def _server_stream(
    request_class: type[RequestT], method: Callable[[RequestT], AsyncIterator[Message]]
) -> StreamHandler:
    async def one_request(requests: AsyncIterator[RequestT]) -> AsyncIterator[Message]:
        request = await anext(requests, None)
        if request is None:
            raise InvalidRequest(f"the call ended without its {request_class.DESCRIPTOR.full_name} message")
        async for response in method(request):
            yield response

    return _stream(request_class, one_request)
