"""The gRPC health service.

Source: gRPC health checking protocol, https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from headrace.errors import ServiceNotFound
from headrace.rpc.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

SERVICES = frozenset({"", "inference.GRPCInferenceService"})
"""What has a health: the server as a whole, and the one service that can be unready. They share it."""


class Health:
    """Whether the server takes requests, for those who ask and those who watch. Lives on one event loop.

    heard: called after each change, if somebody else has to know.
    """

    def __init__(self) -> None:
        self.serving = False
        self.heard: Callable[[], None] | None = None
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Health {'serving' if self.serving else 'not serving'}>"

    def set_serving(self, serving: bool) -> None:
        """Sets the state and wakes the watchers, who tell their clients if it is another one."""
        self.serving = serving
        self._changed.set()
        self._changed = asyncio.Event()
        if self.heard is not None:
            self.heard()

    def check(self, request: HealthCheckRequest) -> HealthCheckResponse:
        """The state now. Raises ServiceNotFound."""
        if request.service not in SERVICES:
            raise ServiceNotFound(f"unknown service '{request.service}'")
        return HealthCheckResponse(status=self._status(request.service))

    def list(self, request: HealthListRequest) -> HealthListResponse:
        """The state of every service now."""
        return HealthListResponse(statuses={name: HealthCheckResponse(status=self._status(name)) for name in SERVICES})

    async def watch(self, request: HealthCheckRequest) -> AsyncIterator[HealthCheckResponse]:
        """The state now, then each change; never ends. A watcher that reads slowly sees the latest state only."""
        told = None
        while True:
            changed = self._changed  # taken before the state is read, so that no change falls in between
            status = self._status(request.service)
            if status != told:
                yield HealthCheckResponse(status=status)
                told = status
            await changed.wait()

    def _status(self, service: str) -> HealthCheckResponse.ServingStatus:
        if service not in SERVICES:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if self.serving else HealthCheckResponse.NOT_SERVING
