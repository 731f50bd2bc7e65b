"""grpc.testing.TestService, as gRPC's interoperability tests describe it, on the server's own table of RPCs.

Source: grpc/grpc doc/interop-test-descriptions.md and src/proto/grpc/testing/messages.proto. A handler here sees bytes
and nothing of metadata or compression, so that what needs those is left out: see test_interop.py.
"""

import asyncio

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from headrace.errors import HeadraceError
from headrace.transport.service import ServiceTable
from headrace.transport.status import STATUS, Code

SERVICE = "grpc.testing.TestService"
FIELDS = {
    "Empty": {},
    "BoolValue": {"value": (1, "bool")},
    "Payload": {"type": (1, "int32"), "body": (2, "bytes")},
    "EchoStatus": {"code": (1, "int32"), "message": (2, "string")},
    "SimpleRequest": {
        "response_type": (1, "int32"),
        "response_size": (2, "int32"),
        "payload": (3, "Payload"),
        "response_compressed": (6, "BoolValue"),
        "response_status": (7, "EchoStatus"),
        "expect_compressed": (8, "BoolValue"),
    },
    "SimpleResponse": {"payload": (1, "Payload")},
    "StreamingInputCallRequest": {"payload": (1, "Payload"), "expect_compressed": (2, "BoolValue")},
    "StreamingInputCallResponse": {"aggregated_payload_size": (1, "int32")},
    "ResponseParameters": {"size": (1, "int32"), "interval_us": (2, "int32"), "compressed": (3, "BoolValue")},
    "StreamingOutputCallRequest": {
        "response_type": (1, "int32"),
        "response_parameters": (2, "*ResponseParameters"),
        "payload": (3, "Payload"),
        "response_status": (7, "EchoStatus"),
    },
    "StreamingOutputCallResponse": {"payload": (1, "Payload")},
}


def message_classes():
    """The messages, made without protoc."""
    proto = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="interop.proto", package="grpc.testing", syntax="proto3")
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            label = proto.LABEL_REPEATED if kind.startswith("*") else proto.LABEL_OPTIONAL
            kind = kind.lstrip("*")
            made = message.field.add(name=field, number=number, label=label)
            if kind in FIELDS:
                made.type, made.type_name = proto.TYPE_MESSAGE, f".grpc.testing.{kind}"
            else:
                made.type = getattr(proto, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"grpc.testing.{name}")) for name in FIELDS
    }


messages = message_classes()
Empty, SimpleRequest, SimpleResponse = (messages[name] for name in ("Empty", "SimpleRequest", "SimpleResponse"))
InputRequest, InputResponse = (messages[f"StreamingInputCall{name}"] for name in ("Request", "Response"))
OutputRequest, OutputResponse = (messages[f"StreamingOutputCall{name}"] for name in ("Request", "Response"))


class Echoed(HeadraceError):
    """The status that the client has asked for."""

    reason = "echoed"


STATUS[Echoed] = (Code.UNKNOWN, 500)


def check_status(request):
    if request.response_status.code:
        assert request.response_status.code == Code.UNKNOWN, "the cases ask for no other"
        raise Echoed(request.response_status.message)


class TestService:
    """running: calls whose handlers have begun and not ended."""

    __test__ = False

    def __init__(self):
        self.running = 0

    def table(self):
        streams = {
            "StreamingInputCall": self.streaming_input,
            "StreamingOutputCall": self.duplex,  # of one request message, which looks no different
            "FullDuplexCall": self.duplex,
        }
        return ServiceTable(
            unary={
                f"/{SERVICE}/EmptyCall": lambda octets: Empty.FromString(octets).SerializeToString(),
                f"/{SERVICE}/UnaryCall": self.unary,
            },
            streams={f"/{SERVICE}/{name}": self.counted(handler) for name, handler in streams.items()},
            infer=lambda call: call.fail(HeadraceError("no inference here")),
            service_names=(SERVICE,),
        )

    def unary(self, octets):
        request = SimpleRequest.FromString(octets)
        check_status(request)
        return SimpleResponse(payload={"body": bytes(request.response_size)}).SerializeToString()

    def counted(self, handler):
        async def handle(requests):
            self.running += 1
            try:
                async for response in handler(requests):
                    yield response.SerializeToString()
            finally:
                self.running -= 1

        return handle

    async def streaming_input(self, requests):
        size = 0
        async for octets in requests:
            size += len(InputRequest.FromString(octets).payload.body)
        yield InputResponse(aggregated_payload_size=size)

    async def duplex(self, requests):
        async for octets in requests:
            request = OutputRequest.FromString(octets)
            check_status(request)
            for parameters in request.response_parameters:
                if parameters.interval_us:
                    await asyncio.sleep(parameters.interval_us / 1e6)
                yield OutputResponse(payload={"body": bytes(parameters.size)})
