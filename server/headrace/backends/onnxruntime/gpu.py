"""A model that ONNX Runtime runs on GPUs: what the CUDA and the TensorRT backend share.

An instance is on each of the model's `devices`; there it has one session, with one stream that it computes in, and
`in_flight` batches. What was asked for is what runs: a session without its provider, or with too much of the graph on
the processor, is a failed load.
"""

from __future__ import annotations

import contextlib
import io
import logging
from functools import cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from headrace.backends.base import InstanceLost
from headrace.backends.device import DeviceError, open_device
from headrace.backends.footprint import label_of, ledger_of
from headrace.backends.lane_steps import NO_STEPS, refusal
from headrace.backends.onnxruntime.bound import BoundInstance, NamedInstance, fixed_form, lane_bytes
from headrace.backends.onnxruntime.executor import Executor
from headrace.backends.onnxruntime.flexible import FlexibleInstance, find_forms
from headrace.backends.onnxruntime.gpu_options import batch_buckets, graphs_asked_for
from headrace.backends.onnxruntime.placement import (
    CPU,
    RECORD,
    check_placement,
    check_providers,
    session_placement,
    unrecordable,
)
from headrace.backends.onnxruntime.sessions import log_through_python, open_session, session_options
from headrace.backends.onnxruntime.signature import bindable, file_signature, writable
from headrace.backends.onnxruntime.weights import read_weights
from headrace.errors import ModelLoadError, let_go

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from headrace.backends.base import Instance
    from headrace.backends.device import Device
    from headrace.backends.footprint import Share
    from headrace.backends.lane_steps import LaneSteps
    from headrace.backends.onnxruntime.bound import Form, Recorder
    from headrace.backends.onnxruntime.gpu_options import GpuOptions
    from headrace.backends.onnxruntime.placement import Placement
    from headrace.messages import Signature

    Providers = Callable[[Device, int], Sequence[tuple[str, dict[str, str]]]]
    """From a device and the handle of a stream to the providers of a session, the first being what is asked for."""
    Shape = tuple[int, ...]

log = logging.getLogger(__name__)

_ENTRIES = {
    RECORD: "1",
    # weights are as large as they are: not rounded up by the arena, whose limit is then one of what runs take
    "session.use_device_allocator_for_initializers": "1",
}
_NO_CPU = {"session.disable_cpu_ep_fallback": "1"}
_NOT_BOUND = "not all dimensions of the model are fixed, or it has texts, or an output that is one of its inputs"
_NO_FORMS = (
    "not all dimensions of the model are fixed, or in buckets and without [preprocess], or it has texts, or an output "
    "that is one of its inputs"
)


