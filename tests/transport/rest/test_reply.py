import json

import numpy as np
import pytest

from headrace.errors import InvalidRequest
from headrace.messages import Region, ReplyOutput, TensorSpec
from headrace.pipeline.encode import encode_parameters
from headrace.pipeline.wire import length_prefixed
from headrace.transport.rest import reply as reply_module
from headrace.transport.rest.reply import RestReplies

F = TensorSpec("f", "FP32", (2,))
B = TensorSpec("b", "BYTES", (-1,))
FLOATS = np.array([[1, 2.5]], np.float32).tobytes()
TEXTS = b"\1\0\0\0a\2\0\0\0\xc3\xa4"


def read(reply):
    """(fields, JSON, octets behind it) of a reply; its lengths agree."""
    head, _, body = reply.partition(b"\r\n\r\n")
    fields = dict(line.split(": ") for line in head.decode().split("\r\n"))
    assert int(fields.pop("Content-Length")) == len(body)
    end = int(fields.pop("Inference-Header-Content-Length", len(body)))
    return fields, json.loads(body[:end]), body[end:]


def replies(*outputs, binary=True):
    return RestReplies("m", "3", outputs, binary=binary)


def test_json():
    fields, told, octets = read(
        replies(ReplyOutput(F), ReplyOutput(B), binary=False).encode(b"", (FLOATS, TEXTS), ((1, 2), (1, 2)))
    )
    assert fields == {"Content-Type": "application/json"}
    assert (list(told), octets) == (["model_name", "model_version", "outputs"], b"")
    assert told == {
        "model_name": "m",
        "model_version": "3",
        "outputs": [
            {"name": "f", "datatype": "FP32", "shape": [1, 2], "data": [1, 2.5]},
            {"name": "b", "datatype": "BYTES", "shape": [1, 2], "data": ["a", "ä"]},
        ],
    }


def test_binary():
    fields, told, octets = read(
        replies(ReplyOutput(F), ReplyOutput(B)).encode(
            length_prefixed(3, '"7ä'.encode()), (FLOATS, TEXTS), ((1, 2), (1, 2))
        )
    )
    assert fields == {"Content-Type": "application/octet-stream"}
    assert list(told) == ["id", "model_name", "model_version", "outputs"]
    assert told["id"] == '"7ä'
    assert told["outputs"] == [
        {"name": "f", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
        {"name": "b", "datatype": "BYTES", "shape": [1, 2], "parameters": {"binary_data_size": 11}},
    ]
    assert octets == FLOATS + TEXTS


@pytest.mark.parametrize("binary", [True, False])
def test_what_an_output_asks_for_counts(binary):
    outputs = (ReplyOutput(F, binary=not binary), ReplyOutput(B), ReplyOutput(F, Region("r", 4, 100), binary))
    _, told, octets = read(replies(*outputs, binary=binary).encode(b"", (FLOATS, TEXTS, b""), ((1, 2), (1, 2), (3, 2))))
    first, second, third = told["outputs"]
    assert ("data" in first, "data" in second) == (binary, not binary)
    assert octets == (TEXTS if binary else FLOATS)
    assert third.keys() == {"name", "datatype", "shape"}


def test_parameters():
    told = read(replies(ReplyOutput(F)).encode(b"", (FLOATS,), ((1, 2),), encode_parameters({"b": "x", "a": 1})))[1]
    assert list(told) == ["model_name", "model_version", "parameters", "outputs"]
    assert list(told["parameters"].items()) == [("a", 1), ("b", "x")]


def test_the_opening_is_what_stands_before_the_octets():
    writer = replies(ReplyOutput(F))
    for rows in (1, 3):
        octets = FLOATS * rows
        assert writer.opening(((rows, 2),)) + octets == writer.encode(b"", (octets,), ((rows, 2),))


@pytest.mark.parametrize(
    "writer",
    [
        replies(ReplyOutput(F), ReplyOutput(F)),
        replies(ReplyOutput(B)),
        replies(ReplyOutput(F), binary=False),
        replies(ReplyOutput(F, Region("r", 0, 100))),
    ],
)
def test_there_is_no_opening(writer):
    assert writer.opening(((1, 2),) * 2) is None


def test_shapes_are_not_kept_without_end(monkeypatch):
    monkeypatch.setattr(reply_module, "_SHAPES", 4)
    writer = replies(ReplyOutput(F))
    for rows in range(1, 20):
        assert read(writer.encode(b"", (FLOATS * rows,), ((rows, 2),)))[1]["outputs"][0]["shape"] == [rows, 2]
        assert len(writer._tails) <= 4


def test_text_that_json_cannot_hold():
    with pytest.raises(InvalidRequest, match="element 0 of output 'b' is not UTF-8"):
        replies(ReplyOutput(B), binary=False).encode(b"", (b"\1\0\0\0\xff",), ((1, 1),))
