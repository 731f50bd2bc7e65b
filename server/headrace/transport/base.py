"""What `headrace serve` asks of a gRPC transport."""

from __future__ import annotations

from typing import Protocol


class GrpcTransport(Protocol):
    """A gRPC server on one address: native, or grpcio's. All three run on the event loop that serves."""

    async def start(self) -> int:
        """Binds, listens and returns the port (the one chosen, where 0 was asked for). OSError: cannot bind."""
        ...

    async def drain(self, seconds: float) -> bool:
        """Takes no new connections and calls, and returns when all unary calls are answered or `seconds` have passed.

        Streams do not hold it up: a client may keep a health watch open for ever. False: some replies are known not to
        have gone out.
        """
        ...

    async def close(self) -> None:
        """Ends what is left at once. Safe to call twice, and without `drain` or `start`."""
        ...
