"""The essentials of the metrics as one JSON object, for the page that shows them without Prometheus and Grafana.

Counts and sums since a version was loaded, as in /metrics: whoever wants rates asks twice and divides by the difference
of `seconds`. Aggregates only: nothing of a request's content, no path, no address.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from headrace import __version__
from headrace.clock import monotonic_ns
from headrace.messages import PHASES
from headrace.telemetry.recorder import REQUEST_EDGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from headrace.clock import Clock
    from headrace.telemetry.metrics import Metrics
    from headrace.telemetry.recorder import Reading
    from headrace.telemetry.server_metrics import ServerMetrics

    Entries = Callable[[], Iterable[Mapping[str, Any]]]
    """See `drift_metrics.brief` and `guard_metrics.brief`."""

FRESH_NS: Final = 500_000_000
"""How old an answer may be: however many pages are open, the metrics are read twice a second at most."""

EDGES_S: Final = tuple(edge / 1e9 for edge in REQUEST_EDGES.tolist())


class Summary:
    """Reads the metrics of all models, a model in each turn of the event loop.

    drift, guards: what is known of them now; nothing where no model is watched, no version guarded.
    """

    def __init__(
        self,
        metrics: Metrics,
        counts: ServerMetrics,
        drift: Entries = tuple,
        clock: Clock = monotonic_ns,
        guards: Entries = tuple,
    ) -> None:
        self._metrics = metrics
        self._counts = counts
        self._drift = drift
        self._guards = guards
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self._made = 0
        self._last: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<Summary {'of no moment yet' if self._last is None else f'made at {self._made} ns'}>"

    async def read(self) -> dict[str, Any]:
        """The object, at most `FRESH_NS` old; docs/rest.md has its members."""
        async with self._one_at_a_time:
            if self._last is None or self._clock() - self._made >= FRESH_NS:
                self._last = await self._make()
                self._made = self._clock()
            return self._last

    async def _make(self) -> dict[str, Any]:
        models = []
        for name, version, state in self._counts.model_states():
            recorder = self._metrics.recorder(name, version)
            told: dict[str, Any] = {"name": name, "version": version, "state": state}
            if recorder is not None:
                # each with its moment: the loop may be busy between two models
                told |= {"seconds": self._clock() / 1e9} | summary_of(recorder.read())
            models.append(told)
            await asyncio.sleep(0)
        return {
            "server": "headrace",
            "version": __version__,
            "connections": self._counts.connections_open,
            "http_connections": self._counts.http_connections_open,
            "latency_edges_s": EDGES_S,
            "models": models,
            "drift": list(self._drift()),
            "guards": list(self._guards()),
        }


def summary_of(reading: Reading) -> dict[str, Any]:
    """What is told of one model version, beside its name and state. Times are seconds, all else are counts."""
    statistics = reading.statistics
    reasons: Counter[str] = Counter()
    for (reason, _), count in reading.closed.items():
        reasons[reason] += count
    return {
        "requests": statistics.success.count,
        "rows": statistics.inference_count,
        "refused": dict(reading.refused),
        "late": reading.late,
        "queue": {"requests": reading.queue[0], "rows": reading.queue[1], "wait_s": reading.wait_ns / 1e9},
        "latency": reading.request.counts.tolist(),
        "phases_s": {phase: reading.phases[phase].total / 1e9 for phase in PHASES},
        "phase_requests": reading.phases["execute"].count,
        "batches": {str(batch.batch_size): batch.compute_infer.count for batch in statistics.batches},
        "close_reasons": dict(reasons),
        "busy_s": {str(instance): ns / 1e9 for instance, ns in reading.busy.items()},
        "wasted_rows": reading.wasted_rows,
        "elements": reading.elements,
        "padding": reading.padding,
    }
