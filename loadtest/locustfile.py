"""Locust users that read handwritten digits over gRPC and check every answer.

    locust -f loadtest/locustfile.py --headless -u 16 -r 16 -t 60s --only-summary --host 127.0.0.1:8001

A wrong answer is counted as a failure, as an error is; any failure makes locust exit with 1, and so does a run in
which nothing was answered.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import tritonclient.grpc as grpcclient
from grpc.experimental.gevent import init_gevent
from locust import User, events, task

if TYPE_CHECKING:
    from locust.env import Environment

DIGITS = Path(__file__).parents[1] / "models" / "digits"
MAX_ROWS = 8
TIMEOUT_S = 5.0
TOLERANCE = 1e-4  # FP32 sums differ with the batch's size

init_gevent()  # before the first channel: a call that waits then lets the other users run


class CallError(Exception):
    """The call was answered with an error status, or not at all."""


class WrongAnswerError(Exception):
    """The reply differs from what the model says of the same images, run here alone."""


class Client(grpcclient.InferenceServerClient):  # type: ignore[misc]  # untyped base
    """Closes when told to and then only: a second close, by the collector at exit, hangs in gRPC under gevent."""

    def __del__(self) -> None:
        """Does nothing, where the base class closes again."""


class Digits:
    """Held-out images and the model's own answers to them.

    pixels FP32 [N,64]; probabilities FP32 [N,10]; labels INT64 [N].
    """

    def __init__(self) -> None:
        self.pixels: np.ndarray = np.load(DIGITS / "heldout.npz")["pixels"]
        model = onnxruntime.InferenceSession(DIGITS / "1" / "model.onnx", providers=["CPUExecutionProvider"])
        self.probabilities, self.labels = model.run(["probabilities", "label"], {"pixels": self.pixels})

    def fault(self, rows: list[int], result: grpcclient.InferResult) -> WrongAnswerError | None:
        """What is wrong with the reply to these images. Row by row, so that rows given to the wrong caller are seen."""
        if not np.array_equal(result.as_numpy("label"), self.labels[rows]):
            return WrongAnswerError("the labels are not those that the model gives")
        if not np.allclose(result.as_numpy("probabilities"), self.probabilities[rows], atol=TOLERANCE):
            return WrongAnswerError("the probabilities are not those that the model gives")
        return None


class DigitsUser(User):
    """A caller with a connection of its own that sends 1 to MAX_ROWS images, waits, checks, and sends again."""

    digits = Digits()

    def on_start(self) -> None:
        # without a pool of its own, gRPC would put all users of one address on one connection
        self.client = Client(self.host, channel_args=[("grpc.use_local_subchannel_pool", 1)])

    def on_stop(self) -> None:
        self.client.close()

    @task
    def read(self) -> None:
        """One ModelInfer call. The time is the call's alone; whatever is wrong with it goes to locust's statistics."""
        rows = random.sample(range(len(self.digits.pixels)), random.randint(1, MAX_ROWS))
        images = grpcclient.InferInput("pixels", [len(rows), 64], "FP32")
        images.set_data_from_numpy(self.digits.pixels[rows])

        size = 0
        error: Exception | None = None
        started = time.perf_counter()
        try:
            result = self.client.infer("digits", [images], client_timeout=TIMEOUT_S)
        except grpcclient.InferenceServerException as failed:
            milliseconds = (time.perf_counter() - started) * 1000
            error = CallError(str(failed))
        else:
            milliseconds = (time.perf_counter() - started) * 1000
            size = result.get_response().ByteSize()
            error = self.digits.fault(rows, result)

        self.environment.events.request.fire(
            request_type="gRPC",
            name="ModelInfer digits",
            response_time=milliseconds,
            response_length=size,
            exception=error,
            context={},
        )


def fail_if_silent(environment: Environment, **_: object) -> None:
    """Makes locust exit with 1 when nothing was asked at all, which it would let pass."""
    if environment.stats.total.num_requests == 0:
        environment.process_exit_code = 1


events.quitting.add_listener(fail_if_silent)  # type: ignore[no-untyped-call]  # locust's events have no types
