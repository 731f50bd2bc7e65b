"""Tumbling windows in time: what flowed by from one multiple of the window's length to the next.

Windows begin at multiples of their length since the epoch, so that those of all instances, processes and replicas cover
the same spans, and can be merged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.drift.errors import DriftError
from headrace.drift.packing import pack, unpack
from headrace.drift.plan import plan_from_json, plan_json
from headrace.drift.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from headrace.drift.extract import Columns
    from headrace.drift.plan import Plan

Plans = dict[str, "Plan"]


class Window:
    """One span. start_ms: since the epoch. offered: rows that flowed by, sampled or not. tallies: by `Watch.key`."""

    __slots__ = ("offered", "start_ms", "tallies")

    def __init__(self, start_ms: int) -> None:
        self.start_ms = start_ms
        self.offered = 0
        self.tallies: dict[str, Tally] = {}

    def __repr__(self) -> str:
        return f"<Window from {self.start_ms}: {self.sampled} of {self.offered} rows>"

    @property
    def sampled(self) -> int:
        """Rows that were counted."""
        return max((tally.rows for tally in self.tallies.values()), default=0)

    def add(self, plan: Plan, columns: Columns) -> None:
        """Counts rows of one tensor."""
        key = plan.watch.key
        if key not in self.tallies:
            self.tallies[key] = Tally(plan)
        self.tallies[key].update(columns)

    def merge(self, other: Window, counts_alone: bool = False) -> None:
        """Adds the rows of another, see `Tally.merge`; the span stays. Raises DriftError where a plan differs."""
        self.offered += other.offered
        for key, tally in other.tallies.items():
            if key not in self.tallies:
                self.tallies[key] = Tally(tally.plan)
            self.tallies[key].merge(tally, counts_alone)


class Record:
    """The windows of one model version, the newest `keep` of them, and the plans that they are counted by.

    A clock that was ahead and is set back leaves windows that have not been yet: they are the first to be forgotten.
    """

    def __init__(self, model: str, version: str, window_ms: int, keep: int) -> None:
        self.model = model
        self.version = version
        self.window_ms = window_ms
        self.keep = keep
        self.plans: Plans = {}
        self.windows: dict[int, Window] = {}

    def __repr__(self) -> str:
        return f"<Record of {self.model}/{self.version}: {len(self.windows)} of {self.keep} windows>"

    def at(self, now_ms: int) -> Window:
        """The window that `now_ms` lies in; what is farthest from it is forgotten when there are too many."""
        start = now_ms - now_ms % self.window_ms
        if start not in self.windows:
            self.windows[start] = Window(start)
            self._trim(start)
        return self.windows[start]

    def ended(self, now_ms: int) -> list[int]:
        """The starts of windows that are over, ascending."""
        return sorted(start for start in self.windows if start + self.window_ms <= now_ms)

    def merged(self, end_ms: int, count: int, counts_alone: bool = False) -> Window:
        """All of the `count` windows that end at `end_ms` as one, see `Tally.merge`; where nothing flowed, none is."""
        first = end_ms - count * self.window_ms
        whole = Window(first)
        for start, window in self.windows.items():
            if first <= start < end_ms:
                whole.merge(window, counts_alone)
        return whole

    def merge(self, other: Record) -> None:
        """Adds what another instance, process or replica has recorded. Raises DriftError if it is of something else."""
        if (self.model, self.version, self.window_ms) != (other.model, other.version, other.window_ms):
            raise DriftError(
                f"{other!r} of {other.window_ms} ms, expected one of {self.model}/{self.version} of {self.window_ms} ms"
            )
        for key, plan in other.plans.items():
            if self.plans.setdefault(key, plan).fingerprint != plan.fingerprint:
                raise DriftError(f"{key} was counted by another plan: replicas share one through their reference")
        for start, window in other.windows.items():
            self.windows.setdefault(start, Window(start)).merge(window)
        self._trim(max(self.windows, default=0))

    def _trim(self, now_ms: int) -> None:
        for start in sorted(self.windows, key=lambda start: abs(start - now_ms))[self.keep :]:
            del self.windows[start]

    def pack(self, extra: Mapping[str, Any]) -> bytes:
        """As octets with a checksum, and `extra`, JSON, with them."""
        arrays: dict[str, NDArray[Any]] = {}
        windows = []
        for start, window in sorted(self.windows.items()):
            windows.append({"start_ms": start, "offered": window.offered, "tensors": list(window.tallies)})
            for key, tally in window.tallies.items():
                arrays |= {f"{start}/{key}/{name}": array for name, array in tally.arrays().items()}
        head = {
            "model": self.model,
            "version": self.version,
            "window_ms": self.window_ms,
            "keep": self.keep,
            "plans": {key: plan_json(plan) for key, plan in self.plans.items()},
            "windows": windows,
            "extra": dict(extra),
        }
        return pack(head, arrays)


def unpack_record(data: bytes) -> tuple[Record, dict[str, Any]]:
    """What `Record.pack` gave, and the extra. Raises DriftError for anything else."""
    head, arrays = unpack(data)
    try:
        record = Record(head["model"], head["version"], head["window_ms"], head["keep"])
        record.plans = {key: plan_from_json(value) for key, value in head["plans"].items()}
        for value in head["windows"]:
            start = value["start_ms"]
            window = record.windows[start] = Window(start)
            window.offered = value["offered"]
            for key in value["tensors"]:
                prefix = f"{start}/{key}/"
                part = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
                window.tallies[key] = Tally.of(record.plans[key], part)
        extra: dict[str, Any] = head["extra"]
    except (KeyError, TypeError) as error:
        raise DriftError(f"no record of drift windows: {type(error).__name__}: {error}") from None
    return record, extra


def merge_records(records: Iterable[Record]) -> Record:
    """All of them as one. Raises DriftError where they are of different things, or there is none."""
    whole: Record | None = None
    for record in records:
        if whole is None:
            whole = record
        else:
            whole.merge(record)
    if whole is None:
        raise DriftError("no records to merge")
    return whole
