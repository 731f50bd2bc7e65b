"""The socket between engine and worker: records in, and what has gathered of them out once in a turn of the loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from headrace.transport.grpc_messages import large_buffer
from headrace.transport.workers import records

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headrace.engine.turn import Turn
    from headrace.messages import Buffer
    from headrace.transport.workers.records import Handler

_READ_BUFFER = 256 << 10
_LARGE = 64 << 10
"""A record of more octets is read into a buffer of its own, which the message in it keeps."""
_HIGH_WATER = 1 << 20
"""Octets that wait for the socket, from which on `paused` is told."""


class Link(asyncio.BufferedProtocol):
    """One end. `out` is what waits to be written, in order: whoever adds to it while it is empty calls `wake` first.

    handlers: take the records that come. lost: told the end of the connection, with what was wrong, if anything.
    paused: told True when much waits that the other side does not read, and False when it does again.
    gather: called before each write, to add what it has.
    """

    def __init__(
        self,
        turn: Turn,
        handlers: Mapping[int, Handler],
        lost: Callable[[Exception | None], None],
        paused: Callable[[bool], None] = lambda paused: None,
        gather: Callable[[], None] = lambda: None,
    ) -> None:
        self.out: list[Buffer] = []
        self._turn = turn
        self._handlers = handlers
        self._lost = lost
        self._paused = paused
        self._gather = gather
        self._due = False
        self._transport: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(_READ_BUFFER))
        self._tail = b""
        self._large: memoryview | None = None
        self._filled = 0

    def __repr__(self) -> str:
        return f"<Link {len(self.out)} to write, {len(self._tail)} octets of a record>"

    # --- out ----------------------------------------------------------------------------------------------------------

    def send(self, *parts: Buffer) -> None:
        """Sends records at the end of this turn."""
        self.wake()
        self.out += parts

    def wake(self) -> None:
        """Has what is in `out`, or will be in this turn, written at its end."""
        if not self._due:
            self._due = True
            self._turn.write(self._flush)

    def _flush(self) -> None:
        self._due = False
        self._gather()
        if self.out and self._transport is not None:
            joined = b"".join(self.out)
            self.out.clear()
            self._transport.write(joined)

    def close(self) -> None:
        """Sends what is left, and ends the connection."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def abort(self) -> None:
        """Ends the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.BufferedProtocol -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BufferedProtocol."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(_HIGH_WATER)
        if self.out:
            self.wake()

    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio.BufferedProtocol."""
        return self._buffer if self._large is None else self._large[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio.BufferedProtocol."""
        try:
            if self._large is None:
                self._read(self._tail + bytes(self._buffer[:nbytes]))
                return
            self._filled += nbytes
            if self._filled == len(self._large):
                large, self._large = self._large, None
                records.read(large, self._handlers)
        except records.Malformed as error:
            self.abort()
            self._end(error)

    def pause_writing(self) -> None:
        """See asyncio.BufferedProtocol."""
        self._paused(True)

    def resume_writing(self) -> None:
        """See asyncio.BufferedProtocol."""
        self._paused(False)

    def eof_received(self) -> bool:
        """See asyncio.BufferedProtocol."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.BufferedProtocol."""
        self._end(exc)

    def _read(self, data: bytes) -> None:
        done = records.read(data, self._handlers)
        length = records.length_of(data[done : done + records.HEAD_SIZE])
        if length > _LARGE:
            self._large = large_buffer(length)
            self._filled = len(data) - done
            self._large[: self._filled] = data[done:]
            self._tail = b""
        else:
            self._tail = data[done:]

    def _end(self, error: Exception | None) -> None:
        self._transport = None
        self._large = None
        lost, self._lost = self._lost, lambda error: None
        lost(error)
