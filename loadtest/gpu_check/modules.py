"""Which modules there are, without importing them."""

from __future__ import annotations

from importlib.util import find_spec


def importable(module: str) -> bool:
    """Whether a module of this dotted name can be found. The packages that hold it are imported on the way."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that would hold it
        return False
