"""One question put in three ways: to each gRPC transport, and as JSON to the HTTP port."""

import json
from urllib.parse import quote

import grpc
from e2e.calls import SECONDS, connect
from e2e.rest_calls import ask
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

WAYS = ["native", "reference", "rest"]


class Answer:
    """status: the gRPC code's name, or the HTTP status. text: of an error. reason: why. reply: message or JSON."""

    def __init__(self, status, text="", reason=None, reply=None, fields=None):
        self.status, self.text, self.reason, self.reply = status, text, reason, reply
        self.fields = fields or {}

    def __repr__(self):
        return f"<Answer {self.status} {self.reason}: {self.text or self.reply}>"


class Grpc:
    """A server's gRPC port."""

    protocol = "grpc"

    def __init__(self, server):
        self.server = server
        self.channel = grpc.insecure_channel(server.address, [("grpc.max_receive_message_length", -1)])
        connect(self.channel)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def close(self):
        self.channel.close()

    def call(self, rpc, message, timeout=SECONDS):
        """The answer to an RPC."""
        try:
            return Answer("OK", reply=getattr(self.stub, rpc)(message, timeout=timeout))
        except grpc.RpcError as error:
            trailers = dict(error.trailing_metadata() or ())
            return Answer(error.code().name, error.details(), trailers.get("headrace-reason"), fields=trailers)

    def infer(self, message, timeout=SECONDS):
        """The answer to an inference request."""
        return self.call("ModelInfer", message, timeout)

    def parameters(self, answer):
        """Those of a reply."""
        return {key: _value(parameter) for key, parameter in answer.reply.parameters.items()}


class Rest:
    """A server's HTTP port."""

    protocol = "rest"

    def __init__(self, server):
        self.server = server

    def close(self):
        """Each request has a connection of its own."""

    def ask(self, path, body=None, method=None, **fields):
        """The answer to a request."""
        reply = ask(self.server, path, body, method, **fields)
        told = reply.json if reply.body else None
        text = told["error"] if reply.status >= 400 and told and "error" in told else ""
        return Answer(reply.status, text, reply.fields.get("headrace-reason"), told, reply.fields)

    def infer(self, message, timeout=None):
        """The same request as JSON; what is raw goes in binary form."""
        header, tensors = as_json(message)
        text = json.dumps(header).encode()
        fields = {"inference_header_content_length": len(text)} if tensors else {}
        if timeout is not None:
            fields["x_envoy_expected_rq_timeout_ms"] = int(timeout * 1000)
        version = f"/versions/{quote(message.model_version)}" if message.model_version else ""
        path = f"/v2/models/{quote(message.model_name)}{version}/infer"
        return self.ask(path, text + b"".join(tensors), **fields)

    def parameters(self, answer):
        """Those of a reply."""
        return answer.reply.get("parameters", {})


def as_json(message):
    """(the JSON, the binary tensors) of a ModelInferRequest."""
    raw = list(message.raw_input_contents)
    tensors = []
    header = {"inputs": []}
    for tensor in message.inputs:
        told = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        told["parameters"] = {key: _value(parameter) for key, parameter in tensor.parameters.items()}
        if tensor.HasField("contents"):
            ((_, told["data"]),) = MessageToDict(tensor.contents).items()
        elif "shared_memory_region" not in tensor.parameters and raw:
            tensors.append(raw.pop(0))
            told["parameters"]["binary_data_size"] = len(tensors[-1])
        header["inputs"].append(told)
    if message.id:
        header["id"] = message.id
    if message.parameters:
        header["parameters"] = {key: _value(parameter) for key, parameter in message.parameters.items()}
    if message.outputs:
        header["outputs"] = [
            {"name": output.name, "parameters": {key: _value(one) for key, one in output.parameters.items()}}
            for output in message.outputs
        ]
    return header, tensors


def _value(parameter):
    return getattr(parameter, parameter.WhichOneof("parameter_choice"))


def with_parameter(message, key, **value):
    """The message with another parameter."""
    message.parameters[key].CopyFrom(pb.InferParameter(**value))
    return message


def changed(message, change):
    """The message after `change(message)`."""
    change(message)
    return message
