"""Engines of ONNX files: from the cache, or built."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from headrace.backends.tensorrt import builder
from headrace.backends.tensorrt import key as keys
from headrace.backends.tensorrt.engine import Engine
from headrace.backends.tensorrt.profiles import wanted_max_batch
from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.backends.device import Device
    from headrace.backends.tensorrt.api import Api
    from headrace.backends.tensorrt.cache import EngineCache
    from headrace.backends.tensorrt.model_files import ModelFiles
    from headrace.backends.tensorrt.options import Options

log = logging.getLogger(__name__)


class Plans:
    """The plans of a model file. rows: as configured. label: what the log calls the model. clock: in ns.

    cache: None: each is built anew.
    """

    def __init__(
        self,
        api: Api,
        files: ModelFiles,
        rows: int | None,
        options: Options,
        cache: EngineCache | None,
        label: str,
        clock: Callable[[], int],
    ) -> None:
        self._api = api
        self._files = files
        self._rows = rows
        self._options = options
        self._cache = cache
        self._label = label
        self._clock = clock
        self._plugins = keys.library_digests(options.plugins)

    def __repr__(self) -> str:
        return f"<Plans of {self._files.path}, {self._cache or 'no cache'}>"

    def engine(self, device: Device) -> Engine:
        """An engine on a device, whose weights are the file's. Raises ModelLoadError, `InstanceLost`."""
        device.use()
        if self._cache is None:
            return self._load(device, self._build(b"").plan, fresh=True)
        about = self._about(device)
        with self._cache.building(about, self._label):  # it may be built while we wait
            engine = self._cached(device, about, self._cache)
            if engine is not None:
                return engine
            machine = keys.machine(self._api.version, device)
            built = self._build(self._cache.timings(machine))
            self._cache.store_plan(about, built.plan)
            if built.timings:
                self._cache.store_timings(machine, built.timings)
        return self._load(device, built.plan, fresh=True)

    def _about(self, device: Device) -> dict[str, Any]:
        rows = wanted_max_batch(self._rows, self._options.batch_buckets)
        return keys.about_engine(self._api.version, device, self._files, rows, self._options, self._plugins)

    def _cached(self, device: Device, about: dict[str, Any], cache: EngineCache) -> Engine | None:
        plan = cache.plan(about)
        if plan is None:
            return None
        try:
            return self._load(device, plan, fresh=False)
        except ModelLoadError as error:  # such as of a library that was updated without a new version
            log.warning("%s: the engine in the cache is not used: %s", self._label, error)
            return None

    def _load(self, device: Device, plan: bytes, *, fresh: bool) -> Engine:
        """fresh: the plan was built from this file, not from one of equal structure."""
        options = self._options
        stripped = options.strip_weights
        engine = Engine(self._api, device, plan, self._label, self._files.nbytes if stripped else 0)
        if stripped or (options.refit and not fresh):
            engine.refit(self._files.model, str(self._files.path))
        return engine

    def _build(self, timings: bytes) -> builder.Built:
        return builder.build(self._api, self._files, self._rows, self._options, timings, self._label, self._clock)
