"""A `ReplySink` that remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.messages import Untraced

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.messages import Cancellable


class RecordingSink(Untraced):
    """Keeps the one reply or error; a second of either is an AssertionError.

    message: what `reply` was given. error: what `fail` was given. on_end: called once either is there.
    """

    def __init__(self, on_end: Callable[[], None] | None = None) -> None:
        self.message: Any = None
        self.error: BaseException | None = None
        self.ended = False
        self.under_way: Cancellable | None = None
        self._on_end = on_end

    def __repr__(self) -> str:
        state = "waiting" if not self.ended else "replied" if self.error is None else f"failed: {self.error!r}"
        return f"<RecordingSink {state}>"

    def reply(self, message: Any) -> None:  # noqa: ANN401
        """See `messages.ReplySink`."""
        self._end()
        self.message = message
        if self._on_end is not None:
            self._on_end()

    def fail(self, error: BaseException) -> None:
        """See `messages.ReplySink`."""
        self._end()
        self.error = error
        if self._on_end is not None:
            self._on_end()

    def _end(self) -> None:
        assert not self.ended, f"a second answer to {self!r}"
        self.ended = True
        self.under_way = None
