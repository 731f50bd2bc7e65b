"""From a wheel with machine code for several GPUs to the packages that a machine without a network imports."""

import hashlib
import json
import struct
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gpu_check import pack
from gpu_check.context import ROOT
from gpu_check.environment import CUBINS_AT, BadPack, lay_cubins, unpack, variables
from gpu_check.fatbins import MAGIC, NoCode, entries, prune, table
from gpu_check.pack import LEFT_OUT, LIBRARY, OLDEST, ORT, PRESENT, TRANSFER, WHEELS, pack_ort
from headrace_kernels import cubins
from headrace_kernels.cubins import KERNELS, file_name

CUBIN = 2


def entry(arch, payload, head=64, kind=CUBIN):
    fields = struct.pack("<HHIQ", kind, 1, head, len(payload)) + bytes(12) + struct.pack("<I", arch)
    return fields.ljust(head, b"\0") + payload


def fatbin(*found):
    body = b"".join(entry(*each) for each in found)
    return MAGIC + struct.pack("<HHQ", 1, 16, len(body)) + body


CODE = st.binary(min_size=1, max_size=40).map(lambda code: code.replace(MAGIC[:1], b"x"))
FATBINS = st.lists(st.lists(st.tuples(st.sampled_from((75, 80, 90)), CODE), min_size=1, max_size=4), max_size=5)


@given(FATBINS, st.booleans())
def test_pruning_zeroes_what_is_for_others_and_nothing_else(tmp_path_factory, fatbins, drop_solo):
    library = tmp_path_factory.mktemp("library") / "lib.so"
    before = b"text" + MAGIC + b"data".join(fatbin(*found) for found in fatbins) + MAGIC
    library.write_bytes(before)
    assert [(e.arch, before[e.start : e.start + e.size]) for e in entries(before)] == [
        each for found in fatbins for each in found
    ]
    if not any(arch == 90 for found in fatbins for arch, _ in found):
        with pytest.raises(NoCode, match="no code for architecture 90"):
            prune(library, 90, drop_solo=drop_solo)
        assert library.read_bytes() == before
        return
    kept, zeroed = prune(library, 90, drop_solo=drop_solo)

    def stays(found, arch):
        return arch == 90 and not (drop_solo and {arch for arch, _ in found} == {90})

    want = b"text" + MAGIC + b"data".join(
        fatbin(*((arch, code if stays(found, arch) else bytes(len(code))) for arch, code in found)) for found in fatbins
    ) + MAGIC  # fmt: skip
    assert library.read_bytes() == want
    assert kept == sum(len(code) for found in fatbins for arch, code in found if stays(found, arch))
    assert kept + zeroed == sum(len(code) for found in fatbins for _, code in found)


@pytest.mark.parametrize("cut", [2, 8, 15, 40, 90])
def test_a_library_that_ends_in_the_middle_is_read_as_far_as_it_is_whole(cut):
    whole = fatbin((90, b"code"), (80, b"more"))
    assert list(entries(whole[:cut])) == []


def test_an_entry_that_reaches_beyond_its_fatbin_is_not_touched():
    lying = bytearray(fatbin((90, b"code")))
    struct.pack_into("<Q", lying, 16 + 8, 1000)
    assert list(entries(bytes(lying) + bytes(2000))) == []


def test_the_table_tells_what_is_alone():
    lines = table(entries(fatbin((90, b"1234"), (80, b"12")) + fatbin((90, b"123")))).splitlines()
    assert lines[0] == "2 fatbins"
    assert [line.split() for line in lines[2:]] == [["cubin", "80", "1", "2", "0"], ["cubin", "90", "2", "7", "3"]]


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "onnxruntime_gpu-1-cp312-cp312-linux.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("onnxruntime/", "")
        archive.writestr("onnxruntime/__init__.py", "version = 1\n")
        archive.writestr(f"{LEFT_OUT}.1.31.1", bytes(1000))
        archive.writestr(LIBRARY, fatbin((90, b"ninety" * 100), (80, b"eighty" * 100)) + fatbin((90, b"alone" * 100)))
    return path