class GpuModel:
    """A model file whose signature has been read. Raises ModelLoadError.

    provider: the one that must be there. providers: made for each session, from the signature and the batch buckets.
    more_bytes: that the provider takes besides weights and buffers, at most. open_device, open_session: for tests.
    """

    platform = "onnxruntime_onnx"
    inline = False

    def __init__(
        self,
        file: Path,
        max_batch: int | None,
        threads: int,
        options: GpuOptions,
        provider: str,
        providers: Callable[[Signature, Sequence[int]], Providers],
        *,
        more_bytes: int = 0,
        open_device: Callable[[int], Device] = open_device,
        open_session: Callable[..., Any] = open_session,
        available: Callable[[], Sequence[str]] = ort.get_available_providers,
    ) -> None:
        _check_available(provider, available())
        self._file = file
        self._threads = threads
        self._options = options
        self._provider = provider
        self._open_session = open_session
        self._devices = [open_device(index) for index in options.devices]
        if max_batch is None and options.batch_buckets:
            max_batch = options.batch_buckets[-1]
        log_through_python()
        self.signature = file_signature(file, session_options(file, threads, options), max_batch)
        self._buckets = batch_buckets(self.signature.max_batch, options.batch_buckets)
        self._bindable = bindable(self.signature)
        self._told: Sequence[Sequence[Shape]] = ()
        self._forms: Sequence[Form] = [fixed_form(self.signature)] if self._bindable else ()
        self._graphs_asked = graphs_asked_for(options)
        self._graphs = bool(self._graphs_asked) and self._bindable
        self._graphs_tried = self._graphs_asked is True  # there is no other way to try
        self._providers = providers(self.signature, self._buckets)
        self._expected = self._expected_bytes(more_bytes)
        self._steps = NO_STEPS
        self._groups: dict[int, _Group] = {}
        self._lock = Lock()
        self.nodes: Mapping[str, int] = {}
        self._placement: Placement | None = None

    def __repr__(self) -> str:
        devices = ", ".join(map(label_of, self._devices))
        return f"<GpuModel {self._file} by {self._provider} on {devices}, {len(self._groups)} sessions>"

    @property
    def executors_per_instance(self) -> int:
        """See `backends.base.LoadedModel`."""
        return len(self._devices) * self._options.in_flight

    @property
    def memory(self) -> Mapping[str, int]:
        """See `backends.base.memory_of`."""
        with self._lock:
            taken = {label_of(device): 0 for device in self._devices}
            for group in self._groups.values():
                taken[label_of(group.executor.device)] += group.share.taken
        return taken

    def take_steps(self, steps: LaneSteps) -> str:
        """See `backends.lane_steps.TakesSteps`."""
        if not self._bindable:
            return _NOT_BOUND
        why = refusal(self._devices, steps)
        if not why:
            self._steps = steps
        return why

    def take_forms(self, forms: Sequence[Sequence[Shape]]) -> None:
        """See `backends.base.TakesForms`. They matter where graphs are asked for."""
        if self._graphs_asked is True and writable(self.signature) and not self._bindable:
            self._told = forms
            self._graphs = True

    def make_instance(self, index: int) -> Instance:
        """See `backends.base.LoadedModel`. Those of one session follow one another."""
        if self._graphs_asked is True and not self._graphs:
            raise ModelLoadError(f"cuda_graphs = true, but {_NO_FORMS}")
        try:
            made = self._try(index)
        except ModelLoadError as error:
            if not self._graphs or self._graphs_tried:
                raise
            self._graphs = False
            made = self._try(index)
            log.warning("%s runs without CUDA graphs, which could not be recorded: %s", self._file, str(error))
        self._graphs_tried = True
        return made

    def _try(self, index: int) -> Instance:
        at = index // self._options.in_flight
        device = self._devices[at % len(self._devices)]
        try:
            return self._make(at, device)
        except (InstanceLost, DeviceError) as error:
            let_go(error)
            raise ModelLoadError(f"{label_of(device)} ({device.name}): {error}") from error
        except Exception as error:
            let_go(error)
            raise

    def _make(self, at: int, device: Device) -> Instance:
        group = self._group(at, device)
        try:
            instance = self._join(group, device)
        except BaseException:
            group.leave()
            raise
        if group.users == self._options.in_flight:
            group.share.settle()
        return instance

    def _join(self, group: _Group, device: Device) -> Instance:
        """One more batch in flight of a session."""
        with ledger_of(device).measured(device, group.share):
            forms = self._known_forms(group.executor)
            if not forms:
                texts = any(s.datatype == "BYTES" for s in (*self.signature.inputs, *self.signature.outputs))
                kind = NamedInstance if texts else FlexibleInstance
                return kind(group.executor, self.signature, self._options, group.leave)
            return BoundInstance(
                group.executor,
                self.signature,
                forms,
                self._buckets,
                self._options,
                group.leave,
                self._steps,
                record=self._recorder(group.executor),
            )

    def _known_forms(self, executor: Executor) -> Sequence[Form]:
        """Those of all rows; none where these have any dimensions. Raises as `find_forms`."""
        if not self._forms and self._told:
            self._forms = find_forms(executor, self.signature, self._options, self._told, self._buckets[-1])
        return self._forms

    def _recorder(self, executor: Executor) -> Recorder | None:
        """What records CUDA graphs of a session, if any. Raises ModelLoadError if they have to be, and cannot.

        Where they are asked for, the processor may have a part in a run that is the same in each, such as to compute
        shapes: a graph shows whether anything goes to and fro.
        """
        if not self._graphs:
            return None
        asked = self._graphs_asked is True
        why = unrecordable(executor.session, self._placement, self._provider, processor=asked)
        if why and asked:
            raise ModelLoadError(f"cuda_graphs = true, but {why}")
        if why:
            log.info("%s runs without CUDA graphs: %s", self._file, why)
            return None
        on_processor = self._placement is not None and CPU in self._placement.nodes
        return partial(executor.record, closed=on_processor or bool(self._told))

    def _group(self, at: int, device: Device) -> _Group:
        """The session of that number, joined by one more batch in flight; a new one if there is none that works."""
        with self._lock:
            group = self._groups.get(at)
            if group is not None and not group.executor.lost:
                group.users += 1
                return group
        ledger = ledger_of(device)
        limit = self._options.memory_limit_bytes
        share = ledger.admit(
            device,
            f"a session of {self._file}",
            self._expected,
            self._options.headroom_bytes,
            allowed=self._expected + limit if limit else 0,
        )
        try:
            with ledger.measured(device, share):
                executor = Executor(device, lambda stream: self._open(device, stream))
        except BaseException:
            ledger.release(share)
            raise
        made = _Group(executor, share, self._lock, lambda: self._forget(at, made))
        with self._lock:
            self._groups[at] = made
        return made

    def _open(self, device: Device, stream: int) -> Any:  # noqa: ANN401  -- ONNX Runtime is not typed
        """A session that runs where it is to. Raises ModelLoadError."""
        options = self._options
        providers = self._providers(device, stream)
        _find_libraries()
        if options.max_cpu_nodes:
            session = self._open_session(self._file, self._threads, options, [*providers, CPU], _ENTRIES)
        else:  # ONNX Runtime, too, is to refuse; then the processor's provider must not be named
            session = self._open_session(self._file, self._threads, options, providers, _ENTRIES | _NO_CPU)
        check_providers(session.get_providers(), [name for name, _ in providers])
        placement = self._placement = session_placement(session)
        if placement is None:
            log.warning("%s: this version of ONNX Runtime does not tell which nodes run where", self._file)
        else:
            check_placement(placement, self._provider, options.max_cpu_nodes)
            log.info("%s on %s: %s", self._file, label_of(device), placement)
            self.nodes = placement.counts
        return session

    def _forget(self, at: int, group: _Group) -> None:
        """Frees a session that no batch uses."""
        if self._groups.get(at) is group:
            del self._groups[at]

    def _expected_bytes(self, more: int) -> int:
        """What a session with its batches takes of a device before it runs."""
        lanes = 0
        if self._forms:
            lanes = self._options.in_flight * sum(map(sum, lane_bytes(self.signature, self._forms, self._buckets[-1])))
        return read_weights(self._file).nbytes + lanes + more


