"""Copies the file-type model out of the installed package `magika`: 1/model.onnx and labels.json beside this file.

Magika itself is not imported, and so none of its dependencies need be installed: `pip install --no-deps` is enough.
Copies nothing where both files are there already and come from the same version.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

PACKAGE = "magika"
VERSION = "1.0.3"
MODEL = "magika/models/standard_v3_3/model.onnx"
CONFIG = "magika/models/standard_v3_3/config.min.json"
CONTENT_TYPES = "magika/config/content_types_kb.min.json"

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


def client_parameters(package: Distribution) -> dict[str, object]:
    """What a client needs to make the model's input and to read its output; labels.json holds it.

    block_size: bytes read at each end of a file. beginning, end: tokens kept of each block. padding: the token that
    fills what is left. min_tokens: below it, the model is not asked. labels: the output's columns in order.
    thresholds: the score that a label needs, where it is not default_threshold. renamed: label -> what to call it.
    text: the labels that are text, for naming a low score `txt` or `unknown`.
    """
    config = json.loads(Path(str(package.locate_file(CONFIG))).read_text(encoding="utf-8"))
    types = json.loads(Path(str(package.locate_file(CONTENT_TYPES))).read_text(encoding="utf-8"))
    if config["mid_size"] or config["use_inputs_at_offsets"]:
        sys.exit(f"{CONFIG}: features beyond the beginning and the end of a file are not known here")
    labels = config["target_labels_space"]
    renamed = config["overwrite_map"]
    return {
        "version": package.version,
        "block_size": config["block_size"],
        "beginning": config["beg_size"],
        "end": config["end_size"],
        "padding": config["padding_token"],
        "min_tokens": config["min_file_size_for_dl"],
        "labels": labels,
        "default_threshold": config["medium_confidence_threshold"],
        "thresholds": config["thresholds"],
        "renamed": renamed,
        "text": sorted(name for name in {*labels, *renamed.values()} if types[name]["is_text"]),
    }


def fetch(directory: Path) -> None:
    """Writes 1/model.onnx and labels.json under `directory`, labels.json last: its presence means that all is there."""
    package = installed()
    model = directory / "1" / "model.onnx"
    model.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(str(package.locate_file(MODEL)), model)
    labels = json.dumps(client_parameters(package), indent=1) + "\n"
    (directory / "labels.json").write_text(labels, encoding="utf-8")


def fetched(directory: Path) -> bool:
    """Whether both files are there already, from this version."""
    labels = directory / "labels.json"
    if not (labels.is_file() and (directory / "1" / "model.onnx").is_file()):
        return False
    return bool(json.loads(labels.read_text(encoding="utf-8"))["version"] == VERSION)


def main() -> None:
    if not fetched(HERE):
        fetch(HERE)


if __name__ == "__main__":
    main()
