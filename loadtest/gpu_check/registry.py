"""Checks by name. To add one, decorate a function in a module of gpu_check/checks/; nothing else knows of it.

    @check("ort-cuda", needs=("numpy", "onnxruntime"), seconds=20)
    def ort_cuda(context: Context) -> Figures:
        \"\"\"One line that says what is checked.\"\"\"

It returns its figures, and raises Skip where it cannot be made and Failed where the answer is bad; any other exception
is a failure as well. Modules of checks import packages that may be missing inside their functions, so that the list of
checks is known everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from gpu_check.checks import MODULES

if TYPE_CHECKING:
    from gpu_check.context import Context

Figures = Mapping[str, object]
"""Name, with its unit, -> a number, a text, or a list or mapping of them: what JSON can hold."""

Run = Callable[["Context"], Figures]


class Skip(Exception):
    """The check cannot be made here. The message says why."""


class Failed(Exception):
    """The answer is bad. The message says what was seen and what was expected; the figures are kept."""

    def __init__(self, message: str, figures: Figures | None = None) -> None:
        super().__init__(message)
        self.figures = figures or {}


@dataclass(frozen=True)
class Check:
    """needs: modules. seconds: about how long it takes on a GPU, its process's start included.

    on_cpu: whether it also runs without one (`--cpu`).
    """

    name: str
    title: str
    needs: tuple[str, ...]
    seconds: float
    on_cpu: bool
    run: Run


_CHECKS: dict[str, Check] = {}


def check(name: str, *, needs: tuple[str, ...] = (), seconds: float = 15, on_cpu: bool = False) -> Callable[[Run], Run]:
    """Registers the function as a check, titled by its docstring's first line. Raises ValueError for a known name."""

    def register(run: Run) -> Run:
        if name in _CHECKS:
            raise ValueError(f"two checks have the name {name!r}")
        title = (run.__doc__ or name).partition("\n")[0].removesuffix(".")
        _CHECKS[name] = Check(name, title, needs, seconds, on_cpu, run)
        return run

    return register


def checks() -> dict[str, Check]:
    """All of them, in the order of their modules and, within one, of their definitions."""
    for module in MODULES:
        import_module(f"gpu_check.checks.{module}")
    return dict(_CHECKS)
