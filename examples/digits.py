"""Reads handwritten digits: sends images that the model has never seen, and asks where the time went.

Needs `pip install tritonclient[grpc]` and a server: `make serve`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

HELD_OUT = Path(__file__).parents[1] / "models" / "digits" / "heldout.npz"
PHASES = ("decode", "admit", "queue", "batch", "execute", "encode")


def headrace_parameters(result: grpcclient.InferResult) -> dict[str, int | str]:
    """The `headrace_*` parameters of a reply, without their prefix."""
    return {
        name.removeprefix("headrace_"): getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in result.get_response().parameters.items()
        if name.startswith("headrace_")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Reads handwritten digits through a running server.")
    parser.add_argument("--url", default="127.0.0.1:8001", help="gRPC address (default: %(default)s)")
    parser.add_argument("--count", type=int, default=8, help="images to send, in one request (default: %(default)s)")
    args = parser.parse_args()
    if args.count < 1:
        parser.error(f"--count {args.count}: expected 1 or more")

    with np.load(HELD_OUT) as digits:
        pixels, truth = digits["pixels"][: args.count], digits["labels"][: args.count]  # FP32 [N,64], INT64 [N]

    client = grpcclient.InferenceServerClient(args.url)
    images = grpcclient.InferInput("pixels", pixels.shape, "FP32")
    images.set_data_from_numpy(pixels)
    try:
        result = client.infer("digits", [images], parameters={"headrace_timing": True})
    except InferenceServerException as error:
        sys.exit(f"{args.url}: {error.message()}")

    certainty = result.as_numpy("probabilities").max(axis=1)
    for true, label, sure in zip(truth, result.as_numpy("label"), certainty, strict=True):
        print(f"a {true}: read as {label} ({sure:.2f})" + ("" if label == true else "  <- wrong"))

    timing = headrace_parameters(result)
    if timing:
        spent = ", ".join(f"{phase} {timing[f'{phase}_us']}" for phase in PHASES)
        print(f"{timing['total_us']} us in the server: {spent}")
        print(f"in a batch of {timing['batch_rows']} rows, closed by: {timing['close_reason']}")


if __name__ == "__main__":
    main()
