"""Runs tests/conformance and writes docs/conformance.md, row by row; --check compares the rows without running them.

A row is a test, by the part in brackets of its name; a test without one is named as its function is.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "conformance.md"
TESTS = ROOT / "tests" / "conformance"
HEAD = """\
# Conformance

Written by `scripts/generate_conformance_page.py`, which runs every test under tests/conformance/; what each row sends
and asserts stands there. `make test` runs them all, and fails where this page lists other rows.

"""
TITLES = {
    "http2/test_cases.py": (
        "HTTP/2, frame by frame",
        "h2spec's 147 cases by their ids, and rules of RFC 9113 and 7541 that it leaves out, on raw sockets. "
        "Each asserts the error code, the stream and what follows.",
    ),
    "http2/test_floods.py": ("HTTP/2, floods", "Each is ended by its limit, and borne as a trickle."),
    "http2/test_attacks.py": ("HTTP/2, memory and patience", "Bombs, slow peers, windows that stay shut."),
    "grpc/test_requests.py": ("gRPC, requests", "Heads, deadlines, compression and framing, on raw sockets."),
    "grpc/test_interop.py": ("gRPC, interoperability", "gRPC's own cases, with grpcio's client, on both transports."),
    "contract/test_errors.py": (
        "Open Inference Protocol, errors",
        "Code, HTTP status and text of each, by transport. Not there, and so without rows: models with a decoupled "
        "transaction policy, restricted APIs, a runtime that reports itself unhealthy, and replies above 2 GiB.",
    ),
    "contract/test_rpcs.py": (
        "Open Inference Protocol, RPCs and routes",
        "Each answers with its fields. Of CUDA shared memory only what clients ask as a precaution is there.",
    ),
    "contract/test_parameters.py": (
        "Open Inference Protocol, parameters and tensors",
        "Taken, refused, and what they do; with the binary extension of HTTP.",
    ),
    "contract/test_rules.py": (
        "Open Inference Protocol, what clients rely on",
        "What Triton's and KServe's clients would break on if it were otherwise.",
    ),
}
"""Title and text of each file; a file that is not here goes by its name."""


class Rows:
    """A pytest plugin that collects (file, row) and, where tests are run, their outcomes."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, str]] = {}
        self.outcomes: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Every test that there is, in order."""
        for item in items:
            file = item.path.relative_to(TESTS).as_posix()
            name = item.name.partition("[")[2].removesuffix("]") or item.name.removeprefix("test_").replace("_", " ")
            self.rows[item.nodeid] = file, name

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The worst outcome of a test's three phases."""
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = report.outcome


def tables(rows: Rows) -> str:
    """The body of the page."""
    text = ""
    files = list(dict.fromkeys(file for file, _ in rows.rows.values()))
    for file in sorted(files, key=lambda file: (list(TITLES).index(file) if file in TITLES else len(TITLES), file)):
        title, about = TITLES.get(file, (file, ""))
        own = {node: name for node, (of, name) in rows.rows.items() if of == file}
        counts = Counter(rows.outcomes.get(node, "not run") for node in own)
        text += f"## {title}\n\n{about} `tests/conformance/{file}`: "
        text += (
            ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) + ".\n\n| row | result |\n|---|---|\n"
        )
        text += "".join(f"| {_cell(name)} | {rows.outcomes.get(node, 'not run')} |\n" for node, name in own.items())
        text += "\n"
    return text


def _cell(name: str) -> str:
    return name.replace("|", "\\|")


def _names(page: str) -> list[str]:
    return [
        line.rpartition(" | ")[0] for line in page.splitlines() if line.startswith("| ") and line != "| row | result |"
    ]


def main() -> int:
    """Writes the page, or compares its rows."""
    check = "--check" in sys.argv[1:]
    rows = Rows()
    options = ["--collect-only", "-q"] if check else ["-q"]
    code = pytest.main([str(TESTS), *options, "--override-ini=addopts=--import-mode=importlib"], plugins=[rows])
    if check:
        return int(code != 0 or _names(HEAD + tables(rows)) != _names(PAGE.read_text(encoding="utf-8")))
    PAGE.write_text((HEAD + tables(rows)).rstrip() + "\n", encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
