"""Whether a connection is read, and written to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from headrace.transport.pace import OUT, Pace

if TYPE_CHECKING:
    from asyncio import Transport


_LEAST_PACE = 100
"""Octets a second that a client has to take of its replies, to be none that does not read."""


class Flow:
    """The state of both directions, in the place of uvicorn's `FlowControl`: reading is not the application's.

    stalled_s: for how long a client may leave its replies alone.
    """

    __slots__ = ("_pace", "_transport", "_writable", "reading", "write_paused")

    def __init__(self, transport: Transport, stalled_s: float) -> None:
        self._transport = transport
        self._pace = Pace(int(stalled_s * 1e9), max(1, int(stalled_s * _LEAST_PACE)))
        self.reading = True
        self._writable = asyncio.Event()
        self._writable.set()
        self.write_paused = False

    def __repr__(self) -> str:
        return f"<Flow {'reads' if self.reading else 'does not read'}, write_paused={self.write_paused}>"

    def pause_reads(self) -> None:
        """Takes nothing more from the client."""
        if self.reading:
            self.reading = False
            self._transport.pause_reading()

    def resume_reads(self) -> None:
        """Goes on."""
        if not self.reading:
            self.reading = True
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        """The client does not read."""
        self.write_paused = True
        self._writable.clear()

    def resume_writing(self) -> None:
        """It does."""
        self.write_paused = False
        self._writable.set()

    def stalled(self, now: int) -> bool:
        """Whether the client has taken next to nothing for too long; asked with each pause, its end, and now and then.

        now: monotonic ns.
        """
        unsent = {(0, OUT): -self._transport.get_write_buffer_size()} if self.write_paused else {}
        return bool(self._pace.stalled(unsent, now))

    async def drain(self) -> None:
        """Of uvicorn's: returns once the client reads."""
        await self._writable.wait()

    def resume_reading(self) -> None:
        """Of uvicorn's: the application asks for the body. It has all of it already."""
