"""All metrics as text, made a little at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.registry import Collector

SAMPLES_A_TURN = 32
"""How many samples are encoded before the event loop gets its turn: 0.3 to 0.7 ms."""


async def exposition(registry: Collector, accept: str) -> tuple[bytes, str]:
    """All metrics of a registry, encoded as the Accept header asks, and the content type.

    Runs on the event loop, since that is where the counts change, and gives it a turn after each `SAMPLES_A_TURN`
    samples. A thread would be no relief: encoding is Python and holds the interpreter's lock, for which the loop would
    wait a whole switch interval (5 ms by default) after each of its system calls.
    """
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is not a number
        encode, content_type = choose_encoder("")
    parts: list[bytes] = []
    for family in registry.collect():
        for number, piece in enumerate(_pieces(family)):
            text = encode(_Collected(piece)).removesuffix(b"# EOF\n")
            while number and text.startswith(b"# "):  # HELP and TYPE stand once, before the first piece
                text = text.partition(b"\n")[2]
            parts.append(text)
            await asyncio.sleep(0)
    if content_type.startswith("application/openmetrics-text"):
        parts.append(b"# EOF\n")
    return b"".join(parts), content_type


class _Collected:
    """A collector of one family that is there already."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> list[Metric]:
        return [self._family]


def _pieces(family: Metric) -> Iterator[Metric]:
    """The family in pieces of `SAMPLES_A_TURN` samples; in one piece if it has samples that the text format moves."""
    moved = (f"{family.name}_created", f"{family.name}_gsum", f"{family.name}_gcount")
    if len(family.samples) <= SAMPLES_A_TURN or any(sample.name in moved for sample in family.samples):
        yield family
        return
    for start in range(0, len(family.samples), SAMPLES_A_TURN):
        piece = Metric(family.name, family.documentation, family.type, family.unit)
        piece.samples = family.samples[start : start + SAMPLES_A_TURN]
        yield piece