def other_wheel(packs, text="name = 'other'\n"):
    (packs / "wheels").mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(packs / "wheels" / "other-1-py3-none-any.whl", "w") as archive:
        archive.writestr("other.py", text)


@pytest.mark.parametrize("part_bytes", [100, 1 << 20])
def test_what_is_packed_is_unpacked(wheel, tmp_path, part_bytes):
    packs = tmp_path / "packs"
    other_wheel(packs)
    parts = pack_ort(wheel, packs, 90, part_bytes, drop_solo=True)
    assert max(part.stat().st_size for part in parts) <= part_bytes
    assert (len(parts) > 1) == (part_bytes == 100)
    assert {part.parent.name for part in parts} == {f"part{n}" for n in range(len(parts))}
    site = unpack(packs, "3.12")
    assert site == packs / "site"
    assert (site / "other.py").read_text() == "name = 'other'\n"
    assert (site / "onnxruntime/__init__.py").read_text() == "version = 1\n"
    assert not (site / f"{LEFT_OUT}.1.31.1").exists()
    assert [(e.arch, bool((site / LIBRARY).read_bytes()[e.start])) for e in entries((site / LIBRARY).read_bytes())] == [
        (90, True),
        (80, False),
        (90, False),
    ]


def test_our_kernels_travel_along(tmp_path):
    built, packs, root = tmp_path / "built", tmp_path / "packs", tmp_path / "root"
    built.mkdir()
    for source in KERNELS:
        for architecture in ("80", "90"):
            (built / file_name(source, architecture)).write_text(architecture)
    packed = pack.pack_cubins(packs, 90, built)
    assert {path.name for path in packed} == {file_name(source, "90") for source in KERNELS}
    place = root / CUBINS_AT
    place.parent.mkdir(parents=True)
    lay_cubins(packs, root)
    assert {path.name: path.read_text() for path in place.iterdir()} == {path.name: "90" for path in packed}
    (place / packed[0].name).write_text("as it was")
    lay_cubins(packs, root)
    assert (place / packed[0].name).read_text() == "as it was"
    with pytest.raises(NoCode, match="for architecture 75: make kernels builds it"):
        pack.pack_cubins(packs, 75, built)


def test_cubins_are_laid_where_the_kernels_look_for_them():
    assert ROOT / CUBINS_AT == cubins.HERE / "cubins"
    lay_cubins(Path("no packs"), Path("nowhere"))


def test_packing_again_leaves_nothing_of_before(wheel, tmp_path):
    pack_ort(wheel, tmp_path, 90, 100, drop_solo=True)
    pack_ort(wheel, tmp_path, 90, 1 << 20, drop_solo=True)
    assert len(list(tmp_path.glob("part*"))) == 1


def test_a_missing_part_and_a_damaged_one_are_seen(wheel, tmp_path):
    parts = pack_ort(wheel, tmp_path, 90, 100, drop_solo=True)
    last = parts[-1].read_bytes()
    parts[-1].write_bytes(last[:-1] + bytes([last[-1] ^ 1]))
    with pytest.raises(BadPack, match="not of one pack, or damaged"):
        unpack(tmp_path, "3.12")
    parts[-1].unlink()
    with pytest.raises(BadPack, match=f"{len(parts) - 1} parts of onnxruntime-gpu, expected {len(parts)}"):
        unpack(tmp_path, "3.12")


def test_packs_for_another_python_are_refused(tmp_path):
    other_wheel(tmp_path)
    (tmp_path / "python.txt").write_text("3.12\n")
    with pytest.raises(BadPack, match=r"for Python 3\.12, and this is 3\.11"):
        unpack(tmp_path, "3.11")
    assert unpack(tmp_path, "3.12") == tmp_path / "site"


def test_they_are_unpacked_once_and_again_when_they_change(tmp_path):
    other_wheel(tmp_path)
    site = unpack(tmp_path, "3.12")
    (site / "left.py").touch()
    assert unpack(tmp_path, "3.12") == site
    assert (site / "left.py").exists()
    other_wheel(tmp_path, "name = 'a new one'\n")
    unpack(tmp_path, "3.12")
    assert (site / "other.py").read_text() == "name = 'a new one'\n"
    assert not (site / "left.py").exists()


