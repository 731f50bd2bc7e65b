"""Traces of single requests in the log, as clients ask for them: how long each phase took, by Triton's trace extension.

Off, it costs a batch one comparison. `trace_rate` N takes every Nth request, `trace_count` as many as that and no more.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from headrace.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.telemetry.observer import BatchRecord
    from headrace.telemetry.recorder import ModelRecorder

logger = logging.getLogger(__name__)

LEVELS = ("OFF", "TIMESTAMPS")
_FIXED = {"log_frequency": "0", "trace_file": "", "trace_mode": "log"}
"""What is as it is: traces go to the log, one by one."""
_MAX = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """level: one of LEVELS. rate: every so many requests. count: requests that are still to be traced, -1 for any."""

    level: str = "OFF"
    rate: int = 1000
    count: int = -1

    def shown(self) -> dict[str, list[str]]:
        """As the protocol has them."""
        return {
            "trace_level": [self.level],
            "trace_rate": [str(self.rate)],
            "trace_count": [str(self.count)],
            **{key: [value] for key, value in _FIXED.items()},
        }


class _ModelTrace:
    """Traces the requests of one model version."""

    __slots__ = ("_model", "_seen", "_settings", "left")

    def __init__(self, model: str, settings: TraceSettings) -> None:
        self._model = model
        self._settings = settings
        self._seen = 0
        self.left = settings.count

    def __call__(self, record: BatchRecord) -> None:
        rate = self._settings.rate
        first = rate - self._seen % rate - 1  # index of the next one
        self._seen += len(record.rows)
        for index in range(first, len(record.rows), rate):
            if self.left == 0:
                return
            self.left -= self.left > 0
            received, decoded, admitted = record.received[index], record.decoded[index], record.admitted[index]
            moments = (received, decoded, admitted, record.batched, record.started, record.finished, record.encoded)
            names = ("decode_us", "admit_us", "queue_us", "batch_us", "execute_us", "encode_us")
            spent = [(moment - received) // 1000 for moment in moments]
            logger.info(
                "trace of a request",
                extra={
                    "model": self._model,
                    **{name: b - a for name, a, b in zip(names, spent, spent[1:], strict=False)},
                    "total_us": spent[-1],
                    "rows": record.rows[index],
                    "batch_rows": record.batch_rows,
                    "batch_requests": len(record.rows),
                    "closed": record.close_reason,
                    "instance": record.instance,
                },
            )


class Tracer:
    """The settings of all models, and those of single ones; has recorders trace accordingly."""

    def __init__(self) -> None:
        self._common = TraceSettings()
        self._own: dict[str, dict[str, object]] = {}  # by model: the settings that differ
        self._recorders: dict[tuple[str, str], ModelRecorder] = {}

    def __repr__(self) -> str:
        return f"<Tracer {self._common.level}, {len(self._own)} models of their own>"

    def attach(self, recorder: ModelRecorder) -> None:
        """A model version has been loaded."""
        self._recorders[recorder.model, recorder.version] = recorder
        self._apply(recorder)

    def detach(self, model: str, version: str) -> None:
        """It has been unloaded."""
        self._recorders.pop((model, version), None)

    def settings(self, model: str = "") -> TraceSettings:
        """Those of a model, or with an empty name those that hold for all others."""
        return replace(self._common, **self._own.get(model, {}))  # type: ignore[arg-type]

    def update(self, changes: Mapping[str, Sequence[str]], model: str = "") -> TraceSettings:
        """Changes settings of a model, or those of all; no value: back to what holds for all, or to the default.

        Raises InvalidRequest, and then changes nothing.
        """
        parsed = {name: value for key, values in changes.items() for name, value in _parse(key, values)}
        if model:
            own = self._own.get(model, {}) | parsed
            self._own[model] = {name: value for name, value in own.items() if value is not None}
        else:
            defaults = TraceSettings()
            back = {name: getattr(defaults, name) for name, value in parsed.items() if value is None}
            self._common = replace(self._common, **(parsed | back))  # type: ignore[arg-type]
        for recorder in self._recorders.values():
            if not model or recorder.model == model:
                self._apply(recorder)
        return self.settings(model)

    def _apply(self, recorder: ModelRecorder) -> None:
        settings = self.settings(recorder.model)
        recorder.trace = None if settings.level == "OFF" else _ModelTrace(recorder.model, settings)


def _parse(key: str, values: Sequence[str]) -> list[tuple[str, object]]:
    """The settings that a change names, checked. Raises InvalidRequest."""
    text = values[0] if len(values) == 1 else " ".join(values)
    if key in _FIXED:
        if values and text != _FIXED[key]:
            raise InvalidRequest(f"trace setting '{key}' is '{text}', expected '{_FIXED[key]}': it cannot be changed")
        return []
    if key == "trace_level":
        if values and text not in LEVELS:
            raise InvalidRequest(f"trace setting 'trace_level' is '{text}', expected one of {', '.join(LEVELS)}")
        return [("level", text if values else None)]
    least = {"trace_rate": 1, "trace_count": -1}.get(key)
    if least is None:
        known = ["trace_level", "trace_rate", "trace_count", *_FIXED]
        raise InvalidRequest(f"unknown trace setting '{key}', expected one of {', '.join(known)}")
    if not values:
        return [(key.removeprefix("trace_"), None)]
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= _MAX:
        raise InvalidRequest(f"trace setting '{key}' is '{text}', expected an integer of at least {least}")
    return [(key.removeprefix("trace_"), number)]
