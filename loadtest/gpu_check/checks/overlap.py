"""Whether copies hide behind computation: the device's own clock, with one and with two batches in flight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpu_check.registry import Failed, check

if TYPE_CHECKING:
    import ctypes

    import numpy as np
    import onnxruntime

    from gpu_check.context import Context
    from gpu_check.cudart import Cuda
    from gpu_check.registry import Figures

ROWS, WIDTH = 8192, 1024
"""33 MB a batch each way, and 100 GFLOP: copying and computing take about as long."""
BATCHES = 20
HIDDEN = 0.5


@check("overlap", needs=("numpy", "onnx", "onnxruntime"), seconds=30)
def overlap(context: Context) -> Figures:
    """With two batches in flight, copies of one run while the other is computed."""
    from gpu_check.cudart import Cuda

    with Cuda(context.device) as cuda:
        lanes = [_Lane(cuda, context) for _ in range(2)]
        for lane in lanes:
            lane.batch()
            lane.wait()
        copy, compute = lanes[0].parts()
        one, two = _per_batch(cuda, lanes[:1]), _per_batch(cuda, lanes)
    return judged(copy, compute, one, two)


def judged(copy: float, compute: float, one: float, two: float) -> Figures:
    """Figures from times of a batch in ms: of its copies, its computation, and all with one and with two in flight.

    hidden: what the second lane saves, as a share of the most it could, which is the smaller of copies and computation.
    """
    hidden = (one - two) / min(copy, compute)
    figures = {
        "copy_ms": copy,
        "compute_ms": compute,
        "one_in_flight_ms": one,
        "two_in_flight_ms": two,
        "hidden": hidden,
    }
    if not hidden >= HIDDEN:
        raise Failed(f"{hidden:.2f} of the copies is hidden, expected at least {HIDDEN}", figures)
    return figures


class _Lane:
    """A session with a stream, memory and events of its own."""

    def __init__(self, cuda: Cuda, context: Context) -> None:
        import numpy as np
        import onnxruntime

        from gpu_check.sessions import opened
        from gpu_check.small_models import floats, perceptron

        self._cuda = cuda
        self.stream = cuda.stream()
        self._session: onnxruntime.InferenceSession = opened(
            perceptron(WIDTH), context, user_compute_stream=str(self.stream)
        )
        shape = (ROWS, WIDTH)
        self._sent: np.ndarray[Any, Any] = cuda.pinned(shape, np.float32)
        self._received: np.ndarray[Any, Any] = cuda.pinned(shape, np.float32)
        self._sent[:] = floats(*shape)
        self._x, self._y = cuda.memory(self._sent.nbytes), cuda.memory(self._sent.nbytes)
        self._binding = self._session.io_binding()
        self._binding.bind_input("x", "cuda", context.device, np.float32, shape, self._x)
        self._binding.bind_output("y", "cuda", context.device, np.float32, shape, self._y)
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._done = cuda.event()

    def batch(self) -> None:
        """Starts a batch: up, compute, down."""
        self._cuda.upload(self._x, self._sent, self.stream)
        self._session.run_with_iobinding(self._binding, self._options)
        self._cuda.download(self._received, self._y, self.stream)
        self._cuda.record(self._done, self.stream)

    def wait(self) -> None:
        """Until the last batch that was started is done."""
        self._cuda.wait_event(self._done)

    def parts(self) -> tuple[float, float]:
        """Milliseconds of the copies of a batch, and of its computation, by the device's own clock."""
        marks: list[ctypes.c_void_p] = [self._cuda.event() for _ in range(4)]
        self._cuda.record(marks[0], self.stream)
        self._cuda.upload(self._x, self._sent, self.stream)
        self._cuda.record(marks[1], self.stream)
        self._session.run_with_iobinding(self._binding, self._options)
        self._cuda.record(marks[2], self.stream)
        self._cuda.download(self._received, self._y, self.stream)
        self._cuda.record(marks[3], self.stream)
        self._cuda.wait(self.stream)
        up, compute, down = (self._cuda.milliseconds(marks[i], marks[i + 1]) for i in range(3))
        return up + down, compute


def _per_batch(cuda: Cuda, lanes: list[_Lane]) -> float:
    """Milliseconds a batch, where a lane begins the next one as soon as its last one is done."""
    first, last = cuda.event(), cuda.event()
    cuda.record(first, lanes[0].stream)
    for number in range(BATCHES):
        lane = lanes[number % len(lanes)]
        if number >= len(lanes):
            lane.wait()
        lane.batch()
    for lane in lanes:
        lane.wait()
    cuda.record(last, lanes[(BATCHES - 1) % len(lanes)].stream)
    cuda.wait(lanes[(BATCHES - 1) % len(lanes)].stream)
    return cuda.milliseconds(first, last) / BATCHES
