"""The drift of one model version: rows in, windows kept, alarms out. Knows no thread and no clock."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.drift.alarms import Alarms, AlarmSettings, Event, Finding, findings_of
from headrace.drift.assess import Assessment, assess
from headrace.drift.errors import DriftError
from headrace.drift.extract import Columns, Extractor
from headrace.drift.plan import Plan, draw_plan
from headrace.drift.summary import summary_of
from headrace.drift.windows import Record, unpack_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from headrace.drift.reference import Reference
    from headrace.drift.watch import Watch
    from headrace.drift.windows import Window

PLAN_ROWS = 512
"""Without a reference, so many rows are kept in memory, and never written, before a plan can be drawn from them."""


class Monitor:
    """Counts what flows through one model version, and holds it against a reference, if there is one.

    A tensor that the reference has nothing of is counted, but not judged. salt: for plans that are drawn here.
    judged_ms: the end of the newest window that was judged, since the epoch. Raises DriftError for a reference that
    has none of the tensors, or was made for other features of one than are watched.
    """

    def __init__(
        self,
        model: str,
        version: str,
        watches: Iterable[Watch],
        settings: AlarmSettings,
        salt: bytes,
        reference: Reference | None = None,
    ) -> None:
        self.settings = settings
        self.reference = reference
        self.record = Record(model, version, settings.window_ms, settings.keep)
        self.alarms = Alarms(settings)
        self.latest: list[Finding] = []
        self._salt = salt
        self.judged_ms = 0
        self._watches = {watch.key: watch for watch in watches}
        self._drawn: dict[str, list[Columns]] = {}
        self._extractors: dict[str, Extractor] = {}
        if reference is not None and not self._watches.keys() & reference.tensors.keys():
            raise DriftError(
                f"the reference ({reference.source}) has none of {', '.join(self._watches)}, but "
                f"{', '.join(reference.tensors)}: run `headrace drift fit` for this model"
            )
        for key, watch in self._watches.items():
            if reference is not None and key in reference.tensors:
                self.record.plans[key] = _plan_for(watch, reference)
            plan = self.record.plans.get(key)
            self._extractors[key] = Extractor(watch, salt) if plan is None else plan.extractor()

    def __repr__(self) -> str:
        return f"<Monitor: {self.record!r}, {self.alarms!r}>"

    @property
    def watches(self) -> Iterable[Watch]:
        """What is watched."""
        return self._watches.values()

    def count(self, now_ms: int, tensors: Mapping[str, NDArray[Any]], offered: int) -> None:
        """Counts sampled rows. tensors: by `Watch.key`, each [rows, ...]; offered: rows that flowed by, these included.

        Raises DriftError for rows that are not of their tensor; the other tensors are counted.
        """
        window = self.record.at(now_ms)
        window.offered += offered
        problems = []
        for key, rows in tensors.items():
            if key not in self._watches or not len(rows):
                continue
            try:
                self._add(window, key, self._extractors[key](rows))
            except DriftError as error:
                problems.append(str(error))
        if problems:
            raise DriftError("; ".join(problems))

    def _add(self, window: Window, key: str, columns: Columns) -> None:
        plan = self.record.plans.get(key)
        if plan is None:
            waiting = self._drawn.setdefault(key, [])
            waiting.append(columns)
            if sum(part.rows for part in waiting) < PLAN_ROWS:
                return
            sample = _joined(waiting)
            plan = self.record.plans[key] = draw_plan(self._watches[key], self._salt, sample)
            del self._drawn[key]
            columns = Columns(sample.numbers)  # items that the plan was drawn from are not counted by it: see fit
        window.add(plan, columns)

    def tick(self, now_ms: int) -> list[Event]:
        """Judges the windows that have ended since the last call. Says which alarms were raised, and which are over."""
        events: list[Event] = []
        if self.reference is None:
            return events
        if self.judged_ms > now_ms + self.record.window_ms:  # the clock was ahead: nothing would be judged until then
            self.judged_ms = now_ms - now_ms % self.record.window_ms
        for start in self.record.ended(now_ms):
            end = start + self.record.window_ms
            if end > self.judged_ms:
                events += self._judge(end)
        return events

    def _judge(self, end_ms: int) -> list[Event]:
        self.judged_ms = end_ms
        horizons = []
        for windows in self.settings.horizons:
            merged = self.record.merged(end_ms, windows, counts_alone=True)  # tests ask for no more
            if enough := self._with_enough(self._known_rows([merged])):
                findings = [one for one in self.assess(merged) if one.key in enough]
                horizons.append(findings_of(findings, self.settings, windows))
        if horizons:
            self.latest = [finding for findings in horizons for finding in findings]
        events = self.alarms.step(end_ms, horizons)
        self.alarms.forget(min(self.record.windows, default=end_ms))
        return events

    def unjudged(self, end_ms: int) -> str:
        """Why the windows that end by then, from the longest horizon, could raise no alarm; empty if they could."""
        if self.reference is None:
            return "there is no reference"
        rows, least = max(self._rows_until(end_ms).values(), default=0), self.settings.min_rows
        return "" if rows >= least else f"{rows:,} rows to judge, expected at least {least:,} (drift.min_rows)"

    def judged(self, end_ms: int) -> set[str]:
        """Tensors of which the windows that end by then, from the longest horizon, could raise an alarm."""
        return self._with_enough(self._rows_until(end_ms))

    def _rows_until(self, end_ms: int) -> Mapping[str, int]:
        first = end_ms - self.settings.horizons[-1] * self.record.window_ms
        return self._known_rows(window for start, window in self.record.windows.items() if first <= start < end_ms)

    def _known_rows(self, windows: Iterable[Window]) -> Mapping[str, int]:
        """Rows of each tensor that the reference knows."""
        rows: Counter[str] = Counter()
        for window in windows:
            rows.update({key: tally.rows for key, tally in window.tallies.items()})
        known = () if self.reference is None else self.reference.tensors
        return {key: rows[key] for key in known}

    def _with_enough(self, rows: Mapping[str, int]) -> set[str]:
        return {key for key, count in rows.items() if count >= self.settings.min_rows}

    def assess(self, window: Window) -> list[Assessment]:
        """A window's scores; none without a reference."""
        found: list[Assessment] = []
        tensors = {} if self.reference is None else self.reference.tensors
        for key, tally in window.tallies.items():
            if key in tensors:
                found += assess(tally.plan, tensors[key][1], summary_of(tally), self.settings.design_effect)
        return found

    def pack(self) -> bytes:
        """Everything that is worth keeping over a restart."""
        over = [[key, feature, at_ms] for (key, feature), at_ms in self.alarms.over.items()]
        return self.record.pack({"alarms": self.alarms.json(), "over": over, "judged_ms": self.judged_ms})

    def restore(self, data: bytes) -> None:
        """Goes on where `pack` was called. Raises DriftError, and stays as it was, if `data` is not of this monitor."""
        record, extra = unpack_record(data)
        own = self.record
        if (record.model, record.version, record.window_ms) != (own.model, own.version, own.window_ms):
            raise DriftError(f"{record!r} of {record.window_ms} ms, expected {own!r} of {own.window_ms} ms")
        for key, plan in record.plans.items():
            # a reference may bring names of its own for the features: then its plan is what this one has to be
            ours, watch = own.plans.get(key), self._watches.get(key)
            if watch is None or (plan.watch != watch if ours is None else plan.fingerprint != ours.fingerprint):
                raise DriftError(f"{key} was counted by another plan: its configuration or its reference has changed")
        alarms = Alarms(self.settings)
        try:
            alarms.restore(extra["alarms"])
            alarms.over = {(key, feature): int(at_ms) for key, feature, at_ms in extra.get("over", ())}
            self.judged_ms = int(extra["judged_ms"])
        except (KeyError, TypeError, ValueError):
            raise DriftError("the alarms of a record of drift windows cannot be read") from None
        record.keep = own.keep
        self.record, self.alarms = record, alarms
        for key, plan in own.plans.items():
            record.plans.setdefault(key, plan)
        self._extractors |= {key: plan.extractor() for key, plan in record.plans.items()}


