"""How far long work is: a bar on a terminal, a line for each stage elsewhere. On standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

    Progress = Callable[[str, int, int], None]

_WIDTH = 24


def bar(stream: TextIO | None = None) -> Progress:
    """A function that is told what is being done, how much of it is done, of how much."""
    out = sys.stderr if stream is None else stream
    if not out.isatty():
        begun: set[str] = set()

        def line(what: str, done: int, of: int) -> None:
            if what not in begun:
                begun.add(what)
                print(what if of <= 1 else f"{what}: {of}", file=out, flush=True)

        return line

    def show(what: str, done: int, of: int) -> None:
        filled = _WIDTH * done // of if of else _WIDTH
        text = f"\r{what:<10} [{'#' * filled}{'.' * (_WIDTH - filled)}] {done} of {of}\033[K"
        print(text, end="\n" if done >= of else "", file=out, flush=True)

    return show
