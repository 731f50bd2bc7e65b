"""Gathers in .gpu/ what `make gpu-check` needs on a GPU machine that cannot fetch packages.

    make gpu-pack                             for a GPU of architecture 90 (H100, H200)
    make gpu-pack ARGS="--arch 89"            for another one: 80 (A100), 86, 89 (L4, L40), 75 (T4), 120
    make gpu-pack ARGS="--solo"               with all of its code; more than one transfer
    make gpu-pack ARGS="--bundle gpu.tar"     also one file of the project and the packs

It writes .gpu/wheels/, the packages that the machine lacks; .gpu/cubins/, the machine code of our own kernels, which
`make kernels` has made and git ignores; and .gpu/partN/, onnxruntime-gpu: the wheel of 244 MiB
holds machine code for six architectures; that of all but one is overwritten with zeros, which compress away. Code that
exists for this architecture alone is zeroed too, unless --solo is given: on 90 these are CUTLASS kernels for mixed
types and mixture of experts, so never judge MatMulNBits or QMoE by a pack without it. Models are not packed: `make
gpu-check` builds them. TensorRT, of 2 GB and more, is not packed either: its checks are skipped where it is missing.

The machine has Python 3.12 (or --python), a driver for CUDA 13, what is named PRESENT below, onnx, cuda-bindings,
nvidia-ml-py, and CUDA's libraries, such as those that PyTorch for CUDA 13 brings. Take the checkout there, .gpu/ in it,
and run `make gpu-check`, which unpacks it.
The exit status is 1 if a transfer would take more than 64 MiB: the project's files, the wheels, and one part.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_check.context import ROOT
from gpu_check.environment import CUBINS, MANIFEST, PARTS, PYTHON
from gpu_check.fatbins import NoCode, entries, prune, table
from headrace_kernels import cubins

if TYPE_CHECKING:
    from collections.abc import Sequence

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
ORT = "onnxruntime-gpu"
WHEELS = (
    "annotated-types",
    "anyio",
    "click",
    "h11",
    "httptools",
    "idna",
    "orjson",
    "protobuf",
    "pydantic",
    "pydantic-core",
    "starlette",
    "typing-extensions",
    "typing-inspection",
    "uvicorn",
)
OLDEST = ("grpcio-reflection==1.80.0",)
"""Of these pyproject.toml's oldest: its generated code refuses a grpcio older than itself, and the machine's may be."""
PRESENT = ("flatbuffers", "grpcio", "numpy", "onnxruntime", "packaging", "prometheus-client", "uvloop")
"""What of the server's dependencies the machine has, onnxruntime from our pack."""

LIBRARY = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
LEFT_OUT = "onnxruntime/capi/libonnxruntime.so"
"""The C library, which Python does not load."""

TRANSFER = 64 << 20
CACHE = ROOT / ".cache/gpu-pack"


def download(packages: Sequence[str], into: Path, python: str, constraints: str = "constraints.txt") -> None:
    """Wheels of these packages for that Python, without what they depend on. constraints: a file of their versions."""
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms]
    subprocess.run([*command, "-c", str(ROOT / constraints), "-d", str(into), *packages], check=True)


