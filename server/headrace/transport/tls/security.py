"""TLS of a server that runs: its ports, and their certificate, which is read again when its files change."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING

from headrace.clock import wall_ms
from headrace.errors import ConfigError
from headrace.telemetry.tls import TlsMetrics
from headrace.transport.tls import files
from headrace.transport.tls.layer import TlsPort

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

    from headrace.config import Settings, TlsSettings
    from headrace.transport.tls.files import Credentials

    Reading = tuple[Credentials, dict[str, ssl.SSLContext]]

logger = logging.getLogger(__name__)


class Security:
    """What `[tls]` says, in force. Raises ConfigError where its files are no good.

    grpc, http: for the native transport and the HTTP port; None where they speak plain text. credentials: what the
    files said last; None without TLS. registry: gets TLS's metrics, if there is TLS; so does `metrics`. wall: Unix time
    in ms. reloaded: called when the files were read again and are good, if others read them as well.
    """

    def __init__(self, settings: Settings, registry: CollectorRegistry, wall: Callable[[], int] = wall_ms) -> None:
        self.grpc: TlsPort | None = None
        self.http: TlsPort | None = None
        self.credentials: Credentials | None = None
        self.settings = settings
        self.metrics: TlsMetrics | None = None
        self.reloaded: Callable[[], None] | None = None
        self._wall = wall
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        if not settings.tls.certificate:
            return
        self.metrics = self._metrics = TlsMetrics(registry)
        self._stamp = files.stamp(settings.tls)
        credentials, contexts = _read(settings.tls)
        timeout_s = settings.tls.handshake_timeout_s
        if settings.secures("grpc") and settings.transport == "native":
            self.grpc = TlsPort("grpc", contexts["grpc"], self._metrics, alpn="h2", timeout_s=timeout_s)
        if settings.secures("http"):
            self.http = TlsPort("http", contexts["http"], self._metrics, timeout_s=timeout_s)
        self._take(credentials, contexts)

    def __repr__(self) -> str:
        return f"<Security {self.credentials or 'plain text'}>"

    def start(self, *, follows: bool = False) -> None:
        """Watches the files, and reads them again on SIGHUP. In the event loop of the main thread.

        follows: they are read again when `reload` is called, and not else.
        """
        if self.credentials is None:
            return
        self._task = asyncio.create_task(self._watch(None if follows else self.settings.tls.reload_s or None))
        if not follows:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)

    def reload(self) -> None:
        """Has the files read again, changed or not."""
        self._asked.set()

    async def close(self) -> None:
        """Stops watching. Connections are their protocols' to end."""
        if self._task is not None:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None

    def announce(self) -> None:
        """Says in the log what each port speaks; plain text that others can reach is a warning."""
        settings = self.settings
        clients = f", client certificates {settings.tls.client_certificates}" if settings.tls.client_ca else ""
        for secured, name in ((settings.secures("grpc"), "gRPC"), (settings.secures("http"), "HTTP")):
            if secured:
                logger.info("%s: TLS %s or later%s", name, settings.tls.minimum_version, clients)
            elif settings.local:
                logger.info("%s: plain text, which does not leave this machine", name)
            else:
                logger.warning(
                    "%s: plain text on %s: whoever is on the way can read and change it; set tls.certificate",
                    name,
                    settings.host,
                )

    async def look(self, *, asked: bool = False) -> None:
        """Reads the files again if they have changed since the last look, or if asked to.

        New connections get the new certificate. One that is no good is reported, and the one in use stays.
        """
        stamp = await asyncio.to_thread(files.stamp, self.settings.tls)
        if stamp == self._stamp and not asked:
            return
        self._stamp = stamp
        try:
            credentials, contexts = await asyncio.to_thread(_read, self.settings.tls)
        except ConfigError as error:
            self._metrics.reloads["failed"] += 1
            logger.error("TLS files are not taken, those in use stay: %s", error)
        else:
            self._metrics.reloads["done"] += 1
            self._take(credentials, contexts)
            if self.reloaded is not None:
                self.reloaded()

    async def _watch(self, every_s: float | None) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._asked.wait()
            asked = self._asked.is_set()
            self._asked.clear()
            try:
                await self.look(asked=asked)
            except Exception:  # whatever it is, the next look may be better
                logger.exception("TLS files could not be looked at")

    def _take(self, credentials: Credentials, contexts: dict[str, ssl.SSLContext]) -> None:
        self.credentials = credentials
        for port in (self.grpc, self.http):
            if port is not None:
                port.context = contexts[port.name]
        self._metrics.not_after = credentials.not_after
        now = self._wall() / 1000
        fields = {
            "file": credentials.settings.certificate,
            "sha256": credentials.sha256,
            "not_before": files.date(credentials.not_before),
            "not_after": files.date(credentials.not_after),
        }
        if now > credentials.not_after:
            logger.warning("the certificate has expired: clients will refuse it", extra=fields)
        elif now < credentials.not_before:
            logger.warning("the certificate is not valid yet: clients will refuse it", extra=fields)
        else:
            logger.info("the certificate is in use", extra=fields)


def _read(settings: TlsSettings) -> Reading:
    """The files, and a context for each port. Raises ConfigError."""
    credentials = files.load(settings)
    return credentials, {"grpc": credentials.context("h2"), "http": credentials.context("http/1.1")}
