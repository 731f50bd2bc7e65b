"""All metrics as text, made a little at a time."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from headrace.telemetry.histograms import Histograms, number, series

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.registry import Collector
    from prometheus_client.samples import Sample

SAMPLES_A_TURN = 128
"""About how many samples are encoded before the event loop gets its turn: 0.1 to 0.5 ms."""

_VERSIONS = {"application/openmetrics-text": ("", "1.0.0"), "text/plain": ("", "0.0.4", "1.0.0")}
_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


async def exposition(registry: Collector, accept: str) -> tuple[bytes, str]:
    """All metrics of a registry, encoded as the Accept header asks, and the content type.

    Runs on the event loop, since that is where the counts change, and gives it a turn after about `SAMPLES_A_TURN`
    samples. A thread would be no relief: encoding is Python and holds the interpreter's lock, for which the loop would
    wait a whole switch interval (5 ms by default) after each of its system calls.
    """
    encode, content_type = choose_encoder(preferred(accept))
    openmetrics = content_type.startswith("application/openmetrics-text")
    texts: list[bytes] = []
    for family in registry.collect():
        if _is_plain(family):
            # the family without its samples: HELP and TYPE, in which the formats differ; their samples are the same
            texts.append(encode(_Collected(Metric(family.name, family.documentation, family.type, family.unit))))
            for text in _in_turns(family, openmetrics=openmetrics):
                texts.append(text.encode())
                await asyncio.sleep(0)
        else:
            texts.append(encode(_Collected(family)))
            await asyncio.sleep(0)
    if not openmetrics:
        return b"".join(texts), content_type
    return b"".join(text.removesuffix(b"# EOF\n") for text in texts) + b"# EOF\n", content_type


def preferred(accept: str) -> str:
    """Of an Accept header the one range that the answer is of, as prometheus-client reads it; empty for plain text.

    That with the greatest weight, the first of equals, of those that are known: q=0 is not acceptable (RFC 9110,
    12.4.2 and 12.5.1), and a version that is not spoken is none (OpenMetrics 1.0, "Protocol Negotiation").
    """
    best, most = "", 0.0
    for text in accept.split(","):
        kind, *given = (part.strip() for part in text.split(";"))
        pairs = (part.partition("=") for part in given)
        parameters = {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}
        weight = parameters.get("q", "1")
        kind, version = kind.lower(), parameters.get("version", "")
        known = kind in ("*/*", "text/*") or version in _VERSIONS.get(kind, ())
        if not known or not _WEIGHT.fullmatch(weight) or float(weight) <= most:
            continue
        most = float(weight)
        chosen = {"version": version, "escaping": parameters.get("escaping", "")}
        best = ";".join([kind, *(f"{name}={value}" for name, value in chosen.items() if value)])
    return best


class _Collected:
    """A collector of one family that is there already."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> list[Metric]:
        return [self._family]


def _is_plain(family: Metric) -> bool:
    """Whether its lines are those of its samples in their order, with nothing but a value."""
    if isinstance(family, Histograms):
        return True
    moved = (f"{family.name}_created", f"{family.name}_gsum", f"{family.name}_gcount")
    return not any(
        sample.name in moved or sample.timestamp is not None or sample.exemplar is not None for sample in family.samples
    )


def _in_turns(family: Metric, *, openmetrics: bool) -> Iterator[str]:
    """The lines of the samples, about so many at a time."""
    if not isinstance(family, Histograms):
        samples = family.samples
        for start in range(0, len(samples), SAMPLES_A_TURN):
            yield "".join(map(_line, samples[start : start + SAMPLES_A_TURN]))
        return
    gathered, count = "", 0
    for lines, text in family.texts(openmetrics=openmetrics):
        gathered += text
        count += lines
        if count >= SAMPLES_A_TURN:
            yield gathered
            gathered, count = "", 0
    yield gathered


def _line(sample: Sample) -> str:
    return f"{series(sample.name, tuple(sample.labels.items()))} {number(sample.value)}\n"
