"""A model behind a scheduler, on a loop that is stepped by hand."""

import numpy as np

from headrace.repository.model_config import ModelConfig
from headrace.testing.backend import ECHO, FakeModel
from headrace.testing.client import InProcessServer, infer_request

MS = 1_000_000


class World:
    """A model that adds one, behind a scheduler, on a loop that is stepped by hand."""

    def __init__(self, loop, *, signature=ECHO, latency_ns=10 * MS, compute=None, inline=False, learn=(), **config):
        self.loop = loop
        self.config = ModelConfig(**config)
        self.model = FakeModel(
            signature, compute or (lambda inputs: [inputs[0] + 1]), latency_ns=latency_ns, spend=loop.clock.advance
        )
        self.errors = []
        loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self.learn = learn or [(1, 1)] if inline else learn
        self.inline = inline
        loop.run_until_complete(self._start())

    async def _start(self):
        self.server = InProcessServer(self.loop.clock)
        self.scheduler, self.observer = self.server.serve(
            self.model, config=self.config, inline_below_ns=10**12 if self.inline else 0, learn=self.learn
        )

    @property
    def now(self):
        return self.loop.clock()

    def send(self, rows=1, value=0.0, *, timeout_ns=0, on_end=None, dims=2, **parameters):
        request = infer_request("m", {"x": np.full((rows, dims), value, np.float32)}, parameters=parameters)
        return self.server.client.send(request, timeout_ns=timeout_ns, on_end=on_end)

    def run(self, ms=0):
        """Lets time pass, then checks that nothing went wrong behind the scenes."""
        self.loop.run_for(ms * MS) if ms else self.loop.run_until_idle()
        assert self.errors == []

    def drain(self, seconds):
        return self.loop.run_until_complete(self.scheduler.drain(seconds))

    def batches(self):
        return [(run.rows, run.requests) for run in self.model.runs]


def poison(inputs):
    """What a model computes that fails on 13, whatever is in the batch beside it."""
    if (inputs[0] == 13).any():
        raise ValueError("unlucky")
    return [inputs[0] + 1]


def values(call):
    return np.frombuffer(call.response.raw_output_contents[0], np.float32).tolist()


def timing(call):
    parameters = call.response.parameters
    return {k: p.int64_param if p.WhichOneof("parameter_choice") == "int64_param" else p.string_param
            for k, p in parameters.items()}  # fmt: skip
