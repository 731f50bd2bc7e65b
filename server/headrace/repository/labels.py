"""Names of classes, a line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path


def read_labels(path: Path) -> tuple[str, ...]:
    """The names in a file; the first is class 0. Raises ModelLoadError when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ModelLoadError(f"labels in {path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"labels in {path}: not UTF-8 at byte {error.start}") from error
    return tuple(line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")) if text else ()
