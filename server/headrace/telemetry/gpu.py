"""What NVML says of the GPUs, under Triton's names; nothing where there is no NVML.

Values are read when somebody scrapes and not otherwise, and never on the event loop: a call takes up to milliseconds,
and longer where the driver has to wake a GPU up first. (NVML: https://docs.nvidia.com/deploy/nvml-api)
"""

from __future__ import annotations

import asyncio
import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.core import GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from prometheus_client import CollectorRegistry

    Beside = Callable[[Callable[[], list[Metric]]], Awaitable[list[Metric]]]
    """Runs a function on another thread."""

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 1.0
"""How long a scrape waits for NVML; one that takes longer goes without."""

LABELS: Final = ("gpu_uuid",)

# NVML: utilization in percent, memory in bytes, power in milliwatts.
_GAUGES: Final[tuple[tuple[str, str, Callable[[Any, Any], float]], ...]] = (
    (
        "nv_gpu_utilization",
        "Share of time in which a kernel ran, 0 to 1",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    (
        "nv_gpu_memory_total_bytes",
        "Memory of the GPU",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
    ),
    (
        "nv_gpu_memory_used_bytes",
        "Memory of the GPU in use, by all processes",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    ),
    (
        "nv_gpu_power_usage",
        "Power that the GPU takes",
        lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
    ),
    (
        "nv_gpu_power_limit",
        "Power that the GPU may take: the limit in force",
        lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3,
    ),
)


class GpuReader:
    """Reads all GPUs that NVML lists. On one thread at a time.

    nvml: how NVML's bindings are got, `pynvml` by default; called at the first reading. Where it raises, or NVML cannot
    be initialised, there are no GPUs from then on.
    """

    def __init__(self, nvml: Callable[[], Any] = lambda: import_module("pynvml")) -> None:
        self._load = nvml
        self._nvml: Any = None
        self._gpus: list[tuple[str, Any]] | None = None
        self._joules: dict[str, float] = {}  # at the first reading
        self._silent: set[tuple[str, str]] = set()

    def __repr__(self) -> str:
        return f"<GpuReader {'not used yet' if self._gpus is None else f'{len(self._gpus)} GPUs'}>"

    def read(self) -> list[Metric]:
        """The families, with a sample for each GPU that tells; none without GPUs. Never raises."""
        if self._gpus is None:
            self._gpus = self._open()
        if not self._gpus:
            return []
        families: list[Metric] = []
        for name, text, value in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=LABELS)
            self._add(gauge, value)
            families.append(gauge)
        energy = UnknownMetricFamily("nv_energy_consumption", "Energy since the first scrape", labels=LABELS)
        # NVML: millijoules since the driver was loaded
        self._add(energy, lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3, since=self._joules)
        families.append(energy)
        return families

    def _open(self) -> list[tuple[str, Any]]:
        try:
            self._nvml = nvml = self._load()
            nvml.nvmlInit()
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            return [(nvml.nvmlDeviceGetUUID(handle), handle) for handle in handles]
        except Exception as error:  # no package, no library, no driver, no permission: all are normal
            logger.debug("no GPU metrics: %r", error)
            return []

    def _add(
        self,
        family: GaugeMetricFamily | UnknownMetricFamily,
        value: Callable[[Any, Any], float],
        since: dict[str, float] | None = None,
    ) -> None:
        """Adds a sample of each GPU that tells. since: what each told the first time, which is taken off."""
        for uuid, handle in self._gpus or ():
            try:
                found = float(value(self._nvml, handle))
            except Exception as error:  # not supported by this GPU, or the GPU is lost
                if (family.name, uuid) not in self._silent:
                    self._silent.add((family.name, uuid))
                    logger.debug("%s does not tell %s: %r", uuid, family.name, error)
            else:
                family.add_metric((uuid,), found - since.setdefault(uuid, found) if since is not None else found)


class GpuMetrics(Collector):
    """Shows in a registry what the last `refresh` has read.

    beside: runs a function on another thread. patience_s: how long a refresh waits for it.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        beside: Beside,
        reader: GpuReader | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._beside = beside
        self._reader = reader or GpuReader()
        self._patience_s = patience_s
        self._reading: asyncio.Future[list[Metric]] | None = None
        self._families: list[Metric] = []
        registry.register(self)

    def __repr__(self) -> str:
        return f"<GpuMetrics {len(self._families)} families>"

    async def refresh(self) -> None:
        """Reads all GPUs anew. What is not read in time is not shown, and no further reading begins meanwhile."""
        if self._reading is None or self._reading.done():  # one that came too late is of no use any more
            self._reading = asyncio.ensure_future(self._beside(self._reader.read))
        done, _ = await asyncio.wait((self._reading,), timeout=self._patience_s)
        self._families = self._reading.result() if done else []

    def describe(self) -> Iterable[Metric]:
        """Nothing: registration shall not look for clashes by collecting."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """What was read last."""
        return self._families