def alarmed_in(extra: Mapping[str, Any]) -> list[str]:
    """The features whose alarm was on in windows of a record. extra: as `unpack_record` gives it. Raises DriftError."""
    try:
        names = [(one["key"], one["feature"]) for one in extra["alarms"]]
        names += [(key, feature) for key, feature, _ in extra.get("over", ())]
    except (KeyError, TypeError, ValueError):
        raise DriftError("the alarms of a record of drift windows cannot be read") from None
    return [f"{key}: {feature}" for key, feature in dict.fromkeys(names)]


def _plan_for(watch: Watch, reference: Reference) -> Plan:
    if watch.key not in reference.tensors:
        raise DriftError(
            f"the reference ({reference.source}) has nothing of {watch.key}: run `headrace drift fit` again"
        )
    plan = reference.tensors[watch.key][0]
    if not plan.watch.same_features(watch):
        raise DriftError(
            f"the reference ({reference.source}) was made for {watch.key} of kind {plan.watch.kind}, "
            f"{len(plan.watch.features)} features, other than is configured: run `headrace drift fit` again"
        )
    return plan


def _joined(parts: list[Columns]) -> Columns:
    items = [part.items for part in parts if part.items is not None]
    return Columns(np.concatenate([part.numbers for part in parts]), np.concatenate(items) if items else None)
