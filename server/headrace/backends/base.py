"""What the engine asks of an execution backend: two small protocols.

A backend opens a model version once (`LoadedModel`) and makes instances of it. An instance runs one batch at a time,
on whichever thread calls it; the engine never calls `run` of one instance from two threads at once.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from headrace.messages import Buffer, Signature


class InstanceLost(Exception):
    """The instance cannot be used any more: its device is lost, or has no memory left.

    with_others: the others of its backend on the same device (`device_of`) are lost with it, as after an error that
    leaves a CUDA context unusable; they are not tried.
    """

    def __init__(self, message: str = "", *, with_others: bool = False) -> None:
        super().__init__(message)
        self.with_others = with_others


def device_of(instance: Instance) -> object:
    """What stands for the device that an instance is on: its attribute `device`, if there may be several."""
    return getattr(instance, "device", None)


class Instance(Protocol):
    """One executor of a model: its own session, buffers and (for a device) stream. See also `device_of`."""

    def run(
        self,
        inputs: Sequence[Sequence[Buffer]],
        shapes: Sequence[tuple[int, ...]],
        outputs: Sequence[int],
    ) -> Sequence[np.ndarray[Any, Any]]:
        """Runs one batch.

        inputs: for each input of the signature, in its order, the raw little-endian bytes of each request's rows, to
            be laid one after another (BYTES: each element a 4-byte little-endian length, then its bytes).
        shapes: for each input, the whole shape of the batched tensor, batch dimension included.
        outputs: indices into the signature's outputs: which to compute, in this order.

        Returns one C-contiguous array for each index (BYTES: object arrays of `bytes` or `str`; BF16: uint16). They
        may be views of the instance's own buffers and hold good until its next run.
        Any exception means that the batch failed; the engine answers its requests and goes on. InstanceLost means that
        no further batch can run here either: the engine runs its requests elsewhere, closes the instance and has
        another made in its place.
        """
        ...

    def close(self) -> None:
        """Frees what the instance holds. Never called while `run` runs; called on a lost instance too."""
        ...


class LoadedModel(Protocol):
    """A model version opened by a backend. See also `memory_of` and `nodes_of`."""

    @property
    def signature(self) -> Signature:
        """Inputs and outputs as the model file declares them, batch dimension left out.

        `max_batch` is the configured one, or the default where the file's first dimensions are dynamic, else 0.
        """
        ...

    @property
    def platform(self) -> str:
        """What ModelMetadata reports, such as `onnxruntime_onnx`."""
        ...

    @property
    def executors_per_instance(self) -> int:
        """How many times `make_instance` is called for each of the model's `instances`.

        That is the devices that it is on, times the batches that an instance has in flight; on the processor 1.
        """
        ...

    @property
    def inline(self) -> bool:
        """Whether a short batch may run on the event loop: false where a run waits for a device."""
        ...

    def make_instance(self, index: int) -> Instance:
        """A new instance, on the calling thread; may take long (graph optimisation)."""
        ...


@runtime_checkable
class TakesForms(Protocol):
    """A `LoadedModel` that makes use of knowing what its batches will look like."""

    def take_forms(self, forms: Sequence[Sequence[tuple[int, ...]]]) -> None:
        """Told once, before an instance is made: rows have no other dimensions than these, given for each input."""
        ...


_NONE: Final[Mapping[str, int]] = MappingProxyType({})


def memory_of(model: LoadedModel) -> Mapping[str, int]:
    """Bytes of each device's memory, such as that of `cuda:0`, that a model's instances were measured to take.

    That is its attribute `memory`, which may be asked for from any thread, if it has one.
    """
    found: Mapping[str, int] = getattr(model, "memory", _NONE)
    return found


def nodes_of(model: LoadedModel) -> Mapping[str, int]:
    """How many nodes of a model's graph are run by whom: its attribute `nodes`, if it has one."""
    found: Mapping[str, int] = getattr(model, "nodes", _NONE)
    return found


class Backend(Protocol):
    """The entry point that the registry names. Raises ModelLoadError with a reason that an operator can act upon."""

    def load(self, path: Path, *, max_batch: int | None, threads: int, options: Mapping[str, Any]) -> LoadedModel:
        """Opens the version directory `path`.

        max_batch: rows a batch may hold, None to derive it, 0 for no batching. threads: intra-op threads of an
        instance, 0: as many as the backend chooses. options: the backend's own, from model.toml; an unknown one is a
        ModelLoadError.
        """
        ...
