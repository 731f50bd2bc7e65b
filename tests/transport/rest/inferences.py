"""Requests for a connection, and an application beside the inferences."""

import asyncio
from contextlib import contextmanager

import numpy as np
from transport.rest.world import World, request, with_binary, with_json

from headrace.testing.backend import FakeModel

SECOND = 10**9
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 2]}


def infer(value=1.0, request_id="", **fields):
    """A request for inference in binary form."""
    header = {"id": request_id} if request_id else {}
    header["inputs"] = [{**TENSOR, "parameters": {"binary_data_size": 8}}]
    return with_binary(header, np.array([value, 0], np.float32).tobytes(), **fields)


def infer_json(value=1.0, **fields):
    return with_json({"inputs": [{**TENSOR, "data": [value, 0]}]}, **fields)


def value(reply):
    """What was sent to the model."""
    assert reply.status == 200, reply
    return reply.json["outputs"][0]["data"][0]


def get(path="/else", **fields):
    return request(path=path, method="GET", content_length=None, **fields)


@contextmanager
def one_model():
    """A world that serves one model."""
    with World() as made:
        made.model = FakeModel()
        made.scheduler, made.observer = made.serve(made.model)
        yield made


class Slow:
    """An application that answers when it may, with the path."""

    def __init__(self):
        self.started = []
        self.ended = []
        self._may = {}

    async def __call__(self, scope, receive, send):
        path = scope["path"]
        self.started.append(path)
        await self._may.setdefault(path, asyncio.Event()).wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(path))]})
        await send({"type": "http.response.body", "body": path.encode()})
        self.ended.append(path)

    def let_go(self, path):
        self._may.setdefault(path, asyncio.Event()).set()


def refused(world, octets, piece=1 << 20):
    """The one reply to these octets, after which the connection is over."""
    client = world.client()
    (answer,) = client.ask(octets, piece)
    assert answer.fields["connection"] == "close"
    assert client.wire.state in ("closed", "half closed")
    assert client.ask(infer()) == []  # whatever comes behind it
    world.loop.run_for(2 * SECOND)
    assert client.wire.is_closing()
    assert world.http.buffered == 0
    return answer
