"""What TensorRT says: into the server's log, and to whoever called it.

Most of its calls tell a failure by None or False alone; why is in a message to the logger.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any, SupportsInt, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headrace.backends.tensorrt.api import Module

log = logging.getLogger(__name__)

_LEVELS = (logging.ERROR, logging.ERROR, logging.WARNING, logging.DEBUG)
"""By TensorRT's severity: internal error, error, warning, info. Verbose messages, the next, are dropped."""
_ERROR = 1
PROGRESS_NS = 10_000_000_000
"""A build says so often how far it is."""


class Messages:
    """Takes messages from any thread."""

    def __init__(self) -> None:
        self._collected: dict[int, list[str]] = {}

    def log(self, severity: SupportsInt, msg: str) -> None:
        """What TensorRT calls. An error of a thread that nobody collects from belongs to all that are collected."""
        level = int(severity)
        if level >= len(_LEVELS):
            return
        if level <= _ERROR:
            own = self._collected.get(get_ident())
            for errors in list(self._collected.values()) if own is None else (own,):
                errors.append(msg.strip())
        log.log(_LEVELS[level], "%s", msg)

    @contextmanager
    def collect(self) -> Iterator[list[str]]:
        """The errors of what this thread does inside."""
        thread = get_ident()
        before = self._collected.get(thread)
        errors: list[str] = []
        self._collected[thread] = errors
        try:
            yield errors
        finally:
            if before is None:
                del self._collected[thread]
            else:
                before += errors
                self._collected[thread] = before


class Progress:
    """Logs how far a build is. label: of what. clock: in ns."""

    def __init__(self, label: str, clock: Callable[[], int]) -> None:
        self._label = label
        self._clock = clock
        self._said = clock()
        self._steps: dict[str, int] = {}

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """What TensorRT calls: a phase begins."""
        self._steps[phase_name] = num_steps

    def step_complete(self, phase_name: str, step: int) -> bool:
        """What TensorRT calls: a step, counted from 0, is done. True: go on."""
        now = self._clock()
        if now - self._said >= PROGRESS_NS:
            self._said = now
            steps = self._steps.get(phase_name, 0)
            log.info("%s: TensorRT builds: %s, step %d of %d", self._label, phase_name, step + 1, steps)
        return True

    def phase_finish(self, phase_name: str) -> None:
        """What TensorRT calls: a phase is over."""
        self._steps.pop(phase_name, None)


def make_log(trt: Module) -> Messages:
    """Messages as a logger of that module."""
    return cast("Messages", _derived(Messages, trt.ILogger)())


def make_progress(trt: Module, label: str, clock: Callable[[], int]) -> Progress:
    """A progress monitor of that module."""
    return cast("Progress", _derived(Progress, trt.IProgressMonitor)(label, clock))


def _derived(ours: Any, theirs: Any) -> Any:  # noqa: ANN401  -- a class that is made here has no type
    """A class of both. Theirs has a part in C++, whose constructor must be called by name."""

    def __init__(self: object, *args: object) -> None:  # noqa: N807
        theirs.__init__(self)
        ours.__init__(self, *args)

    return type(ours.__name__, (ours, theirs), {"__init__": __init__})
