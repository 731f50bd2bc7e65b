"""Names the type of any file by its content: `python examples/filetype.py FILE...`.

Needs `pip install tritonclient[grpc]` and a server: `make serve`, which also fetches the model and labels.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

LABELS = Path(__file__).parents[1] / "models" / "filetype" / "labels.json"

Parameters = dict[str, Any]
"""labels.json: how to make the model's input and read its output; models/filetype/README.md explains each key."""


def read_ends(path: Path, block: int) -> tuple[bytes, bytes]:
    """The first and the last `block` bytes of a file: the same bytes where it is no longer than that."""
    with path.open("rb") as file:
        head = file.read(block)
        file.seek(max(0, path.stat().st_size - block))
        return head, file.read(block)


def tokens(head: bytes, tail: bytes, parameters: Parameters) -> np.ndarray:
    """The model's input, INT32 [1,2048]: the first bytes, padding, the last bytes; outer whitespace is left out."""
    first = head.lstrip()[: parameters["beginning"]]
    last = tail.rstrip()[-parameters["end"] :]
    row = np.full(parameters["beginning"] + parameters["end"], parameters["padding"], np.int32)
    row[: len(first)] = np.frombuffer(first, np.uint8)
    row[len(row) - len(last) :] = np.frombuffer(last, np.uint8)
    return row[np.newaxis]


def without_model(head: bytes, parameters: Parameters) -> str | None:
    """The type of a file that holds too little to ask the model, else None."""
    if not head:
        return "empty"
    if len(head.lstrip()) >= parameters["min_tokens"]:
        return None
    try:
        head.decode()
    except UnicodeDecodeError:
        return "unknown"
    return "txt"


def name(scores: np.ndarray, parameters: Parameters) -> tuple[str, float]:
    """The best label and its score; `txt` or `unknown` where the score is below what the label needs."""
    best = int(scores.argmax())
    label, score = parameters["labels"][best], float(scores[best])
    shown = parameters["renamed"].get(label, label)
    if score < parameters["thresholds"].get(label, parameters["default_threshold"]):
        shown = "txt" if shown in parameters["text"] else "unknown"
    return shown, score


def identify(client: grpcclient.InferenceServerClient, path: Path, parameters: Parameters) -> tuple[str, float]:
    """The type of a file, and the model's score for it: from 0 to 1."""
    head, tail = read_ends(path, parameters["block_size"])
    trivial = without_model(head, parameters)
    if trivial is not None:
        return trivial, 1.0
    row = tokens(head, tail, parameters)
    tensor = grpcclient.InferInput("bytes", row.shape, "INT32")
    tensor.set_data_from_numpy(row)
    scores = client.infer("filetype", [tensor]).as_numpy("target_label")  # FP32 [1,214]
    return name(scores[0], parameters)


def main() -> int:
    parser = argparse.ArgumentParser(description="Names the type of files by their content.")
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path)
    parser.add_argument("--url", default="127.0.0.1:8001", help="gRPC address (default: %(default)s)")
    args = parser.parse_args()

    parameters = json.loads(LABELS.read_text(encoding="utf-8"))
    client = grpcclient.InferenceServerClient(args.url)
    status = 0
    for path in args.files:
        try:
            kind, score = identify(client, path, parameters)
        except OSError as error:
            print(f"{path}: {error.strerror}")
            status = 1
        except InferenceServerException as error:
            sys.exit(f"{args.url}: {error.message()}")
        else:
            print(f"{path}: {kind} ({score:.2f})")
    return status


if __name__ == "__main__":
    sys.exit(main())
