"""The entry point: a version directory with an ONNX file, or with a plan where the operator allows such."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from headrace.backends import device as devices
from headrace.backends.base import InstanceLost
from headrace.backends.device import DeviceError
from headrace.backends.lane_steps import NO_STEPS, refusal
from headrace.backends.tensorrt import api as apis
from headrace.backends.tensorrt import model_files, policy
from headrace.backends.tensorrt import options as choices
from headrace.backends.tensorrt.builder import load_plugins
from headrace.backends.tensorrt.cache import EngineCache, default_directory
from headrace.backends.tensorrt.engine import Engine
from headrace.backends.tensorrt.executor import Executor
from headrace.backends.tensorrt.layout import lay_out
from headrace.backends.tensorrt.plans import Plans
from headrace.clock import monotonic_ns
from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.backends.device import Device
    from headrace.backends.lane_steps import LaneSteps
    from headrace.backends.tensorrt.api import Api
    from headrace.backends.tensorrt.engine import Face
    from headrace.backends.tensorrt.layout import Layout
    from headrace.backends.tensorrt.options import Options


class TensorRtBackend:
    """See `backends.base.Backend`. find, open_device: where TensorRT and devices come from. clock: in ns."""

    def __init__(
        self,
        find: Callable[[], Api] = apis.find,
        open_device: Callable[[int], Device] = devices.open_device,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], int] = monotonic_ns,
    ) -> None:
        self._find = find
        self._open_device = open_device
        self._environ = environ
        self._clock = clock

    def load(self, path: Path, *, max_batch: int | None, threads: int, options: Mapping[str, Any]) -> TensorRtModel:
        """See `backends.base.Backend`. Takes minutes where an engine is built. threads: of no meaning here."""
        chosen = choices.read(options)
        file = _model_file(path, chosen)
        api = self._find()
        targets = [self._open_device(index) for index in chosen.devices]
        load_plugins(api, chosen.plugins)
        label = f"{path.parent.name} {path.name}"
        placed = []
        try:
            with ExitStack() as opened:
                engine_on = self._source(api, file, max_batch, chosen, label, opened)
                for device in targets:
                    engine = engine_on(device)
                    face = engine.face()
                    placed.append(_Placed(engine, face, lay_out(engine, face, max_batch, chosen.batch_buckets)))
        except (InstanceLost, DeviceError) as error:
            raise ModelLoadError(f"{file} cannot be loaded onto {_name(device)}: {error}") from error
        return TensorRtModel(placed, chosen, label)

    def _source(
        self, api: Api, file: Path, max_batch: int | None, chosen: Options, label: str, opened: ExitStack
    ) -> Callable[[Device], Engine]:
        """What makes the engine of a device."""
        if file.suffix in choices.PLAN_SUFFIXES:
            plan = _read_plan(file)
            return lambda device: Engine(api, device, plan, label)
        files = model_files.read(file)
        settings = policy.settings()
        cache = None
        if settings.engine_cache_bytes:
            directory = Path(settings.engine_cache) if settings.engine_cache else default_directory(self._environ)
            cache = opened.enter_context(EngineCache(directory, settings.engine_cache_bytes))
        return Plans(api, files, max_batch, chosen, cache, label, self._clock).engine


@dataclass(frozen=True, slots=True)
class _Placed:
    """A model on a device."""

    engine: Engine
    face: Face
    layout: Layout


class TensorRtModel:
    """See `backends.base.LoadedModel`. placed: the model on each of its devices."""

    platform = "tensorrt_plan"
    inline = False

    def __init__(self, placed: Sequence[_Placed], chosen: Options, label: str) -> None:
        self.executors_per_instance = len(placed) * chosen.in_flight
        self.signature = placed[0].layout.signature
        self._placed = placed
        self._graphs = chosen.cuda_graphs
        self._busy_wait = chosen.busy_wait
        self._label = label
        self._steps = NO_STEPS
        self._executors: WeakSet[Executor] = WeakSet()
        self._lock = Lock()  # of the set
        self.nodes: dict[str, int] = {}  # all are TensorRT's

    def __repr__(self) -> str:
        return f"<TensorRtModel {self._label} on {len(self._placed)} devices, {len(self._executors)} executors>"

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of each device's memory, such as `cuda:0`: its engine's, about, and its executors'. For any thread."""
        taken = {_name(placed.engine.device): placed.engine.nbytes for placed in self._placed}
        with self._lock:
            executors = list(self._executors)
        for executor in executors:
            taken[_name(executor.device)] += executor.nbytes
        return taken

    def take_steps(self, steps: LaneSteps) -> str:
        """See `backends.lane_steps.TakesSteps`."""
        if not all(placed.layout.buckets for placed in self._placed):
            return "not all dimensions of the model are fixed"
        why = refusal([placed.engine.device for placed in self._placed], steps)
        if not why:
            self._steps = steps
        return why

    def make_instance(self, index: int) -> Executor:
        """See `backends.base.LoadedModel`: one executor, on each device in turn."""
        placed = self._placed[index % len(self._placed)]
        try:
            executor = Executor(
                placed.engine,
                placed.face,
                placed.layout,
                graphs=self._graphs,
                steps=self._steps,
                busy_wait=self._busy_wait,
            )
        except (InstanceLost, DeviceError) as error:
            raise ModelLoadError(
                f"{self._label} gets no further instance on {_name(placed.engine.device)}: {error}"
            ) from error
        with self._lock:
            self._executors.add(executor)
        return executor


def _name(device: Device) -> str:
    return f"{device.kind}:{device.index}"


def _model_file(path: Path, chosen: Options) -> Path:
    """The file to load. Raises ModelLoadError if there is none, or it is a plan and those are not allowed."""
    file = path / chosen.file
    plan = path / choices.PLAN_FILE
    if chosen.file == choices.MODEL_FILE and not file.exists() and plan.exists():
        file = plan
    if file.is_dir():  # a model of several files
        file /= choices.MODEL_FILE
    if not file.is_file():
        raise ModelLoadError(f"there is no {file}")
    if file.suffix in choices.PLAN_SUFFIXES and not policy.settings().allow_plan_files:
        raise ModelLoadError(
            f"{file} is a plan, built elsewhere: whoever has made it runs what he likes as this server. Bring the ONNX "
            "file, from which the server builds its own, or set tensorrt.allow_plan_files where all plans are trusted"
        )
    return file


def _read_plan(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ModelLoadError(f"{file} cannot be read: {error.strerror or error}") from error
