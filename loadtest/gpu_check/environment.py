"""The environment that checks run in: this repository's sources, what was packed for this machine, CUDA's libraries.

Needs the standard library alone. Outside of the packs' directory it only adds cubins where `make kernels` has them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SOURCES = ("server", "loadtest", "kernels")
PARTS = "ort.tar.xz."
PYTHON = "python.txt"
"""In the packs' directory: for which Python they are, such as 3.12."""
CUBINS = "cubins"
"""In the packs' directory: machine code of this repository's own kernels."""
CUBINS_AT = Path("kernels/headrace_kernels/cubins")
"""Where it is looked for, in the repository, which git ignores."""
MANIFEST = "ort.json"
"""Beside each part: `parts`, how many there are, and `sha256` of all of them joined."""


class BadPack(Exception):
    """What was packed cannot be used. The message says why."""


def unpack(packs: Path, python: str) -> Path | None:
    """Unpacks wheels and parts of onnxruntime-gpu below `packs` into `packs`/site, once; None where there are none.

    python: the version of the one that is to import them. Raises BadPack if they are for another one, or a part is
    missing or damaged.
    """
    wheels = sorted(packs.glob("*/*.whl"))
    parts = sorted(packs.glob(f"*/{PARTS}*"), key=lambda path: path.name)
    if not wheels and not parts:
        return None
    if (packs / PYTHON).exists() and (wanted := (packs / PYTHON).read_text().strip()) != python:
        raise BadPack(f"it is for Python {wanted}, and this is {python}")
    site, stamp = packs / "site", packs / "site.json"
    state = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in (*wheels, *parts)]
    if stamp.exists() and json.loads(stamp.read_text()) == state:
        return site
    shutil.rmtree(site, ignore_errors=True)  # of other packs
    site.mkdir()
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    if parts:
        _unpack_parts(parts, site)
    stamp.write_text(json.dumps(state))
    return site


def _unpack_parts(parts: list[Path], site: Path) -> None:
    manifest = json.loads((parts[0].parent / MANIFEST).read_text())
    if len(parts) != manifest["parts"]:
        raise BadPack(f"{len(parts)} parts of onnxruntime-gpu, expected {manifest['parts']}: carry the others too")
    whole = b"".join(part.read_bytes() for part in parts)
    if hashlib.sha256(whole).hexdigest() != manifest["sha256"]:
        raise BadPack("the parts of onnxruntime-gpu are not of one pack, or damaged")
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        archive.extractall(site, filter="data")


def lay_cubins(packs: Path, root: Path) -> None:
    """Puts the cubins that were packed, and are not there, to where the kernels look for them.

    Their names tell what they were built from, so that none is mistaken for another source's.
    """
    for cubin in packs.glob(f"{CUBINS}/*.cubin"):
        place = root / CUBINS_AT / cubin.name
        if not place.exists():
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(cubin, place)


def variables(root: Path, site: Path | None, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment variables of the checks: `environ`, with the sources and `site` first on Python's path.

    CUDA's libraries are looked for in the packages that bring them (nvidia-*, tensorrt-*), since libraries that are
    loaded by name, cuDNN for one, are found in no other way.
    """
    plain = {name: value for name, value in environ.items() if not name.startswith("HEADRACE_")}
    path = [*([str(site)] if site else []), *(str(root / source) for source in SOURCES)]
    libraries = [str(folder) for folder in library_folders([*([site] if site else []), *_import_path("nvidia")])]
    return plain | {
        "PYTHONPATH": os.pathsep.join([*path, *filter(None, [plain.get("PYTHONPATH")])]),
        "LD_LIBRARY_PATH": os.pathsep.join([*libraries, *filter(None, [plain.get("LD_LIBRARY_PATH")])]),
        # Code for other GPUs is not looked at, and a pack has none.
        "CUDA_MODULE_LOADING": plain.get("CUDA_MODULE_LOADING", "LAZY"),
        # Engines that TensorRT builds are kept here, and not in the home of whoever runs this.
        "XDG_CACHE_HOME": plain.get("XDG_CACHE_HOME", str(root / ".cache/gpu-check")),
        "PYTHONUNBUFFERED": "1",
        # The servers that checks start are on loopback, whatever proxy leads out of here.
        "no_proxy": "127.0.0.1",
    }


def library_folders(sites: Iterable[Path]) -> list[Path]:
    """Folders of CUDA's and TensorRT's libraries in directories of packages."""
    return [
        folder
        for site in sites
        for pattern in ("nvidia/*/lib", "tensorrt_libs")
        for folder in sorted(site.glob(pattern))
        if folder.is_dir()
    ]


def _import_path(package: str) -> list[Path]:
    """The directories that hold a namespace package, without importing it."""
    spec = importlib.util.find_spec(package)
    return [Path(place).parent for place in (spec and spec.submodule_search_locations) or ()]
