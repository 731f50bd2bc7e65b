"""CUDA machine code inside a shared library: what there is for which GPU, and how to take out what is for others.

A fatbin begins with a magic number, version, length of its header and of its body; the body is a sequence of entries,
each a header and a payload: a cubin (machine code of one architecture) or PTX. Payloads are overwritten with zeros,
which compress away; headers, sizes and offsets stay, so the driver still finds what is for its GPU.
(The layout is NVIDIA's own and not documented; what this finds agrees with NVIDIA's cuobjdump.)
"""

from __future__ import annotations

import mmap
import struct
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MAGIC = struct.pack("<I", 0xBA55ED50)
KINDS = {1: "ptx", 2: "cubin"}
_VERSION, _HEADER = 1, 16
_ENTRY = range(64, 4097)
"""What the header of an entry may take, in bytes."""


class NoCode(Exception):
    """There is no code for the architecture. The message says for which there is."""


class Entry(NamedTuple):
    """fatbin: offset of the one that holds it. arch: 90 for sm_90 and sm_90a. start, size: of the stored payload."""

    fatbin: int
    kind: int
    arch: int
    start: int
    size: int


def entries(data: bytes | mmap.mmap) -> Iterator[Entry]:
    """Every entry of a library, in file order."""
    at = 0
    while (at := data.find(MAGIC, at)) >= 0:
        if at + _HEADER > len(data):
            return
        version, header, size = struct.unpack_from("<HHQ", data, at + 4)
        if version != _VERSION or header != _HEADER or not 0 < size <= len(data) - at - header:
            at += len(MAGIC)  # the four bytes occur elsewhere too
            continue
        here, end = at + header, at + header + size
        while here + _ENTRY.start <= end:
            kind, _, head, stored = struct.unpack_from("<HHIQ", data, here)
            (arch,) = struct.unpack_from("<I", data, here + 28)
            if head not in _ENTRY or here + head + stored > end:
                break
            yield Entry(at, kind, arch, here + head, stored)
            here += head + stored
        at = end


def prune(library: Path, arch: int, *, drop_solo: bool) -> tuple[int, int]:
    """Zeroes, in place, the payloads for other architectures; returns (bytes kept, bytes zeroed).

    drop_solo: also those of fatbins that hold code for `arch` alone. Raises NoCode.
    """
    with library.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        found = list(entries(data))
        archs = _archs(found)
        if not any(arch in of for of in archs.values()):
            raise NoCode(f"no code for architecture {arch}; there is {sorted(set().union(*archs.values()))}")
        kept = zeroed = 0
        for entry in found:
            if entry.arch == arch and not (drop_solo and archs[entry.fatbin] == {arch}):
                kept += entry.size
            else:
                data[entry.start : entry.start + entry.size] = bytes(entry.size)
                zeroed += entry.size
    return kept, zeroed


def _archs(found: Iterable[Entry]) -> dict[int, set[int]]:
    archs: dict[int, set[int]] = defaultdict(set)
    for entry in found:
        archs[entry.fatbin].add(entry.arch)
    return archs


def table(found: Iterable[Entry]) -> str:
    """What a library holds for each architecture; `alone`: in fatbins that hold nothing for another one."""
    found = list(found)
    archs = _archs(found)
    rows: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0, 0])
    for entry in found:
        row = rows[KINDS.get(entry.kind, str(entry.kind)), entry.arch]
        alone = archs[entry.fatbin] == {entry.arch}
        row[:] = row[0] + 1, row[1] + entry.size, row[2] + (entry.size if alone else 0)
    lines = [f"{len(archs)} fatbins", f"{'kind':6} {'arch':>4} {'count':>6} {'bytes':>12} {'alone':>12}"]
    lines += [
        f"{kind:6} {arch:4} {count:6} {size:12} {alone:12}"
        for (kind, arch), (count, size, alone) in sorted(rows.items())
    ]
    return "\n".join(lines)
