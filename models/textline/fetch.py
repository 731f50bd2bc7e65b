"""Copies the text recogniser out of the installed package `rapidocr-onnxruntime`: 1/model.onnx and characters.json.

The package itself is not imported, and so none of its dependencies need be installed: `pip install --no-deps` is
enough, and `--ignore-requires-python` where it does not know of this Python yet. Copies nothing where both files are
there already and come from the same version.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

PACKAGE = "rapidocr-onnxruntime"
VERSION = "1.4.4"
MODEL = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
METADATA_KEY = "character"

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
    command = f"pip install --no-deps --ignore-requires-python {PACKAGE}=={VERSION}"
    sys.exit(f"{PACKAGE} {VERSION} is needed and {found}; run: {command}")


def read_characters(model: Path) -> list[str]:
    """What each column of the output stands for: the blank first, the model's own characters, a space last."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reads that when it is imported
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # only the metadata is read
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return ["", *session.get_modelmeta().custom_metadata_map[METADATA_KEY].splitlines(), " "]


def fetch(directory: Path) -> None:
    """Writes 1/model.onnx and characters.json under `directory`, the latter last: it means that all is there."""
    package = installed()
    model = directory / "1" / "model.onnx"
    model.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(str(package.locate_file(MODEL)), model)
    content = {"version": package.version, "characters": read_characters(model)}
    text = json.dumps(content, ensure_ascii=False, indent=0) + "\n"
    (directory / "characters.json").write_text(text, encoding="utf-8")


def fetched(directory: Path) -> bool:
    """Whether both files are there already, from this version."""
    characters = directory / "characters.json"
    if not (characters.is_file() and (directory / "1" / "model.onnx").is_file()):
        return False
    return bool(json.loads(characters.read_text(encoding="utf-8"))["version"] == VERSION)


def main() -> None:
    if not fetched(HERE):
        fetch(HERE)


if __name__ == "__main__":
    main()
