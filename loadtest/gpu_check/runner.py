"""Makes checks one after another within a time budget, each in a process of its own, and keeps what came of each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpu_check.results import FAIL, SKIP, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from gpu_check.context import Context
    from gpu_check.registry import Check

PATIENCE = 3
"""How many times as long as it should a check may take."""
OUTPUT = 4000
"""Characters of a failed check's output that are kept, from its end."""


@dataclass
class Runner:
    """deadline, clock: monotonic seconds. environ: of the processes. kept: called with all outcomes after each.

    command: makes one check; called with its name, and the files of its context and of its outcome. least: seconds that
    even the shortest check is given, for the first may have to wait until CUDA's libraries are read.
    """

    context: Context
    environ: Mapping[str, str]
    deadline: float
    kept: Callable[[list[Outcome]], None]
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    command: Sequence[str] = (sys.executable, "-m", "gpu_check.child")
    least: float = 40
    outcomes: list[Outcome] = field(default_factory=list)

    def run(self, checks: Iterable[Check]) -> list[Outcome]:
        """All outcomes. What there is no time for is skipped; a shorter check behind it may still be made."""
        for check in checks:
            left = self.deadline - self.clock()
            if left <= (0 if self.context.cpu else check.seconds):
                outcome = Outcome(
                    check.name, SKIP, f"no time: it takes about {check.seconds:.0f} s, {max(left, 0):.0f} s are left"
                )
            else:
                self.say(f"... {check.name}: {check.title}")
                outcome = self._process(check, min(left, max(self.least, PATIENCE * check.seconds)))
            self.say(str(outcome))
            self.outcomes.append(outcome)
            self.kept(self.outcomes)
        return self.outcomes

    def _process(self, check: Check, limit: float) -> Outcome:
        """Makes one check, for `limit` seconds at most."""
        scratch = self.context.scratch
        asked, answer, log = (scratch / f"{check.name}.{kind}" for kind in ("context", "outcome", "log"))
        asked.write_text(self.context.dumps())
        began = self.clock()
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*self.command, check.name, str(asked), str(answer)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environ,
                start_new_session=True,
            )
            try:
                status = process.wait(max(limit, 0))
                reason = "" if answer.exists() else f"its process ended with {_ending(status)}"
            except subprocess.TimeoutExpired:
                reason = f"not done within {limit:.0f} s"
            finally:
                _end_all(process)
        seconds = self.clock() - began
        if reason:
            return Outcome(check.name, FAIL, reason, {}, seconds, _tail(log))
        outcome = Outcome(**json.loads(answer.read_text()))
        return Outcome(**{**outcome.document(), "output": _tail(log)}) if outcome.status == FAIL else outcome


def _end_all(process: subprocess.Popen[bytes]) -> None:
    """Ends what is left of the process and of those that it started: all are of the group that was made for it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ending(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-OUTPUT:]
