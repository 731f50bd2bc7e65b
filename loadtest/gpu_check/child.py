"""Runs one check in a process of its own: what crashes or hangs there ends nothing else.

python -m gpu_check.child NAME CONTEXT.json OUTCOME.json
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_check.context import Context
from gpu_check.modules import importable
from gpu_check.nvidia import gpu_count
from gpu_check.registry import Failed, Figures, Skip, checks
from gpu_check.results import FAIL, PASS, SKIP, Outcome

if TYPE_CHECKING:
    from gpu_check.registry import Check


def outcome_of(check: Check, context: Context) -> Outcome:
    """Makes the check. Raises nothing but what ends the process."""
    began = time.monotonic()
    figures: Figures = {}
    try:
        _require(check, context)
        figures = check.run(context.for_check(check.name))
        status, reason = PASS, ""
    except Skip as skip:
        status, reason = SKIP, str(skip)
    except Failed as failed:
        status, reason, figures = FAIL, str(failed), failed.figures
    except Exception as error:  # whatever a driver or a library has to say
        traceback.print_exc()
        status, reason = FAIL, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    return Outcome(check.name, status, reason, figures, time.monotonic() - began)


def _require(check: Check, context: Context) -> None:
    """Raises Skip, naming all that is missing."""
    if context.cpu and not check.on_cpu:
        raise Skip("only on a GPU")
    if not context.cpu and not gpu_count():
        raise Skip("no NVIDIA GPU")
    if missing := [module for module in check.needs if not importable(module)]:
        raise Skip(f"not installed: {', '.join(missing)}")


def main() -> None:
    """See the module's docstring."""
    name, context, outcome = sys.argv[1:]
    found = outcome_of(checks()[name], Context.loads(Path(context).read_text()))
    Path(outcome).write_text(json.dumps(found.document()))


if __name__ == "__main__":
    main()