class _Group:
    """A session and the batches that it has in flight. lock: of the model. forget: called under it, at the end."""

    def __init__(self, executor: Executor, share: Share, lock: Lock, forget: Callable[[], None]) -> None:
        self.executor = executor
        self.share = share
        self.users = 1
        self._lock = lock
        self._forget = forget

    def leave(self) -> None:
        """One of its batches is no more; with the last one the session goes."""
        with self._lock:
            self.users -= 1
            if self.users:
                return
            self._forget()
        device = self.executor.device
        with contextlib.suppress(InstanceLost):
            device.use()
        self.executor.close()
        ledger_of(device).release(self.share)


def _check_available(provider: str, available: Sequence[str]) -> None:
    if provider not in available:
        raise ModelLoadError(
            f"onnxruntime {ort.__version__} was built without {provider}: `pip uninstall onnxruntime`, then "
            "`pip install onnxruntime-gpu[cuda,cudnn] nvidia-cublas cuda-bindings`; both install the same module"
        )


@cache
def _find_libraries() -> None:
    """Loads CUDA's libraries from NVIDIA's packages: ONNX Runtime does not find them by itself (1.21 and later)."""
    preload = getattr(ort, "preload_dlls", None)
    if preload is None:
        return
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            preload()
    except Exception as error:
        log.warning("CUDA's libraries could not be loaded beforehand: %s", error)
    for line in said.getvalue().splitlines():
        log.info("onnxruntime: %s", line)