def pack_ort(wheel: Path, out: Path, arch: int, part_bytes: int, *, drop_solo: bool) -> list[Path]:
    """Writes the pruned wheel as part0/ort.tar.xz.00, part1/ort.tar.xz.01 and so on, and a manifest beside each.

    Raises fatbins.NoCode, and KeyError for a wheel without the library.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        archive = Path(scratch, "ort.tar.xz")
        with zipfile.ZipFile(wheel) as source, tarfile.open(archive, "w:xz") as target:
            source.getinfo(LIBRARY)
            for member in source.infolist():
                if member.is_dir() or member.filename.startswith(LEFT_OUT):
                    continue
                path = Path(source.extract(member, scratch))
                if member.filename == LIBRARY:
                    kept, zeroed = prune(path, arch, drop_solo=drop_solo)
                    print(f"machine code: {kept / 2**20:.1f} MiB kept, {zeroed / 2**20:.1f} MiB zeroed", flush=True)
                target.add(path, member.filename)
        return split(archive, out, part_bytes)


def pack_cubins(out: Path, arch: int, built: Path = cubins.HERE / "cubins") -> list[Path]:
    """Copies the newest code of our kernels that runs on the architecture to out/cubins. Raises NoCode."""
    found = {source: cubins.choose(source, divmod(arch, 10), built) for source in cubins.KERNELS}
    if missing := [source for source, path in found.items() if path is None]:
        raise NoCode(f"no code of {', '.join(missing)} for architecture {arch}: make kernels builds it")
    (out / CUBINS).mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(path, out / CUBINS)) for path in found.values() if path is not None]


def split(archive: Path, out: Path, part_bytes: int) -> list[Path]:
    """Cuts the archive into the fewest parts of at most so many bytes, of nearly equal size."""
    for old in out.glob("part*"):
        shutil.rmtree(old)
    whole = archive.read_bytes()
    count = -(-len(whole) // part_bytes)
    size = -(-len(whole) // count)
    manifest = json.dumps({"parts": count, "sha256": hashlib.sha256(whole).hexdigest()})
    parts = [out / f"part{number}" / f"{PARTS}{number:02}" for number in range(count)]
    for number, part in enumerate(parts):
        part.parent.mkdir()
        part.write_bytes(whole[number * size : (number + 1) * size])
        (part.parent / MANIFEST).write_text(manifest)
    return parts


def tracked() -> list[Path]:
    """The project's files, relative to its root."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    return [path for path in map(Path, listed.decode().split("\0")) if path.name and (ROOT / path).is_file()]


def bundle(path: Path, out: Path) -> None:
    """One file of the project and the packs. It is not compressed: what is large in it is already."""
    with tarfile.open(path, "w") as target:
        for file in tracked():
            target.add(ROOT / file, f"headrace/{file}")
        for file in sorted(out.rglob("*")):
            if file.is_file():
                target.add(file, f"headrace/.gpu/{file.relative_to(out)}")


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        "gpu-pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", type=int, default=90, help="compute capability without the dot (%(default)s)")
    parser.add_argument("--python", default="3.12", metavar="X.Y", help="version of its Python (%(default)s)")
    parser.add_argument("--solo", action="store_true", help="with code that exists for this architecture alone")
    parser.add_argument("--part-mib", type=int, default=50, help="largest part (%(default)s)")
    parser.add_argument("--list", action="store_true", help="only print what the wheel holds for each architecture")
    parser.add_argument("--bundle", type=Path, help="also one file of the project and the packs")
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu", help="directory (.gpu)")
    args = parser.parse_args()
    download([ORT], CACHE, args.python)
    tag = f"cp{args.python.replace('.', '')}"
    wheel = max(CACHE.glob(f"onnxruntime_gpu-*-{tag}-*.whl"), key=lambda path: path.stat().st_mtime)
    if args.list:
        print(table(entries(zipfile.ZipFile(wheel).read(LIBRARY))))
        return 0
    shutil.rmtree(args.out, ignore_errors=True)
    download(WHEELS, args.out / "wheels", args.python)
    download(OLDEST, args.out / "wheels", args.python, constraints="/dev/null")
    (args.out / PYTHON).write_text(f"{args.python}\n")
    try:
        kernels = pack_cubins(args.out, args.arch)
        parts = pack_ort(wheel, args.out, args.arch, args.part_mib << 20, drop_solo=not args.solo)
    except NoCode as error:
        print(f"{wheel.name} and our kernels: {error}", file=sys.stderr)
        return 1
    if args.bundle:
        bundle(args.bundle, args.out)
    project = sum((ROOT / path).stat().st_size for path in tracked())
    wheels = sum(path.stat().st_size for path in (*(args.out / "wheels").iterdir(), *kernels))
    largest = max(part.stat().st_size for part in parts)
    print(
        f"project {project / 2**20:.1f} MiB, wheels {wheels / 2**20:.1f} MiB, {len(parts)} x {largest / 2**20:.1f} MiB"
    )
    if project + wheels + largest > TRANSFER:
        print(f"that is more than {TRANSFER >> 20} MiB in one transfer: try a smaller --part-mib", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
