"""Fields of `[backend_options]` that all backends on GPUs have, and what they must be."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, Field


def _different(devices: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(devices)) < len(devices):
        raise ValueError(f"{list(devices)} names a device twice")
    return devices


def _ascending(buckets: tuple[int, ...]) -> tuple[int, ...]:
    if any(a >= b for a, b in pairwise(buckets)):
        raise ValueError(f"{list(buckets)} is not ascending")
    return buckets


Devices = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1), AfterValidator(_different)
]
BusyWait = Annotated[
    bool,
    Field(description="wait for the GPU on a core of its own for each batch in flight: replies come a little sooner"),
]
BatchBuckets = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False), AfterValidator(_ascending)]
