"""Whether a connection is read, and written to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import Transport


class Flow:
    """The state of both directions, in the place of uvicorn's `FlowControl`: reading is not the application's."""

    __slots__ = ("_transport", "_writable", "reading", "write_paused")

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
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

    async def drain(self) -> None:
        """Of uvicorn's: returns once the client reads."""
        await self._writable.wait()

    def resume_reading(self) -> None:
        """Of uvicorn's: the application asks for the body. It has all of it already."""
