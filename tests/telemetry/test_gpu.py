"""GPU metrics, with an NVML of the tests' own: two GPUs, of which values can be changed, refused and held up."""

import asyncio
import logging
import threading
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from headrace.engine.background import in_background
from headrace.telemetry.gpu import GpuMetrics, GpuReader
from headrace.testing.loop import VirtualTimeLoop

NAMES = {
    "nv_gpu_utilization",
    "nv_gpu_memory_total_bytes",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_power_usage",
    "nv_gpu_power_limit",
    "nv_energy_consumption",
}


class NotSupported(Exception):
    pass


class Nvml:
    """pynvml's functions and units. refused: (function, index) that raise."""

    def __init__(self, gpus=2):
        self.gpus = gpus
        self.millijoules = [7_000_000, 9_000_000]
        self.refused = set()
        self.threads = set()
        self.readings = 0
        self.initialised = 0

    def nvmlInit(self):  # noqa: N802
        self.initialised += 1

    def nvmlDeviceGetCount(self):  # noqa: N802
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, index):  # noqa: N802
        return f"GPU-{index}"

    def _answer(self, function, index, value):
        self.threads.add(threading.current_thread())
        self.readings += 1
        if (function, index) in self.refused:
            raise NotSupported(function)
        return value

    def nvmlDeviceGetUtilizationRates(self, index):  # noqa: N802
        return self._answer("utilization", index, SimpleNamespace(gpu=25 + index, memory=99))

    def nvmlDeviceGetMemoryInfo(self, index):  # noqa: N802
        return self._answer("memory", index, SimpleNamespace(total=80 << 30, used=index << 30, free=1))

    def nvmlDeviceGetPowerUsage(self, index):  # noqa: N802
        return self._answer("power", index, 310_500)

    def nvmlDeviceGetEnforcedPowerLimit(self, index):  # noqa: N802
        return self._answer("limit", index, 700_000)

    def nvmlDeviceGetTotalEnergyConsumption(self, index):  # noqa: N802
        return self._answer("energy", index, self.millijoules[index])


@pytest.fixture
def nvml():
    return Nvml()


@pytest.fixture
def registry():
    return CollectorRegistry()


def shown(registry):
    """{name: {uuid: value}}"""
    return {
        family.name: {sample.labels["gpu_uuid"]: sample.value for sample in family.samples}
        for family in parse_text(generate_latest(registry).decode())
    }


def scrape(registry, nvml):
    metrics = GpuMetrics(registry, in_background, GpuReader(lambda: nvml))

    def again():
        asyncio.run(metrics.refresh())
        return shown(registry)

    return again


def test_tritons_names_and_units(registry, nvml):
    again = scrape(registry, nvml)
    assert again() == {
        "nv_gpu_utilization": {"GPU-0": 0.25, "GPU-1": 0.26},
        "nv_gpu_memory_total_bytes": {"GPU-0": 80 << 30, "GPU-1": 80 << 30},
        "nv_gpu_memory_used_bytes": {"GPU-0": 0, "GPU-1": 1 << 30},
        "nv_gpu_power_usage": {"GPU-0": 310.5, "GPU-1": 310.5},
        "nv_gpu_power_limit": {"GPU-0": 700, "GPU-1": 700},
        "nv_energy_consumption": {"GPU-0": 0, "GPU-1": 0},
    }


def test_energy_counts_from_the_first_scrape(registry, nvml):
    again = scrape(registry, nvml)
    again()
    nvml.millijoules = [7_001_500, 9_000_000]
    assert again()["nv_energy_consumption"] == {"GPU-0": 1.5, "GPU-1": 0}
    assert nvml.initialised == 1


def test_a_value_that_a_gpu_does_not_tell_is_absent_and_the_rest_is_there(registry, nvml, caplog):
    caplog.set_level(logging.DEBUG)
    nvml.refused = {("energy", 1), ("utilization", 0)}
    again = scrape(registry, nvml)
    for _ in range(3):
        found = again()
    assert found["nv_energy_consumption"] == {"GPU-0": 0}
    assert found["nv_gpu_utilization"] == {"GPU-1": 0.26}
    assert found["nv_gpu_power_usage"] == {"GPU-0": 310.5, "GPU-1": 310.5}
    assert len([r for r in caplog.records if "does not tell" in r.message]) == 2  # once each
    nvml.refused = set()
    assert again()["nv_energy_consumption"] == {"GPU-0": 0, "GPU-1": 0}


class Broken:
    """The package is there, and no library or driver behind it."""

    asked = 0

    def nvmlInit(self):  # noqa: N802
        self.asked += 1
        raise NotSupported("NVML Shared Library Not Found")


def missing():
    raise ModuleNotFoundError("No module named 'pynvml'")


@pytest.mark.parametrize("load", [missing, Broken, lambda: Nvml(gpus=0)])
def test_without_nvml_there_is_nothing_and_nothing_is_said(registry, load, caplog):
    caplog.set_level(logging.INFO)
    metrics = GpuMetrics(registry, in_background, GpuReader(load))
    for _ in range(2):
        asyncio.run(metrics.refresh())
        assert shown(registry) == {}
    assert not caplog.records


def test_nvml_is_asked_once_whether_it_is_there():
    broken = Broken()
    reader = GpuReader(lambda: broken)
    assert reader.read() == reader.read() == []
    assert broken.asked == 1


def test_it_is_read_on_a_scrape_alone_and_beside_the_event_loop(registry, nvml):
    again = scrape(registry, nvml)
    assert shown(registry) == {}
    assert not nvml.readings
    again()
    readings = nvml.readings
    shown(registry)
    assert nvml.readings == readings  # what collects on the loop does not read
    assert threading.main_thread() not in nvml.threads


def test_a_scrape_does_not_wait_for_nvml_for_long_and_asks_it_once_at_a_time(registry):
    loop = VirtualTimeLoop()
    held, calls = loop.create_future(), 0

    async def beside(read):
        nonlocal calls
        calls += 1
        if calls == 2:
            await held
        return read()

    async def main():
        metrics = GpuMetrics(registry, beside, GpuReader(Nvml), patience_s=1)
        await metrics.refresh()
        assert set(shown(registry)) == NAMES
        for _ in range(2):
            before = loop.time()
            await metrics.refresh()
            assert loop.time() == pytest.approx(before + 1)
            assert shown(registry) == {}  # rather than what was read before
        assert calls == 2
        held.set_result(None)
        await asyncio.sleep(1)
        await metrics.refresh()
        assert calls == 3  # what came too late is not shown
        assert set(shown(registry)) == NAMES

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
