"""A session on a device and the stream that it computes in, shared by the batches that are in flight.

Each batch has buffers and a stream for its copies (`backends.staging.Lane`); the session's weights are there once, and
batches compute in its stream one after another, while the copies of others go on.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.backends.base import InstanceLost
from headrace.backends.device import DeviceOutOfMemory
from headrace.backends.onnxruntime.failures import device_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.backends.device import Device, Graph, Stream

T = TypeVar("T")


class Executor:
    """Opens a session that computes in a stream of `device`, and calls it for one batch at a time.

    open_session: takes the stream's handle. lost: whether the device has failed.
    """

    def __init__(self, device: Device, open_session: Callable[[int], Any]) -> None:
        self.device = device
        self.lost = False
        self._lock = Lock()
        device.use()
        self.stream = device.stream()
        try:
            self.session = open_session(self.stream.handle)
        except BaseException:
            self.stream.close()
            raise

    def __repr__(self) -> str:
        state = "closed" if self.session is None else "lost" if self.lost else "open"
        return f"<Executor on {self.device.name} {self.device.index}, {state}>"

    def call(self, work: Callable[[], T]) -> T:
        """What `work` returns, which alone uses the session and its stream meanwhile."""
        with self._lock:
            return work()

    def record(self, work: Callable[[], None], *, closed: bool = False) -> Graph:
        """A graph of what `work` puts into the stream, for `compute` to launch there: none of it is done.

        closed: see `Stream.capture`. Raises DeviceError if it cannot be one.
        """
        return self.call(lambda: self.stream.capture(work, closed=closed))

    def compute(self, lane_stream: Stream, work: Callable[[], None]) -> None:
        """Has `work` put its computation behind what the lane has been given, and the lane wait for it in turn."""

        def between() -> None:
            _follow(self.stream, lane_stream)
            work()
            _follow(lane_stream, self.stream)

        self.call(between)

    def failed(self, error: Exception, *streams: Stream, for_good: bool = True) -> None:
        """Raises InstanceLost if it was the device that failed with this error.

        Waits for whatever is under way in the executor's stream and in these, so that buffers can be used again.
        for_good: whether memory that has not sufficed for this batch will not for others, as they are all alike.
        """
        lost = error if isinstance(error, InstanceLost) else device_error(str(error))
        if isinstance(lost, DeviceOutOfMemory) and lost is not error and not for_good:
            lost = None
        try:
            self.device.use()
            for stream in (self.stream, *streams):
                stream.synchronize()
        except InstanceLost as found:
            lost = lost or found
        except Exception as another:
            error.add_note(f"and then: {another}")
        try:
            if lost is not None:
                self.lost = True
                if lost is not error:
                    raise lost from error
        finally:
            del lost  # else it would keep the session alive, by its traceback, until cycles are collected

    def close(self) -> None:
        """Frees everything. Nothing may be under way."""
        self.session = None  # before its stream
        self.stream.close()


def _follow(later: Stream, earlier: Stream) -> None:
    """What `later` is given from now on is done behind what `earlier` has been given."""
    event = earlier.record()
    try:
        later.wait(event)
    finally:
        event.close()
