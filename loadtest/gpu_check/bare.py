"""A model without a server: rows per second by batch size, and the time of one row."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, NamedTuple

from gpu_check.loaded import Loaded
from gpu_check.sessions import Bound, as_served, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np

    from gpu_check.context import Context

    Array = np.ndarray[Any, Any]

BATCHES = (8, 16, 32, 64, 128, 256)


class Best(NamedTuple):
    """rates: rows/s by batch size, inputs and output in the device's memory. host_rate: at the best, in the host's."""

    batch: int
    rate: float
    host_rate: float
    rates: dict[int, float]


def best(
    name: str, output: str, context: Context, seconds: float, batches: Iterable[int] = BATCHES, layout: str = ""
) -> Best:
    """The model on one session, with the options that the server has, each batch size for `seconds`.

    layout: of images within ONNX Runtime, NHWC or its own.
    """
    session = opened(context.model(name), context, **as_served(context, nhwc=layout == "NHWC"))
    rates = {}
    for batch in batches:
        bound = Bound(session, context.sizes.feeds(name, batch), output, context)
        rates[batch] = batch * per_second(bound.run, seconds)
        context.say(f"{' '.join((name, layout))}, bare, batch {batch}: {rates[batch]:.0f} rows/s")
    batch = max(rates, key=rates.__getitem__)
    feeds = context.sizes.feeds(name, batch)
    return Best(batch, rates[batch], batch * per_second(lambda: session.run([output], feeds), seconds), rates)


def best_of_backend(
    backend: str, name: str, output: str, context: Context, seconds: float, batches: Iterable[int] = BATCHES
) -> Best:
    """The model on one instance of a backend of the server's, from the host's memory to the host's: both rates are.

    As many batches are in flight as it can have, as the server has.
    """
    batches = list(batches)
    rates = {}
    with Loaded(context, backend, name, output, max(batches)) as model:
        for batch in batches:
            feeds = context.sizes.feeds(name, batch)
            runs = [model.prepared(feeds, [1] * batch, lane) for lane in model.lanes]
            rates[batch] = batch * together(runs, seconds)
            context.say(f"{name}, {backend}, batch {batch}: {rates[batch]:.0f} rows/s")
    batch = max(rates, key=rates.__getitem__)
    return Best(batch, rates[batch], rates[batch], rates)


def together(runs: Sequence[Callable[[], object]], seconds: float) -> float:
    """Runs each second, of all of them on a thread each."""
    with ThreadPoolExecutor(len(runs)) as pool:
        return sum(pool.map(lambda run: per_second(run, seconds), runs))


def per_second(run: Callable[[], object], seconds: float) -> float:
    """Runs each second, one after another, after a tenth of the time to warm up."""
    _repeat(run, seconds / 10)
    runs, took = _repeat(run, seconds)
    return runs / took


def _repeat(run: Callable[[], object], seconds: float) -> tuple[int, float]:
    runs, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or not runs:
        run()
        runs += 1
    return runs, elapsed


def latency_us(run: Callable[[], object], seconds: float) -> dict[str, float]:
    """p50 and p99 of single runs, in microseconds, after a tenth of the time to warm up."""
    _repeat(run, seconds / 10)
    took: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(took) < 10:
        began = time.perf_counter_ns()
        run()
        took.append((time.perf_counter_ns() - began) / 1000)
    return {"p50_us": median(took), "p99_us": quantiles(took, n=100, method="inclusive")[98]}
