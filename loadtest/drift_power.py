"""How quiet the drift alarms are on quiet data, and after how many rows they find a shift.

    python loadtest/drift_power.py                 # everything, some ten minutes
    python loadtest/drift_power.py --quick         # a tenth of the windows and trials

Data are independent normal features, one of which is shifted by some of its standard deviations; the rows go through
the same monitor as in the server, with its default settings, except that no row is skipped. Quiet windows are held
against several references, each a sample of its own, because all windows of one share its errors.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headrace.drift.alarms import AlarmSettings
from headrace.drift.fit import Source, fit_reference
from headrace.drift.monitor import Monitor
from headrace.drift.watch import watch_of
from headrace.messages import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headrace.drift.reference import Reference

FEATURES = 32
REFERENCE_ROWS = 20_000
REFERENCES = 20
WINDOW_MS = 600_000
WATCH = watch_of(TensorSpec("x", "FP32", (FEATURES,)))
SALT = bytes(16)


@dataclass(frozen=True)
class Setting:
    """What is tried: rows a window, and the days between false alarms that are asked for."""

    rows: int
    quiet_days: float


def draw(random: np.random.Generator, rows: int, shift: float = 0.0) -> NDArray[np.float32]:
    values = random.standard_normal((rows, FEATURES), np.float32)
    values[:, 0] += np.float32(shift)
    return values


def reference(random: np.random.Generator) -> Reference:
    rows = draw(random, REFERENCE_ROWS)
    return fit_reference([(WATCH, Source("normal", lambda: iter([rows]), REFERENCE_ROWS))], SALT, "normal", 0)


def monitor(of: Reference, quiet_days: float) -> Monitor:
    settings = AlarmSettings(window_ms=WINDOW_MS, keep=16, quiet_days=quiet_days)
    return Monitor("m", "1", [WATCH], settings, SALT, of)


def quiet(random: np.random.Generator, windows: int, setting: Setting) -> dict[str, object]:
    """Windows without any shift: in how many an alarm is raised, and in how many one is on."""
    raised = on = 0
    for _ in range(REFERENCES):
        watching = monitor(reference(random), setting.quiet_days)
        for window in range(windows // REFERENCES):
            watching.count(window * WINDOW_MS, {WATCH.key: draw(random, setting.rows)}, setting.rows)
            raised += any(event.state == "alarm" for event in watching.tick((window + 1) * WINDOW_MS))
            on += bool(watching.alarms.on)
    total = windows // REFERENCES * REFERENCES
    level = watching.settings.level * len(watching.settings.horizons)
    return {
        "quiet_windows": total,
        "rows_a_window": setting.rows,
        "asked_for": level,
        "windows_that_raise": raised,
        "share_that_raise": raised / total,
        "share_with_one_on": on / total,
    }


def power(random: np.random.Generator, trials: int, shift: float, rows: int, most: int) -> dict[str, object]:
    """Rows until the shifted feature's alarm is on; how often another's was raised."""
    found, wrong = [], 0
    for _ in range(trials):
        watching = monitor(reference(random), 30)
        for window in range(-(-most // rows)):
            watching.count(window * WINDOW_MS, {WATCH.key: draw(random, rows, shift)}, rows)
            events = watching.tick((window + 1) * WINDOW_MS)
            wrong += any(event.feature != "0" and event.state == "alarm" for event in events)
            if any(event.feature == "0" and event.state == "alarm" for event in events):
                found.append((window + 1) * rows)
                break
    rows_until = sorted(found + [most * 2] * (trials - len(found)))
    return {
        "shift": shift,
        "rows_a_window": rows,
        "trials": trials,
        "found": len(found),
        "within_rows": most,
        "median_rows": rows_until[trials // 2],
        "rows_90_percent": rows_until[int(trials * 0.9)],
        "alarms_of_others": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the windows and trials")
    parser.add_argument("--only", choices=["quiet", "power"], help="one of the two")
    parser.add_argument("--seed", type=int, default=1, help="of the data (default: %(default)s)")
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    part = 10 if arguments.quick else 1
    begun = time.monotonic()
    if arguments.only != "power":
        for setting in (Setting(300, 0.69), Setting(300, 30), Setting(2000, 0.69)):
            print(json.dumps(quiet(random, 10_000 // part, setting)), flush=True)
    if arguments.only != "quiet":
        for shift, sizes in ((0.5, (100, 250, 1000)), (0.25, (250, 1000, 4000)), (0.1, (1000, 4000))):
            for rows in sizes:
                most = int(800 / shift**2)
                print(json.dumps(power(random, 50 // part, shift, rows, most)), flush=True)
    print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
