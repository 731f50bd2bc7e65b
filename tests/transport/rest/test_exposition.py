import asyncio

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeHistogramMetricFamily, GaugeMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from headrace.telemetry.metrics import Metrics
from headrace.telemetry.observer import BatchRecord
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


PLAIN = "text/plain; version=0.0.4; charset=utf-8"
TEXT_1 = "text/plain; version=1.0.0; charset=utf-8; escaping=allow-utf-8"
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;"
    "q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (PROMETHEUS, f"{OPENMETRICS}; escaping=allow-utf-8"),
        (f"application/vnd.google.protobuf;q=0.7,{PROMETHEUS}", f"{OPENMETRICS}; escaping=allow-utf-8"),
        (PROMETHEUS.replace("q=0.6", "q=0"), TEXT_1),
        ("application/openmetrics-text", OPENMETRICS),
        ('Application/OpenMetrics-Text; Version="1.0.0"', f"{OPENMETRICS}; escaping=underscores"),
        ("application/openmetrics-text;q=0", PLAIN),
        ("application/openmetrics-text; version=1.0.0; q=0.000, */*", PLAIN),
        ("application/openmetrics-text;q=0.5, text/plain", PLAIN),
        ("text/plain;q=0.5, application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text;q=0.5, text/plain;q=0.5", OPENMETRICS),
        ("application/openmetrics-text; version=9.9.9", PLAIN),
        ("application/openmetrics-text; version=2.0.0, application/openmetrics-text; version=1.0.0; q=0.1",
         f"{OPENMETRICS}; escaping=underscores"),
        ("application/openmetrics-text; q=2", PLAIN),
        ("application/openmetrics-text; q=nan", PLAIN),
        (";,=;q=,", PLAIN),
    ],
)  # fmt: skip
def test_the_answer_is_of_the_weightiest_range_that_is_spoken(accept, content_type):
    assert asyncio.run(exposition(CollectorRegistry(), accept))[1] == content_type


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


@pytest.mark.parametrize(("accept", "whole"), [("", generate_latest), (OPENMETRICS, generate_openmetrics)])
def test_the_metrics_of_models_read_as_by_the_library(accept, whole):
    """Their histograms are written without it; names and counts are such that it matters how."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for name in ("m", 'a"b\\c\nd', "ä"):
        recorder = metrics.model(name, "1", lambda: (3, 4))
        recorder.batch(BatchRecord([0], [10], [20], [1], 30, 40, 50_000, 60_000, 1, "idle", 0))
        recorder.read()
        recorder._request.counts[5] = 1_000_000  # as after a day
        recorder._request.counts[7] = 10**15
        recorder.refused("queue_full", 10**7)
    for _ in range(2):  # with the texts of names and labels made, and kept
        assert asyncio.run(exposition(registry, accept))[0] == whole(registry)


def test_the_loop_has_its_turn_between_models():
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for number in range(20):
        metrics.model(f"m{number}", "1", lambda: (0, 0))

    async def main():
        scrape, turns = asyncio.create_task(exposition(registry, "")), 0
        while not scrape.done():
            turns += 1
            await asyncio.sleep(0)
        return turns

    assert asyncio.run(main()) >= 20 * (5 * 45 + 12 * 24) / SAMPLES_A_TURN / 2
