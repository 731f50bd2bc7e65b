"""Reads lines of printed text, each a request of its own width: `python examples/textline.py [IMAGE...]`.

Without images it draws some lines itself. Needs `pip install tritonclient[grpc] pillow` and a server: `make serve`,
which also fetches the model and characters.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tritonclient.grpc.aio as grpcclient
from PIL import Image, ImageDraw, ImageFont
from tritonclient.utils import InferenceServerException

CHARACTERS = Path(__file__).parents[1] / "models" / "textline" / "characters.json"
HEIGHT, GREATEST_WIDTH = 48, 1280
SAMPLES = (
    "OK",
    "12:45",
    "Gate B7",
    "Total 42.50 EUR",
    "Invoice 2026-11-26",
    "A line of text",
    "Fragile - handle with care",
    "The quick brown fox jumps over the lazy dog",
    "Please keep this receipt for your records, thank you.",
)


class Reading(NamedTuple):
    """A line as it was read. score: the mean of its characters', from 0 to 1. padding: percent of what ran."""

    text: str
    score: float
    width: int
    padding: int


def draw(text: str) -> Image.Image:
    """The text in black on white."""
    font = ImageFont.load_default(36)
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("RGB", (int(right - left) + 16, int(bottom - top) + 16), "white")
    ImageDraw.Draw(image).text((8 - left, 8 - top), text, fill="black", font=font)
    return image


def pixels(image: Image.Image) -> np.ndarray:
    """The model's input, FP32 [1,3,48,W]: 48 high, as wide as that makes it; blue, green, red from -1 to 1."""
    width = min(max(round(image.width * HEIGHT / image.height), 8), GREATEST_WIDTH)
    scaled = image.convert("RGB").resize((width, HEIGHT), Image.Resampling.BILINEAR)
    values = np.asarray(scaled, np.float32)[:, :, ::-1] / 127.5 - 1
    return np.ascontiguousarray(values.transpose(2, 0, 1))[np.newaxis]


def decode(probabilities: np.ndarray, characters: list[str]) -> tuple[str, float]:
    """The text of one line and its score, from [columns, characters].

    Connectionist temporal classification (Graves et al. 2006), greedily: the best character of each column; what
    repeats counts once, and column 0, the blank, separates.
    """
    best = probabilities.argmax(axis=1)
    counts = (best != 0) & np.append(True, best[1:] != best[:-1])
    if not counts.any():
        return "", 0.0
    text = "".join(characters[index] for index in best[counts])
    return text.strip(), float(probabilities.max(axis=1)[counts].mean())


async def read(client: grpcclient.InferenceServerClient, image: Image.Image, characters: list[str]) -> Reading:
    """Reads one line."""
    line = pixels(image)
    tensor = grpcclient.InferInput("x", list(line.shape), "FP32")
    tensor.set_data_from_numpy(line)
    result = await client.infer("textline", [tensor], parameters={"headrace_timing": True})
    text, score = decode(result.as_numpy("softmax_11.tmp_0")[0], characters)
    told = result.get_response().parameters
    return Reading(text, score, line.shape[3], told["headrace_padding_percent"].int64_param)


async def read_all(url: str, images: dict[str, Image.Image], characters: list[str]) -> None:
    """Sends all lines at once, and prints what is read in each."""
    async with grpcclient.InferenceServerClient(url) as client:
        readings = await asyncio.gather(*(read(client, image, characters) for image in images.values()))
    for name, reading in zip(images, readings, strict=True):
        print(f"{name}: {reading.text!r} ({reading.score:.2f}), {reading.width} wide, {reading.padding} % padding")


def main() -> int:
    parser = argparse.ArgumentParser(description="Reads lines of printed text in images.")
    parser.add_argument("images", metavar="IMAGE", nargs="*", type=Path, help="each of a single line of text")
    parser.add_argument("--url", default="127.0.0.1:8001", help="gRPC address (default: %(default)s)")
    args = parser.parse_args()

    characters = json.loads(CHARACTERS.read_text(encoding="utf-8"))["characters"]
    images: dict[str, Image.Image] = {}
    for path in args.images:
        try:
            images[str(path)] = Image.open(path).convert("RGB")
        except OSError as error:
            print(f"{path}: {error.strerror or error}")
    if not args.images:
        images = {text: draw(text) for text in SAMPLES}
    try:
        asyncio.run(read_all(args.url, images, characters))
    except InferenceServerException as error:
        sys.exit(f"{args.url}: {error.message()}")
    return int(len(images) < len(args.images))


if __name__ == "__main__":
    sys.exit(main())
