"""Finds the speech in recordings: `python examples/vad.py FILE...`, 16-bit mono WAV of any rate.

Each recording is a sequence of its own: the server keeps the model's state from one chunk to the next, while the chunks
of all recordings take turns on one stream. Needs `pip install tritonclient[grpc]` and a server: `make serve`, which
also fetches the model.
"""

from __future__ import annotations

import argparse
import queue
import sys
import uuid
import wave
from itertools import zip_longest
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

RATE = 16_000
CHUNK = 512
"""Samples that each request adds: 32 ms."""
CONTEXT = 64
"""Samples that the model wants to see again before them."""

THRESHOLD, RELEASE = 0.5, 0.35
"""Probabilities from which on speech has begun, and below which it may be over."""
MIN_SPEECH, MIN_SILENCE, PAD = (round(seconds * RATE) for seconds in (0.25, 0.1, 0.03))
"""Samples: shorter speech is dropped, shorter silence does not end it, and each end is moved outwards by so much."""


def read(path: Path) -> np.ndarray:
    """The samples of a file from -1 to 1, FP32, at 16 kHz. Raises ValueError if it is no 16-bit mono WAV."""
    try:
        with wave.open(str(path)) as file:
            if (file.getnchannels(), file.getsampwidth()) != (1, 2):
                raise ValueError(f"{file.getnchannels()} channels of {8 * file.getsampwidth()} bits, expected 1 of 16")
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / np.float32(32768)
            return resample(samples, file.getframerate())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"not a WAV file: {error}") from error


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """By linear interpolation, after a moving average over what one new sample covers: plain, and enough for speech."""
    if rate == RATE or not len(samples):
        return samples
    width = max(round(rate / RATE), 1)
    smooth = np.convolve(samples, np.full(width, 1 / width), mode="same")
    times = np.arange(int(len(samples) * RATE / rate)) * (rate / RATE)
    return np.interp(times, np.arange(len(samples)), smooth).astype(np.float32)


def chunks(samples: np.ndarray) -> list[np.ndarray]:
    """The model's inputs, FP32 [1,576]: 64 samples of context (zeros at first) and 512 new ones (the last padded)."""
    padded = np.concatenate([np.zeros(CONTEXT), samples, np.zeros(-len(samples) % CHUNK)]).astype(np.float32)
    return [padded[np.newaxis, at : at + CONTEXT + CHUNK] for at in range(0, len(padded) - CONTEXT, CHUNK)]


def probabilities(client: grpcclient.InferenceServerClient, recordings: list[np.ndarray]) -> list[list[float]]:
    """For each recording the probability of speech in each of its chunks.

    All chunks go over one stream, those of different recordings in turns. Replies come in the order of requests.
    """
    replies: queue.Queue[tuple[grpcclient.InferResult, Exception | None]] = queue.Queue()
    client.start_stream(lambda result, error: replies.put((result, error)))
    rate = grpcclient.InferInput("sr", [], "INT64")
    rate.set_data_from_numpy(np.array(RATE))
    ids = [str(uuid.uuid4()) for _ in recordings]
    found: list[list[float]] = [[] for _ in recordings]
    sent = []
    for place, turn in enumerate(zip_longest(*map(chunks, recordings))):
        for number, chunk in enumerate(turn):
            if chunk is None:
                continue
            audio = grpcclient.InferInput("input", chunk.shape, "FP32")
            audio.set_data_from_numpy(chunk)
            client.async_stream_infer(
                "vad",
                [audio, rate],
                sequence_id=ids[number],
                sequence_start=place == 0,
                sequence_end=(place + 1) * CHUNK >= len(recordings[number]),
            )
            sent.append(number)
    try:
        for number in sent:
            result, error = replies.get()
            if error is not None:
                raise error
            found[number].append(float(result.as_numpy("output")[0, 0]))
    finally:
        client.stop_stream()
    return found


def segments(probabilities: list[float], samples: int) -> list[tuple[float, float]]:
    """(start, end) of each stretch of speech in seconds; `samples` is the length of the recording."""
    found: list[list[int]] = []
    start = silent_since = None
    for number, probability in enumerate(probabilities):
        at = number * CHUNK
        if probability >= THRESHOLD:
            silent_since = None
            start = at if start is None else start
        elif probability < RELEASE and start is not None:
            silent_since = at if silent_since is None else silent_since
            if at - silent_since >= MIN_SILENCE:
                found.append([start, silent_since])
                start = silent_since = None
    if start is not None:
        found.append([start, samples])
    spoken = [(begin, end) for begin, end in found if end - begin > MIN_SPEECH]
    return [(max(begin - PAD, 0) / RATE, min(end + PAD, samples) / RATE) for begin, end in spoken]


def main() -> int:
    parser = argparse.ArgumentParser(description="Finds the speech in recordings.")
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path)
    parser.add_argument("--url", default="127.0.0.1:8001", help="gRPC address (default: %(default)s)")
    args = parser.parse_args()

    recordings = []
    for path in args.files:
        try:
            recordings.append((path, read(path)))
        except (OSError, ValueError) as error:
            print(f"{path}: {error}", file=sys.stderr)
    client = grpcclient.InferenceServerClient(args.url)
    try:
        found = probabilities(client, [samples for _, samples in recordings])
    except InferenceServerException as error:
        sys.exit(f"{args.url}: {error.message()}")
    for (path, samples), of_speech in zip(recordings, found, strict=True):
        spoken = segments(of_speech, len(samples))
        print(f"{path}: {len(samples) / RATE:.2f} s, {sum(end - start for start, end in spoken):.2f} s of speech")
        for start, end in spoken:
            print(f"  {start:7.2f} to {end:7.2f}")
    return int(len(recordings) < len(args.files))


if __name__ == "__main__":
    sys.exit(main())