def test_without_packs_there_is_nothing_to_unpack(tmp_path):
    assert unpack(tmp_path / "none", "3.12") is None


def test_the_environment_of_checks(tmp_path):
    site = tmp_path / "site"
    (site / "nvidia/cu13/lib").mkdir(parents=True)
    (site / "tensorrt_libs").mkdir()
    given = {"PYTHONPATH": "/theirs", "LD_LIBRARY_PATH": "/libs", "HEADRACE_LOG_LEVEL": "debug", "HOME": "/home"}
    found = variables(tmp_path / "root", site, given)
    root = tmp_path / "root"
    assert found["PYTHONPATH"].split(":") == [
        str(site),
        *(f"{root}/{s}" for s in ("server", "loadtest", "kernels")),
        "/theirs",
    ]
    libraries = found["LD_LIBRARY_PATH"].split(":")
    assert libraries[:2] == [f"{site}/nvidia/cu13/lib", f"{site}/tensorrt_libs"]
    assert libraries[-1] == "/libs"
    assert found["CUDA_MODULE_LOADING"] == "LAZY"
    assert found["HOME"] == "/home"
    assert found["XDG_CACHE_HOME"] == f"{root}/.cache/gpu-check"
    assert found["no_proxy"] == "127.0.0.1"
    assert "HEADRACE_LOG_LEVEL" not in found


def test_all_that_the_server_imports_is_packed_or_there():
    """The closure of pyproject.toml's dependencies, as they are installed here."""
    wanted, open_ = set(), {"headrace"}
    while open_:
        name = open_.pop()
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            needed = canonicalize_name(requirement.name)
            if (requirement.marker is None or requirement.marker.evaluate({"extra": ""})) and needed not in wanted:
                wanted.add(needed)
                open_.add(needed)
    assert wanted == set(WHEELS) | set(PRESENT) | {name.partition("==")[0] for name in OLDEST}


def test_the_oldest_are_those_that_the_project_allows():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {name.replace("==", ">=").removesuffix(".0") for name in OLDEST} <= set(dependencies)


def test_what_is_packed_is_pinned():
    pinned = {canonicalize_name(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().split("\n")}
    assert {ORT, *WHEELS} <= pinned


def test_a_bundle_holds_the_project_and_the_packs(tmp_path, monkeypatch):
    import tarfile

    other_wheel(tmp_path / "packs")
    monkeypatch.setattr(pack, "tracked", lambda: [(ROOT / "Makefile").relative_to(ROOT)])
    pack.bundle(tmp_path / "all.tar", tmp_path / "packs")
    with tarfile.open(tmp_path / "all.tar") as archive:
        assert archive.getnames() == ["headrace/Makefile", "headrace/.gpu/wheels/other-1-py3-none-any.whl"]


@pytest.mark.parametrize(("large", "status"), [(1000, 0), (TRANSFER, 1)])
def test_what_is_too_much_for_a_transfer_is_refused(wheel, tmp_path, monkeypatch, capsys, large, status):
    def download(packages, into, python, constraints=""):
        into.mkdir(parents=True, exist_ok=True)
        if packages == [ORT]:
            wheel.rename(into / wheel.name)
        else:
            (into / "large.whl").write_bytes(bytes(large))

    monkeypatch.setattr(pack, "download", download)
    monkeypatch.setattr(pack, "CACHE", tmp_path / "cache")
    monkeypatch.setattr("sys.argv", ["gpu-pack", "--out", str(tmp_path / "out")])
    assert pack.main() == status
    said = capsys.readouterr()
    assert ("more than 64 MiB" in said.err) == bool(status)
    manifest = json.loads((tmp_path / "out/part0/ort.json").read_text())
    whole = (tmp_path / "out/part0/ort.tar.xz.00").read_bytes()
    assert manifest == {"parts": 1, "sha256": hashlib.sha256(whole).hexdigest()}
    assert (tmp_path / "out/python.txt").read_text() == "3.12\n"
