"""A backend without a model: a function in the place of the network, and latency as it pleases the test."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from headrace.backends.base import InstanceLost
from headrace.datatypes import DATATYPES
from headrace.errors import ModelLoadError
from headrace.messages import Signature, TensorSpec
from headrace.pipeline import bytes_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from headrace.messages import Buffer

    Array = np.ndarray[Any, Any]
    Compute = Callable[[list[Array]], Sequence[Array]]

_PATIENCE_S = 30.0

ECHO = Signature((TensorSpec("x", "FP32", (2,)),), (TensorSpec("y", "FP32", (2,)),), 8)
"""Two numbers a row in, the same out; at most eight rows."""


def echo(inputs: list[Array]) -> Sequence[Array]:
    """Each output is the input of the same place."""
    return inputs


@dataclass(frozen=True, slots=True)
class Run:
    """One batch as an instance saw it."""

    rows: int
    requests: int
    inputs: list[Array]


class FakeInstance:
    """An `Instance` that computes `compute` and takes as long as `latency_ns` says for so many rows.

    spend: lets the time of a run pass, such as a clock's `advance`; None: a run takes no time. A held instance lets
    no run end before `release`; blocked: set while one waits for that, on a thread. lost: what each run raises, once
    it is set; runs_after_loss: how often it was tried to run when one had raised InstanceLost. device: see
    `backends.base.device_of`.
    """

    def __init__(self, model: FakeModel, index: int) -> None:
        self.model = model
        self.index = index
        self.runs: list[Run] = []
        self.closed = False
        self.lost: InstanceLost | None = None
        self.device = model.device
        self.runs_after_loss = 0
        self._gone = False
        self.blocked = threading.Event()
        self._open = threading.Event()
        self._open.set()
        self._waiting: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        state = "closed" if self.closed else "held" if self.held else "open"
        return f"<FakeInstance {self.index} {state}, {len(self.runs)} runs>"

    @property
    def held(self) -> bool:
        """Whether runs wait for `release`."""
        return not self._open.is_set()

    def hold(self) -> None:
        """From now on a run does not end, until `release`."""
        self._open.clear()

    def release(self) -> None:
        """Lets all end that wait, and all to come."""
        self._open.set()
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()

    def when_released(self, callback: Callable[[], None]) -> None:
        """Calls back at the next `release`: for a worker without a thread to block."""
        self._waiting.append(callback)

    def latency_ns(self, rows: int) -> int:
        """How long a run of so many rows takes."""
        return self.model.latency_ns(rows)

    def run(
        self, inputs: Sequence[Sequence[Buffer]], shapes: Sequence[tuple[int, ...]], outputs: Sequence[int]
    ) -> Sequence[Array]:
        """See `backends.base.Instance`. Raises what the test has asked for, and AssertionError when closed or cut."""
        self.runs_after_loss += self._gone
        try:
            return self._run(inputs, shapes, outputs)
        except InstanceLost:
            self._gone = True
            raise

    def _run(
        self, inputs: Sequence[Sequence[Buffer]], shapes: Sequence[tuple[int, ...]], outputs: Sequence[int]
    ) -> Sequence[Array]:
        assert not self.closed, "run after close"
        if self.held:
            self.blocked.set()
            if not self._open.wait(_PATIENCE_S):
                raise TimeoutError("nobody has released this instance")
            self.blocked.clear()
        specs = self.model.signature.inputs
        arrays = [_array(parts, spec, shape) for parts, spec, shape in zip(inputs, specs, shapes, strict=True)]
        rows = shapes[0][0] if shapes and self.model.signature.max_batch else 1
        self.runs.append(Run(rows, len(inputs[0]) if inputs else 1, arrays))
        if self.model.spend is not None:
            self.model.spend(self.latency_ns(rows))
        if self.lost is not None:
            raise self.lost
        if self.model.failures and (failure := self.model.failures.popleft()) is not None:
            raise failure
        computed = self.model.compute(arrays)
        return [computed[index] for index in outputs]

    def close(self) -> None:
        """See `backends.base.Instance`."""
        assert not self.closed, "closed twice"
        self.closed = True


class FakeModel:
    """A `LoadedModel` of the given signature; its instances share `compute`, `latency_ns`, `spend` and `failures`.

    failures: what the next runs raise, one by one; None: that run succeeds. device: of the next instances.
    """

    platform = "fake"
    executors_per_instance = 1
    inline = True

    def __init__(
        self,
        signature: Signature = ECHO,
        compute: Compute = echo,
        *,
        latency_ns: int | Callable[[int], int] = 0,
        spend: Callable[[int], None] | None = None,
    ) -> None:
        self.signature = signature
        self.compute = compute
        self.latency_ns: Callable[[int], int] = latency_ns if callable(latency_ns) else lambda rows: latency_ns
        self.spend = spend
        self.failures: deque[Exception | None] = deque()
        self.device: int | None = None
        self.instances: list[FakeInstance] = []

    def __repr__(self) -> str:
        return f"<FakeModel {len(self.instances)} instances, {sum(len(i.runs) for i in self.instances)} runs>"

    def make_instance(self, index: int) -> FakeInstance:
        """See `backends.base.LoadedModel`."""
        instance = FakeInstance(self, index)
        self.instances.append(instance)
        return instance

    @property
    def runs(self) -> list[Run]:
        """Of all instances, by instance and then time."""
        return [run for instance in self.instances for run in instance.runs]

    @contextmanager
    def timeless(self) -> Iterator[None]:
        """Runs within take no time: it has passed already."""
        spend, self.spend = self.spend, None
        try:
            yield
        finally:
            self.spend = spend


class FakeBackend:
    """A `Backend` for `model.toml`: `backend = "headrace.testing.backend:FakeBackend"`.

    Options: `refuse` is the reason why loading fails; `crash`, the text of an error that nobody foresaw; `run_error`,
    of one that each run raises; `dims`, the dimensions of a row (-1: any). The model is an echo of FP32, `x` to `y`;
    with `stateful` it takes `before` and gives `after` as well, and both outputs are the sum.

    loaded: all models of all backends, the latest last. latency_ns, spend: see `FakeModel`.
    """

    loaded: ClassVar[list[FakeModel]] = []
    latency_ns: ClassVar[int] = 0
    spend: ClassVar[Callable[[int], None] | None] = None

    def load(self, path: Path, *, max_batch: int | None, threads: int, options: Mapping[str, Any]) -> FakeModel:
        """See `backends.base.Backend`."""
        if "refuse" in options:
            raise ModelLoadError(options["refuse"])
        if "crash" in options:
            raise RuntimeError(options["crash"])
        dims = tuple(options.get("dims", [2]))
        stateful = "stateful" in options
        signature = Signature(
            tuple(TensorSpec(name, "FP32", dims) for name in (("x", "before") if stateful else ("x",))),
            tuple(TensorSpec(name, "FP32", dims) for name in (("y", "after") if stateful else ("y",))),
            8 if max_batch is None else max_batch,
        )

        def compute(inputs: list[Array]) -> Sequence[Array]:
            if "run_error" in options:
                raise ValueError(options["run_error"])
            return [inputs[0] + inputs[1]] * 2 if stateful else inputs

        self.loaded.append(FakeModel(signature, compute, latency_ns=self.latency_ns, spend=type(self).spend))
        return self.loaded[-1]


def _array(parts: Sequence[Buffer], spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    data = b"".join(parts)
    datatype = DATATYPES[spec.datatype]
    if datatype.itemsize:
        return np.frombuffer(data, datatype.numpy).reshape(shape)
    count = int(np.prod(shape, dtype=np.int64))
    return np.array(bytes_tensor.decode(data, count), dtype=object).reshape(shape)
