"""From output rows to the octets of an HTTP reply: header fields, JSON, tensors in binary form.

A reply begins behind its status line and date, which are not the writer's to know. Source: Open Inference Protocol,
"Inference Response JSON Object", and Triton's binary tensor data extension: if any output is in binary form, the JSON's
length stands in Inference-Header-Content-Length and the binary outputs' octets follow it, in their order.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from headrace.datatypes import DATATYPES
from headrace.pipeline.wire import field_text
from headrace.rpc import inference_pb2 as pb
from headrace.transport.rest.json_tensors import text_of
from headrace.transport.rest.json_text import dump

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.messages import Buffer, ReplyOutput, TensorSpec

    Shapes = tuple[tuple[int, ...], ...]

_SHAPES = 256
"""Combinations of shapes whose texts are kept."""


class RestReplies:
    """A `messages.ReplyWriter` for one model version with one list of outputs.

    binary: the form of outputs that do not say theirs.
    """

    __slots__ = ("_binary", "_binary_size", "_head", "_outputs", "_tails")

    def __init__(self, name: str, version: str, outputs: Sequence[ReplyOutput], *, binary: bool) -> None:
        self._head = b'"model_name":%b,"model_version":%b' % (dump(name), dump(version))
        self._outputs = tuple(outputs)
        self._binary = tuple(
            output.region is None and (binary if output.binary is None else output.binary) for output in outputs
        )
        self._tails: dict[Shapes, tuple[bytes, int] | None] = {}

    def encode(self, id_field: bytes, raw: Sequence[Buffer], shapes: Shapes, parameters: bytes = b"") -> bytes:
        """Header fields and body. Raises InvalidRequest for BYTES that JSON cannot hold."""
        start = b'{"id":%b,' % dump(field_text(id_field)) if id_field else b"{"
        tail = None if parameters else self._tail(shapes)
        if tail is not None:
            text = start + tail[0]
            return b"".join((_binary_fields(len(text), tail[1]), text, *raw))
        parts = [start, self._head]
        if parameters:
            parts.append(b',"parameters":%b' % _parameters(parameters))
        outputs = zip(self._outputs, raw, shapes, self._binary, strict=True)
        parts.append(b',"outputs":[%b]}' % b",".join([self._output(*output) for output in outputs]))
        text = b"".join(parts)
        if not any(self._binary):
            return b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)
        tensors = [data for data, binary in zip(raw, self._binary, strict=True) if binary]
        return b"".join((_binary_fields(len(text), sum(map(len, tensors))), text, *tensors))

    def opening(self, shapes: Shapes) -> bytes | None:
        """All that `encode` writes before the octets of the only output, without id and parameters."""
        tail = self._tail(shapes)
        if tail is None or len(self._outputs) != 1:
            return None
        return b"%b{%b" % (_binary_fields(1 + len(tail[0]), tail[1]), tail[0])

    def _tail(self, shapes: Shapes) -> tuple[bytes, int] | None:
        """The JSON behind the id and the octets of the tensors, where shapes tell both and there are no parameters."""
        try:
            return self._tails[shapes]
        except KeyError:
            if len(self._tails) >= _SHAPES:  # variable dimensions: what is recent, not all there ever was
                self._tails.clear()
            self._tails[shapes] = tail = self._make_tail(shapes)
            return tail

    def _make_tail(self, shapes: Shapes) -> tuple[bytes, int] | None:
        sizes = [DATATYPES[output.spec.datatype].itemsize for output in self._outputs]
        if not all(self._binary) or not all(sizes):
            return None
        outputs = [
            _binary_output(output.spec, shape, size * prod(shape))
            for output, shape, size in zip(self._outputs, shapes, sizes, strict=True)
        ]
        total = sum(size * prod(shape) for shape, size in zip(shapes, sizes, strict=True))
        return b'%b,"outputs":[%b]}' % (self._head, b",".join(outputs)), total

    @staticmethod
    def _output(output: ReplyOutput, data: Buffer, shape: tuple[int, ...], binary: bool) -> bytes:
        if binary:
            return _binary_output(output.spec, shape, len(data))
        start = _description(output.spec, shape)
        if output.region is None:
            return b'%b,"data":%b}' % (start, text_of(data, output.spec, shape))
        return start + b"}"  # without parameters, as Triton: its C++ client takes any for those of binary form


def _description(spec: TensorSpec, shape: tuple[int, ...]) -> bytes:
    """The object of an output, without its end."""
    return dump({"name": spec.name, "datatype": spec.datatype, "shape": shape})[:-1]


def _binary_output(spec: TensorSpec, shape: tuple[int, ...], size: int) -> bytes:
    return b'%b,"parameters":{"binary_data_size":%d}}' % (_description(spec, shape), size)


def _binary_fields(text: int, tensors: int) -> bytes:
    """The header fields of a reply with so many octets of JSON and of tensors."""
    return (
        b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
        % (text, text + tensors)
    )


def _parameters(encoded: bytes) -> bytes:
    """JSON of parameters that `pipeline/encode.py` wrote for a ModelInferResponse."""
    parameters = pb.ModelInferResponse.FromString(encoded).parameters
    named = [(key, parameters[key]) for key in sorted(parameters)]
    return dump({key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in named})
