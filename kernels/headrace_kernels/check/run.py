"""The check: each small case against NumPy, then each large one, timed as well."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from headrace_kernels.check.agreement import disagreement
from headrace_kernels.check.cases import LOADS, Case, Load, small

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace_kernels.check.machine import Machine

T = TypeVar("T")

COPY_OCTETS = 256 << 20
WANTED = 0.7
"""Of a copy's bandwidth, what a kernel that only moves memory should reach."""


@dataclass(frozen=True, slots=True)
class Result:
    """Of one case. wrong: what differs, or went wrong; None: nothing.

    microseconds: of a run, one following another. gigabytes_per_second: the least that must be moved, in that time.
    of_copy: that in parts of what a copy reaches. These are there for large cases that are right.
    """

    title: str
    wrong: str | None = None
    microseconds: float | None = None
    gigabytes_per_second: float | None = None
    of_copy: float | None = None
    memory_bound: bool = False

    def slow(self) -> bool:
        """Whether it only moves memory, and does so at less than WANTED."""
        return self.memory_bound and self.of_copy is not None and self.of_copy < WANTED

    def line(self) -> str:
        """For a reader."""
        if self.wrong is not None:
            return f"WRONG  {self.title}: {self.wrong}"
        if self.of_copy is None:
            return f"agrees {self.title}"
        slow = f" (below {WANTED:.0%})" if self.slow() else ""
        return (
            f"agrees {self.title}: {self.microseconds:.0f} us, {self.gigabytes_per_second:.0f} GB/s, "
            f"{self.of_copy:.0%} of a copy{slow}"
        )


@dataclass(slots=True)
class Report:
    """facts: of the machine. copy_gigabytes_per_second: read and written, of a copy within its memory."""

    facts: dict[str, object]
    copy_gigabytes_per_second: float | None = None
    results: list[Result] = field(default_factory=list)

    def wrong(self) -> list[Result]:
        """Those that do not agree."""
        return [result for result in self.results if result.wrong is not None]

    def as_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        return asdict(self)


def check(
    machine: Machine,
    *,
    cases: Sequence[Case] | None = None,
    loads: Sequence[Load] = LOADS,
    copy_octets: int = COPY_OCTETS,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """Runs all of it. tell: called with a line for each result, as it comes.

    A kernel that does not run has a result that says so; what else the machine raises is raised.
    """
    report = Report(machine.facts())

    def add(result: Result) -> None:
        report.results.append(result)
        tell(result.line())

    for case in small() if cases is None else cases:
        add(_run(machine, str(case.operation), case)[0])
    if not loads:
        return report
    try:
        speed = 2 * copy_octets / _cleared(machine, lambda: machine.copy_seconds(copy_octets)) / 1e9
    except Exception as error:  # as in _run: after a kernel that has broken the context
        add(Result("a copy", f"{type(error).__name__}: {error}"))
        return report
    report.copy_gigabytes_per_second = speed
    tell(f"a copy moves {speed:.0f} GB/s, read and written")
    for load in loads:
        case = load.make(np.random.default_rng(0), load.rows)
        result, seconds = _run(machine, load.title, case, timed=True)
        if seconds is not None:
            moved = case.operation.bytes_moved() / seconds / 1e9
            result = Result(load.title, None, seconds * 1e6, moved, moved / speed, load.memory_bound)
        add(result)
    return report


def _run(machine: Machine, title: str, case: Case, *, timed: bool = False) -> tuple[Result, float | None]:
    """What a case gives, and the seconds that it takes if it is right and timed."""

    def attempt() -> tuple[Result, float | None]:
        found = {each.name: np.empty(each.shape, each.dtype) for each in case.operation.arrays()}
        memory = {
            each.name: machine.put(case.given[each.name]) if each.name in case.given else machine.room(each.nbytes)
            for each in case.operation.arrays()
        }
        bound = machine.kernels.bind(case.operation, memory)
        machine.run(bound)
        for name, out in found.items():
            machine.get(memory[name], out)
        wrong = disagreement(case.operation, case.expected(), found)
        return Result(title, wrong), machine.seconds(bound) if timed and wrong is None else None

    try:
        return _cleared(machine, attempt)
    except Exception as error:  # of the driver, through whatever library: it is what the check has found
        return Result(title, f"{type(error).__name__}: {error}"), None


def _cleared(machine: Machine, action: Callable[[], T]) -> T:
    try:
        return action()
    finally:
        machine.clear()
