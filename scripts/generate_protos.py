"""Writes server/headrace/rpc/*_pb2.py and their .pyi from protos/. `--check` only says whether they are up to date.

protoc parses the files and writes the stubs. The modules are written here: a module holds the serialised descriptor
and hands it to `headrace.rpc.pool`, which says why.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
TARGET = ROOT / "server"
BYTES_PER_LINE = 64


def generate(target: Path) -> list[Path]:
    """Generates all modules and stubs below `target`; returns their paths relative to it."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        descriptors = Path(scratch) / "descriptors"
        arguments = ["protoc", f"-I{PROTOS}", f"--pyi_out={target}", f"--descriptor_set_out={descriptors}", *sources]
        if protoc.main(arguments) != 0:
            raise SystemExit("protoc failed")
        files = descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes()).file
    written = []
    for file in files:
        path = Path(file.name.replace(".proto", "_pb2.py"))
        (target / path).write_text(module_text(file))
        stub = target / path.with_suffix(".pyi")
        stub.write_text(f"# mypy: ignore-errors\n{stub.read_text()}")  # protoc leaves the types of maps open
        written += [path, path.with_suffix(".pyi")]
    return written


def module_text(file: descriptor_pb2.FileDescriptorProto) -> str:
    """The Python module of one .proto file."""
    serialized = file.SerializeToString(deterministic=True)
    chunks = [serialized[i : i + BYTES_PER_LINE] for i in range(0, len(serialized), BYTES_PER_LINE)]
    imports = [f"import {name.removesuffix('.proto').replace('/', '.')}_pb2" for name in file.dependency]
    return "\n".join(
        [
            f'"""Generated from protos/{file.name} by scripts/generate_protos.py; do not edit."""',
            "",
            *imports,
            "from headrace.rpc import pool",
            "",
            "DESCRIPTOR = pool.define(",
            "    globals(),",
            *(f"    {chunk!r}" for chunk in chunks),
            ")",
            "",
        ]
    )


def check() -> int:
    """Compares what would be generated with what lies there; names each file that differs. 0: all equal."""
    with tempfile.TemporaryDirectory() as scratch:
        expected = {path: (Path(scratch) / path).read_bytes() for path in generate(Path(scratch))}
    present = {path.relative_to(TARGET) for path in TARGET.rglob("*_pb2.py*") if path.suffix in {".py", ".pyi"}}
    stale = [
        path
        for path in sorted(present | expected.keys())
        if not (TARGET / path).exists() or expected.get(path) != (TARGET / path).read_bytes()
    ]
    for path in stale:
        print(f"{path} is not what protos/ says: run scripts/generate_protos.py", file=sys.stderr)
    return 1 if stale else 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file differs")
    if parser.parse_args().check:
        return check()
    for path in generate(TARGET):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
