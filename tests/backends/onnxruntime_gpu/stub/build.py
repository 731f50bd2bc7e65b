"""Libraries in the place of CUDA's, for the provider of onnxruntime-gpu: every call succeeds and does next to nothing.

What the provider wants of each library stands in the file itself, with the library's name as the version of a symbol.
Calls are written to the file that STUB_TRACE names, a line each.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HEAD = """
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static void trace(const char *format, ...) {
  const char *name = getenv("STUB_TRACE");
  FILE *file = name ? fopen(name, "a") : NULL;
  if (!file) return;
  va_list arguments;
  va_start(arguments, format);
  vfprintf(file, format, arguments);
  va_end(arguments);
  fputc('\\n', file);
  fclose(file);
}
"""


def build(provider: Path, out: Path) -> None:
    """Writes the libraries that a provider's library wants into `out`. Raises CalledProcessError."""

    def told(*command: str) -> str:
        return subprocess.run([*command, str(provider)], check=True, capture_output=True, text=True).stdout

    wanted: dict[str, list[str]] = defaultdict(list)
    for symbol in told("nm", "-D", "--undefined-only").split():
        name, _, version = symbol.rpartition("@")
        if version.startswith("lib"):
            wanted[version].append(name.rstrip("@"))
    drivers = re.findall(r"\bcu[A-Z]\w+\n", told("nm", "-D", "--undefined-only"))
    for needed in re.findall(r"\[(lib(?:cu|nv).*)\]", told("readelf", "-d")):
        _library(needed, wanted.get(needed, []), [name.strip() for name in drivers if needed == "libcuda.so.1"], out)
    # cuDNN is opened by its name, and asked for functions by theirs, which stand among the texts
    named = {name.decode() for name in re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", provider.read_bytes())}
    _library("libcudnn.so", [], sorted(named), out)


def _library(soname: str, versioned: list[str], plain: list[str], out: Path) -> None:
    source = HEAD
    if soname.startswith("libcudart"):
        source += Path(__file__).with_name("cudart.c").read_text()
    if soname.startswith("libcudnn"):
        source += "long cudnnGetVersion() { return 91000; }\n"
        source += "".join(
            f"int {name}(void **made) {{ *made = malloc(8); return 0; }}\n"
            for name in plain
            if re.match("cudnnCreate", name)
        )
    for name in (*versioned, *plain):
        if not re.search(rf"\W{name}\(", source):
            source += f'long {name}() {{ trace("{name}"); return 0; }}\n'
    (out / "stub.c").write_text(source)
    (out / "stub.map").write_text(f"{soname} {{ global: *; }};\n")
    versions = [f"-Wl,--version-script={out / 'stub.map'}"] if versioned else []
    command = ["gcc", "-w", "-shared", "-fPIC", "-o", str(out / soname), str(out / "stub.c"), f"-Wl,-soname,{soname}"]
    subprocess.run([*command, *versions], check=True, capture_output=True, text=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
