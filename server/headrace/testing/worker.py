"""A worker whose thread is only pretended: its batches end on the event loop, when their time is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.engine.worker import Worker
from headrace.testing.backend import FakeInstance

if TYPE_CHECKING:
    from headrace.engine.worker import Job


class VirtualWorker(Worker):
    """A `Worker` for `FakeInstance`s on a `VirtualTimeLoop`: as concurrent as threads, and as repeatable as a test.

    The model computes when its batch ends, so that what happens meanwhile (a cancellation) is there to be seen.
    """

    _under_way: Job | None = None
    _closing = False

    def start(self, job: Job) -> None:
        """See `Worker.start`."""
        assert self._under_way is None, "two batches on one instance"
        assert isinstance(self.instance, FakeInstance)
        self._under_way = job
        job.batch.started = self._clock()
        self._loop.call_later(self.instance.latency_ns(job.batch.rows) / 1e9, self._over)

    def close(self) -> None:
        """See `Worker.close`."""
        self._closing = True
        if self._under_way is None:
            self.instance.close()

    def leave(self) -> None:
        """See `Worker.leave`."""
        self.close()

    def _over(self) -> None:
        instance, job = self.instance, self._under_way
        assert isinstance(instance, FakeInstance)
        assert job is not None
        if instance.held:
            instance.when_released(self._over)
            return
        started = job.batch.started
        with instance.model.timeless():
            self.run(job)
        job.batch.started = started
        self._under_way = None
        if self._closing:  # before, so that what is done now may close it too
            instance.close()
        self._done(self, job)
