import asyncio

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeHistogramMetricFamily, GaugeMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from headrace.transport.rest.exposition import SAMPLES_A_TURN, exposition

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Large:
    """A collector of one family that takes several turns to encode."""

    def __init__(self, samples=5 * SAMPLES_A_TURN + 1, error=None):
        self.samples = samples
        self.error = error

    def collect(self):
        if self.error:
            raise self.error
        family = GaugeMetricFamily("large", "Many\nsamples", labels=["n"])
        for n in range(self.samples):
            family.add_metric([str(n)], n)
        return [family]


@pytest.mark.parametrize("accept", ["", "*/*", "application/openmetrics-text; version=abc", "text/plain; version=x.y"])
def test_an_accept_header_that_says_nothing_gets_the_text_format(accept):
    body, content_type = asyncio.run(exposition(CollectorRegistry(), accept))
    assert (body, content_type) == (b"", "text/plain; version=0.0.4; charset=utf-8")


@pytest.mark.parametrize("samples", [0, 1, SAMPLES_A_TURN, SAMPLES_A_TURN + 1, 3 * SAMPLES_A_TURN])
@pytest.mark.parametrize(("accept", "whole"), [("", generate_latest), (OPENMETRICS, generate_openmetrics)])
def test_a_family_in_pieces_reads_as_one(samples, accept, whole):
    registry = CollectorRegistry()
    registry.register(Large(samples))
    assert asyncio.run(exposition(registry, accept))[0] == whole(registry)


def test_families_whose_samples_the_text_format_moves_stay_whole():
    registry = CollectorRegistry()
    counter = Counter("calls", "Calls", ["n"], registry=registry)  # its `_created` samples get a family of their own
    for n in range(SAMPLES_A_TURN):
        counter.labels(str(n)).inc()

    class Gauges:
        def collect(self):
            family = GaugeHistogramMetricFamily("g", "G", labels=["n"])
            for n in range(SAMPLES_A_TURN):
                family.add_metric([str(n)], [("+Inf", 1)], 1)
            return [family]

    registry.register(Gauges())
    assert asyncio.run(exposition(registry, ""))[0] == generate_latest(registry)


def test_a_scrape_gives_the_loop_its_turn_between_pieces():
    registry = CollectorRegistry()
    registry.register(Large())

    async def main():
        scrape, turns = asyncio.create_task(exposition(registry, "")), 0
        while not scrape.done():
            turns += 1
            await asyncio.sleep(0)
        return turns

    assert asyncio.run(main()) >= 6
