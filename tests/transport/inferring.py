"""An InferService on a loop that is stepped by hand, and what the parser says of a message."""

import numpy as np

from headrace.errors import HeadraceError
from headrace.messages import Signature, TensorSpec
from headrace.rpc import inference_pb2 as pb
from headrace.testing.backend import FakeModel
from headrace.testing.client import ClientCall, InProcessServer, infer_request
from headrace.testing.loop import VirtualTimeLoop

TWO = Signature(
    (TensorSpec("a", "FP32", (2,)), TensorSpec("b", "BYTES", (-1,))),
    (TensorSpec("a", "FP32", (2,)), TensorSpec("b", "BYTES", (-1,))),
    4,
)


class World:
    """An InferService over two models, on a loop that is stepped by hand."""

    def __init__(self):
        self.loop = VirtualTimeLoop()
        self.loop.run_until_complete(self._start())
        self.service = self.server.service

    async def _start(self):
        self.server = InProcessServer(self.loop.clock)
        self.one, self.observer = self.server.serve(FakeModel())
        self.two, _ = self.server.serve(FakeModel(TWO), "two", 3)
        self.empty, _ = self.server.serve(FakeModel(Signature((), TWO.outputs, 0), lambda inputs: []), "empty")

    def infer(self, message, deadline=0):
        """Sends, and runs all there is to run."""
        if isinstance(message, pb.ModelInferRequest):
            message = message.SerializeToString()
        call = ClientCall(message, self.loop.clock(), deadline)
        self.service(call)
        self.loop.run_for(10**9)
        assert call.ended
        return call

    def reply(self, message):
        sink = self.infer(message)
        assert sink.error is None, sink.error
        return pb.ModelInferResponse.FromString(sink.message)

    def recognised(self, message):
        """What the quick look finds, or None."""
        try:
            return self.service._recognise(message)
        except (LookupError, ValueError):
            return None

    def opened(self, message):
        """What the service makes of a message, known or not: template, tensors and id field. None: it is refused."""
        try:
            return self.service._open(message, None)
        except HeadraceError:
            return None

    def learn(self, message):
        """Has a message parsed, so that its look is known. None if it is refused."""
        try:
            return self.service._parse(message)
        except HeadraceError:
            return None


def one(rows=1, **more):
    return infer_request("m", {"x": np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)}, **more)


def two(**more):
    texts = np.array([[b"q", "ä".encode(), b""]], dtype=object)
    return infer_request("two", {"a": np.zeros((1, 2), np.float32), "b": texts}, **more)
