"""When a difference is an alarm, and when that is over.

Three things must come together: the difference is hardly chance, it is large enough to matter, and there were enough
rows to tell. Chance is bounded for everything that is asked at the end of a window, together:

- Within a window, over features and tests, by Holm's procedure, which holds however features depend on one another.
- Over horizons (the last window, the last 4, the last 16 ...: a small shift shows in many rows alone), by Bonferroni's.
- Over windows, by the level itself: `window / quiet_days`. The expected number of false alarms in any time is at most
  that time over quiet_days, since expectations add up whatever the windows have in common, and they have: the
  reference.

Procedures that spend a level over time (alpha spending, online control of the false discovery rate, confidence
sequences) assume tests that are independent given the past, which two windows that are held against one sample are not,
and would make tomorrow's sensitivity depend on yesterday's traffic.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from headrace.drift.significance import holm

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from headrace.drift.assess import Assessment, What

State = Literal["quiet", "alarm"]
Name = tuple[str, str]

MS_OF_A_DAY = 86_400_000
LARGEST_LEVEL = 0.01
"""Of a window, however rare windows are."""
_STAYS = 0.75  # an alarm stays while the effect is at least so much of what raises one
_STAYS_LEVEL = 10.0  # and while the p-value is at most so many times the level


@dataclass(frozen=True, slots=True)
class AlarmSettings:
    """When something is an alarm.

    quiet_days: days between false alarms of one model version, on average at least. min_shift: the effect (share of
    values on the other side of some value, or of items of another kind) from which a distribution has changed;
    min_share: that of missing, outside and unseen. min_rows: of a tensor, below them a horizon says nothing of it.
    clear_after: windows without any sign after which an alarm is over. design_effect: see `assess`.
    """

    window_ms: int
    keep: int
    quiet_days: float = 30.0
    min_shift: float = 0.03
    min_share: float = 0.01
    min_rows: int = 200
    clear_after: int = 3
    design_effect: float = 1.0

    @property
    def horizons(self) -> tuple[int, ...]:
        """In windows: powers of 4, as far as they are kept."""
        return tuple(4**power for power in range(8) if 4**power <= self.keep)

    @property
    def level(self) -> float:
        """The chance of a false alarm that one horizon has at the end of one window."""
        return min(LARGEST_LEVEL, self.window_ms / (self.quiet_days * MS_OF_A_DAY)) / len(self.horizons)

    def least(self, what: What) -> float:
        """The effect from which it is an alarm."""
        return self.min_shift if what == "distribution" else self.min_share


@dataclass(frozen=True, slots=True)
class Finding:
    """One test, its p-value adjusted for all that were made with it."""

    key: str
    feature: str
    what: What
    p_value: float
    effect: float
    least: float
    windows: int = 1

    def raises(self, level: float) -> bool:
        """Whether this is an alarm."""
        return self.p_value <= level and self.effect >= self.least

    def sustains(self, level: float) -> bool:
        """Whether an alarm that is on stays on."""
        return self.p_value <= _STAYS_LEVEL * level and self.effect >= _STAYS * self.least

    @property
    def severity(self) -> float:
        """The effect, in multiples of the least that counts."""
        return self.effect / self.least


def findings_of(assessments: Iterable[Assessment], settings: AlarmSettings, windows: int = 1) -> list[Finding]:
    """All tests of one horizon, corrected for one another."""
    tests = [(one, test) for one in assessments for test in one.tests]
    adjusted = holm([test.p_value for _, test in tests])
    return [
        Finding(one.key, one.feature, test.what, p_value, test.effect, settings.least(test.what), windows)
        for (one, test), p_value in zip(tests, adjusted, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Event:
    """An alarm was raised or is over. what: the tests that say so, with their findings when it was raised."""

    at_ms: int
    key: str
    feature: str
    state: State
    findings: tuple[Finding, ...] = ()

    @property
    def fields(self) -> dict[str, str | int | float]:
        """For the log. tests: those that say so; the other numbers are of the one whose effect is largest."""
        direction, _, tensor = self.key.partition(".")
        said: dict[str, str | int | float] = {"direction": direction, "tensor": tensor, "feature": self.feature}
        if self.findings:
            worst = max(self.findings, key=lambda one: one.severity)
            tests = ", ".join(sorted({one.what for one in self.findings}))
            said |= {"tests": tests, "test": worst.what, "effect": worst.effect, "least": worst.least}
            said |= {"p_value": worst.p_value, "windows": worst.windows}
        return said


@dataclass(slots=True)
class FeatureAlarm:
    """A feature whose alarm is on. what: the tests that raised it. quiet: windows in a row without any sign."""

    since_ms: int
    what: list[What] = field(default_factory=list)
    quiet: int = 0


class Alarms:
    """The alarms of one model version: a state for each feature, changed at the end of windows alone.

    over: of features whose alarm was on and is no more, when it last ended, since the epoch.
    """

    def __init__(self, settings: AlarmSettings) -> None:
        self._settings = settings
        self.on: dict[Name, FeatureAlarm] = {}
        self.over: dict[Name, int] = {}

    def __repr__(self) -> str:
        return f"<Alarms: {len(self.on)} on>"

    def step(self, at_ms: int, horizons: Sequence[Sequence[Finding]]) -> list[Event]:
        """The end of a window. horizons: the findings of each that has enough rows. Says what has changed.

        A feature of which there are none stays as it is: who has seen nothing knows nothing.
        """
        level = self._settings.level
        all_findings = [finding for findings in horizons for finding in findings]
        raised: dict[Name, list[Finding]] = {}
        for finding in all_findings:
            if finding.raises(level):
                raised.setdefault((finding.key, finding.feature), []).append(finding)
        sustained = {(one.key, one.feature) for one in all_findings if one.sustains(level)}
        seen = {(one.key, one.feature) for one in all_findings}
        return [*self._raise(at_ms, raised), *self._clear(at_ms, seen, sustained)]

    def _raise(self, at_ms: int, raised: Mapping[Name, Sequence[Finding]]) -> list[Event]:
        events = []
        for name, findings in raised.items():
            if name not in self.on:
                self.on[name] = FeatureAlarm(at_ms)
                events.append(Event(at_ms, *name, "alarm", tuple(findings)))
            alarm = self.on[name]
            alarm.what = sorted({*alarm.what, *(finding.what for finding in findings)})
        return events

    def _clear(self, at_ms: int, seen: set[Name], sustained: set[Name]) -> list[Event]:
        events = []
        for name, alarm in list(self.on.items()):
            if name not in seen:
                continue
            alarm.quiet = 0 if name in sustained else alarm.quiet + 1
            if alarm.quiet >= self._settings.clear_after:
                del self.on[name]
                self.over[name] = at_ms
                events.append(Event(at_ms, *name, "quiet"))
        return events

    def forget(self, before_ms: int) -> None:
        """Those that were over by then."""
        self.over = {name: at_ms for name, at_ms in self.over.items() if at_ms > before_ms}

    def json(self) -> list[dict[str, Any]]:
        """What `restore` takes."""
        return [{"key": key, "feature": feature, **asdict(alarm)} for (key, feature), alarm in self.on.items()]

    def restore(self, value: Iterable[Mapping[str, Any]]) -> None:
        """The alarms that were on. Raises KeyError, TypeError for what `json` did not give."""
        self.on = {
            (one["key"], one["feature"]): FeatureAlarm(int(one["since_ms"]), list(one["what"]), int(one["quiet"]))
            for one in value
        }
