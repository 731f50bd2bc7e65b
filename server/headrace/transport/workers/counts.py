"""What a worker counts, on its way into the engine's metrics."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections import Counter

    from headrace.telemetry.server_metrics import ServerMetrics
    from headrace.telemetry.tls import TlsMetrics

    Snapshot = dict[str, Any]

_OPEN = ("connections_open", "streams_open")
_NUMBERS = (*_OPEN, "connections_total", "streams_total", "bytes_received", "bytes_sent")
_COUNTERS = ("protocol_errors", "http2_limits")
_TLS_COUNTERS = ("handshakes", "failures")


def snapshot(counts: ServerMetrics, tls: TlsMetrics | None) -> Snapshot:
    """All of it, as JSON takes it: what was counted since the worker began, and what its process has used."""
    used = os.times()
    return {
        **{name: getattr(counts, name) for name in _NUMBERS},
        **{name: list(getattr(counts, name).items()) for name in _COUNTERS},
        **{name: list(getattr(tls, name).items()) for name in _TLS_COUNTERS if tls is not None},
        "cpu_seconds": used.user + used.system,
        "resident_bytes": _resident(),
    }


def add(counts: ServerMetrics, tls: TlsMetrics | None, before: Snapshot, now: Snapshot) -> None:
    """Adds what a worker has counted between two snapshots; `before` is empty for the first."""
    for name in _NUMBERS:
        setattr(counts, name, getattr(counts, name) + now[name] - before.get(name, 0))
    for name in _COUNTERS:
        _add(getattr(counts, name), before, now, name)
    for name in _TLS_COUNTERS:
        if tls is not None and name in now:
            _add(getattr(tls, name), before, now, name)


def take_away_open(counts: ServerMetrics, last: Snapshot) -> None:
    """The worker is gone, and with it what was open."""
    for name in _OPEN:
        setattr(counts, name, getattr(counts, name) - last.get(name, 0))


def _add(counter: Counter[Any], before: Snapshot, now: Snapshot, name: str) -> None:
    known = {_key(key): count for key, count in before.get(name, ())}
    for key, count in now[name]:
        label = _key(key)
        counter[label] += count - known.get(label, 0)


def _key(key: Any) -> Any:  # noqa: ANN401 - as the counter has it: text, or a tuple, which JSON makes a list
    return tuple(key) if isinstance(key, list) else key


def _resident() -> int:
    """Octets of this process that are in memory, with its share of the region (proc(5)); 0 where nobody says."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
