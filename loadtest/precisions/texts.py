"""English prose that is there anyway, and the same wherever the versions are: the docstrings of installed packages."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECTION = re.compile(r"\n[A-Z][A-Za-z ]+\n-{3,}")
"""A heading of numpydoc, such as Parameters: what stands before it is prose."""
_NO_PROSE = ("..", ">>>", "Read more")


def documented(package: str) -> Iterator[tuple[str, str]]:
    """Summary and first paragraph of what a package documents in public, by file and place; no summary twice.

    The package is read, not imported. Raises ModuleNotFoundError.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {package}", name=package)
    root = Path(spec.submodule_search_locations[0])
    seen: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        if not {"tests", "externals", "_lib"}.intersection(path.relative_to(root).parts):
            for summary, paragraph in _of_source(path.read_text(encoding="utf-8")):
                if summary not in seen:
                    seen.add(summary)
                    yield summary, paragraph


def _of_source(source: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            prose = _SECTION.split(ast.get_docstring(node) or "")[0]
            paragraphs = [" ".join(text.split()) for text in prose.split("\n\n")]
            paragraphs = [text for text in paragraphs if text and not text.startswith(_NO_PROSE)]
            if len(paragraphs) > 1:
                yield paragraphs[0], paragraphs[1]
