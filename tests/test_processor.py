import pytest

from headrace import processor
from headrace.processor import Processor, exact_products, parse, this_processor

XEON = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_int8\nvmx flags\t: ept\n"
HASWELL = "processor\t: 0\nflags\t\t: fpu avx2 fma\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n"
PI = "processor\t: 0\nFeatures\t: fp asimd\n"


@pytest.mark.parametrize(
    ("machine", "text", "instructions", "reduced", "said"),
    [
        ("x86_64", XEON, ("avx512_vnni", "amx_int8"), False, ""),
        ("AMD64", "flags\t: avx_vnni\n", ("avx_vnni",), False, ""),
        ("x86_64", HASWELL, (), True, "no VNNI"),
        ("aarch64", GRAVITON, ("asimddp", "i8mm"), False, ""),
        ("aarch64", PI, (), False, "no dot products"),
        ("x86_64", "", None, False, "cannot be told"),
        ("riscv64", "isa\t: rv64imafdc\n", None, False, "riscv64"),
        ("ppc64le", "flags\t: avx512_vnni\n", None, False, "cannot be told"),
    ],
    ids=["vnni", "avx-vnni", "no vnni", "arm", "old arm", "unreadable", "riscv", "other"],
)
def test_what_a_processor_has(machine, text, instructions, reduced, said):
    found = parse(machine, text)
    assert (found.instructions, found.reduce_range) == (instructions, reduced)
    assert said in found.warning
    assert bool(found.warning) is bool(said)


def test_of_different_cores_it_is_what_all_have():
    assert parse("x86_64", XEON + HASWELL).reduce_range
    assert parse("aarch64", GRAVITON + PI).instructions == ()


def test_a_flag_is_a_word():
    assert parse("x86_64", "flags\t: avx512_vnni_not\n").instructions == ()


def test_a_machine_without_proc_is_unknown(tmp_path):
    assert this_processor(tmp_path / "cpuinfo").instructions is None


def test_a_processor_says_what_it_is():
    assert repr(parse("x86_64", XEON)) == "<Processor x86_64, for INT8: avx512_vnni, amx_int8>"
    assert repr(Processor("x86_64", ())) == "<Processor x86_64, for INT8: none>"
    assert repr(Processor("arm64", None)) == "<Processor arm64, for INT8: unknown>"


@pytest.mark.parametrize(
    ("machine", "text", "asked"),
    [("x86_64", XEON, False), ("x86_64", HASWELL, True), ("x86_64", "", True), ("aarch64", PI, False)],
)
def test_kernels_that_saturate_are_not_asked_for(monkeypatch, machine, text, asked):
    monkeypatch.setattr(processor, "_this", lambda: parse(machine, text))
    assert exact_products() == ({"session.x64quantprecision": "1"} if asked else {})
