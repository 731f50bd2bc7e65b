"""What docs/design.md asks of all Python here: files of 500 lines and functions of 60, at most."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("server", "kernels", "loadtest", "models", "scripts", "examples", "tests")
GENERATED = ROOT / "server/headrace/rpc"
FILES = sorted(
    path
    for source in SOURCES
    for path in (ROOT / source).rglob("*.py")
    if GENERATED not in path.parents and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)


def too_long(text):
    """What of a file's text is, in lines."""
    lines = text.count("\n")
    found = [f"{lines} lines"] if lines > 500 else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            found += [f"{node.name}: {length} lines"] if length > 60 else []
    return found


def test_files_and_functions_are_short():
    assert len(FILES) > 500
    found = {str(path.relative_to(ROOT)): too_long(path.read_text()) for path in FILES}
    assert {path: long for path, long in found.items() if long} == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = 1\n" * 501, ["501 lines"]),
        ("async def f():\n" + "    pass\n" * 60, ["f: 61 lines"]),
        ("class C:\n    def f(self):\n" + "        pass\n" * 59, []),
    ],
)
def test_long_ones_are_found(text, found):
    assert too_long(text) == found
