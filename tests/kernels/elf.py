"""What a cubin holds: an ELF file of NVIDIA's (cubins are 64-bit, little-endian ELF; System V ABI, Object Files)."""

import struct

MACHINE = 190  # EM_CUDA


def sections(code: bytes) -> dict[str, int]:
    """The sections by name, and their sizes. Raises AssertionError if this is no cubin."""
    assert code[:6] == b"\x7fELF\x02\x01", "no 64-bit little-endian ELF file"
    assert struct.unpack_from("<H", code, 18)[0] == MACHINE, "not for NVIDIA's GPUs"
    (start,) = struct.unpack_from("<Q", code, 40)
    size, count, names = struct.unpack_from("<HHH", code, 58)
    headers = [struct.unpack_from("<IIQQQQ", code, start + size * index) for index in range(count)]
    texts = headers[names][4]
    return {code[texts + header[0] :].split(b"\0", 1)[0].decode(): header[5] for header in headers}


def kernels(code: bytes) -> set[str]:
    """The kernels of a cubin: each has its code in a section of its own."""
    return {name.removeprefix(".text.") for name, size in sections(code).items() if name.startswith(".text.") and size}


def static_shared(code: bytes, kernel: str) -> int:
    """Bytes of shared memory that a kernel has beside what its launch asks for."""
    return sections(code).get(f".nv.shared.{kernel}", 0)
