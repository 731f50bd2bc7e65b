"""Machine code for every architecture, which NVRTC makes here without a GPU."""

import pytest
from kernels import elf

from headrace_kernels import cubins
from headrace_kernels.check import cases
from headrace_kernels.interface import KernelsUnavailable

pytest.importorskip("cuda.core", reason="no cuda-core, which compiles the kernels: it is for Linux")

SHARED = 48 << 10
"""Bytes of shared memory that a block has without asking (CUDA C++ Programming Guide, technical specifications)."""


@pytest.mark.parametrize("architecture", cubins.ARCHITECTURES)
def test_every_kernel_is_compiled_for(architecture):
    cubins.build(architectures=(architecture,))  # compiles what the set-up has not
    for source, kernels in cubins.KERNELS.items():
        code = (cubins.HERE / "cubins" / cubins.file_name(source, architecture)).read_bytes()
        assert elf.kernels(code) == set(kernels)


def test_shared_memory_is_what_every_gpu_has():
    cubins.build(architectures=("75",))
    largest = {}
    for case in cases.small():
        for launch in case.operation.launches():
            code = (cubins.HERE / "cubins" / cubins.file_name(case.operation.source, "75")).read_bytes()
            size = elf.static_shared(code, launch.kernel) + launch.shared_bytes
            largest[launch.kernel] = max(size, largest.get(launch.kernel, 0))
    assert largest["feature_partials_f32"] > 32 * 258 * 4  # there is a case of the most bins
    assert max(largest.values()) <= SHARED


@pytest.fixture
def folder(tmp_path):
    for architecture in ("80", "86", "120"):
        (tmp_path / cubins.file_name("topk", architecture)).write_bytes(architecture.encode())
    (tmp_path / "topk.sm_90.000000000000.cubin").write_bytes(b"older")
    return tmp_path


@pytest.mark.parametrize(
    ("capability", "expected"), [((8, 0), b"80"), ((8, 6), b"86"), ((8, 9), b"86"), ((12, 1), b"120")]
)
def test_code_for_the_same_major_number_is_used(folder, capability, expected):
    assert cubins.code_for("topk", capability, folder) == expected


@pytest.mark.parametrize("capability", [(7, 5), (9, 0), (10, 0)])
def test_code_of_other_devices_and_of_older_sources_is_not_used(folder, capability):
    assert cubins.choose("topk", capability, folder) is None


def test_what_is_not_there_is_compiled(folder):
    assert elf.kernels(cubins.code_for("topk", (7, 5), folder)) == set(cubins.KERNELS["topk"])


def test_says_why_there_is_no_code(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cuda.core", None)
    with pytest.raises(KernelsUnavailable, match=r"no code of topk.cu for sm_75, and cuda-core is not installed"):
        cubins.code_for("topk", (7, 5), folder)
    with pytest.raises(KernelsUnavailable, match=r"another version of topk.cu \(make kernels builds it again\)"):
        cubins.code_for("topk", (9, 0), folder)


def test_builds_what_is_missing_and_removes_what_is_old(folder, monkeypatch):
    compiled = []
    monkeypatch.setattr(cubins, "compile_cubin", lambda *what: compiled.append(what) or b"new")
    written = cubins.build(folder, ("80", "89"))
    assert ("topk", "80") not in compiled
    assert ("topk", "89") in compiled
    assert len(written) == len(compiled) == 2 * len(cubins.KERNELS) - 1
    assert not (folder / "topk.sm_90.000000000000.cubin").exists()
    assert (folder / cubins.file_name("topk", "120")).read_bytes() == b"120"
    assert cubins.build(folder, ("80", "89")) == []
    assert {path.suffix for path in folder.iterdir()} == {".cubin"}


def test_what_does_not_compile_is_said(monkeypatch):
    monkeypatch.setattr(cubins, "source_text", lambda source: "this is no C++")
    with pytest.raises(KernelsUnavailable, match=r"NVRTC made no code of topk.cu for sm_90"):
        cubins.compile_cubin("topk", "90")
