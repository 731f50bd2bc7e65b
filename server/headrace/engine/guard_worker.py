"""Runs sampled requests on the reference, on a thread of its own, within a share of a core.

Nothing waits for it: what comes while it rests waits in a bounded queue, and what finds no place there is skipped and
counted. The thread has no lower priority than others: it would then keep the interpreter's lock for as long as
whatever else runs on its processor, and the event loop would wait for it.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.backends.base import InstanceLost
from headrace.datatypes import DATATYPES
from headrace.drift.sampler import Budget, RowCost, choose_rows
from headrace.engine.drift_rows import LazyRows
from headrace.engine.worker import THREAD_NAME
from headrace.guard.comparison import compare
from headrace.guard.record import Record
from headrace.pipeline import bytes_tensor
from headrace.pipeline.agreement import from_bf16

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from headrace.clock import Clock
    from headrace.engine.trusted import Trusted
    from headrace.guard.evidence import Finding
    from headrace.guard.settings import GuardSettings
    from headrace.messages import Buffer, Signature, Template, TensorSpec

    Array = np.ndarray[Any, Any]
    Dims = tuple[int, ...]

logger = logging.getLogger(__name__)

MAX_WAITING = 1024
"""Requests that wait at most."""
MAX_BYTES = 16 << 20
"""Octets of tensors that wait at most."""
MAX_ROWS = 8
"""Rows of one request that are compared: a random sample of more."""
BATCH_ROWS = 64
"""Rows that run together at most."""
_LONGEST_NS = 5_000_000
"""Processor time of one run, as far as the cost of a row is known: what a live request may find a core taken for."""
_GATHER_S = 1.0
"""How long the first that comes waits for others, to be run with them: fewer runs take less of the processor, and each
takes the interpreter's lock from the event loop many times. Not so long if half of what may wait has come."""
SKIPS = ("repeated", "busy", "large", "output", "shared_memory", "blind")
"""Why a sampled request is not compared. repeated: one with the same inputs was. busy: too many wait already, to keep
`cpu_budget`. large: it has more bytes than may wait. output: it has not asked for the output that decides.
shared_memory: its inputs are where its client may change them at any time. blind: the reference is lost."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A request that is to be compared, copied. parts: of each input its rows; output: those of the one that decides.

    dims: of a row of that output. shapes: of each input, the dimensions of the request's own rows; None: left out.
    """

    template: Template
    rows: int
    parts: tuple[bytes, ...]
    shapes: tuple[Dims | None, ...]
    output: bytes
    dims: Dims
    nbytes: int


class GuardWorker:
    """The thread of one guarded version. `room` and `offer` are for the event loop.

    signature: as the model takes it. output: the place in it of the output that decides. proved: called on the thread
    when a limit is proved not to be kept. clock, cpu_clock: nanoseconds, monotonic and of the calling thread's
    processor time. seed: of the choice of rows.
    """

    def __init__(
        self,
        settings: GuardSettings,
        trusted: Trusted,
        signature: Signature,
        share: float,
        proved: Callable[[Finding], None],
        clock: Clock,
        cpu_clock: Clock,
        seed: int | None = None,
    ) -> None:
        self.settings = settings
        self.failed = 0
        self.blind = False
        self.skipped: Counter[str] = Counter()
        self._trusted = trusted
        self._signature = signature
        names = [spec.name for spec in signature.outputs]
        self.output = names.index(settings.output)
        self._proved = proved
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._budget = Budget(share, clock())
        self._cost = RowCost()
        self._random = np.random.default_rng(seed)
        self._key = secrets.token_bytes(16)  # of digests: so that nobody can make two inputs that share one
        self._record = Record(settings)
        self.snapshot = self._record.snapshot()
        self._queue: SimpleQueue[Sampled | None] = SimpleQueue()
        self._in = self._bytes_in = 0  # of the event loop
        self._out = self._bytes_out = 0  # of the worker
        self._stop = threading.Event()
        self._enough = threading.Event()  # to wait for no more
        self._thread: threading.Thread | None = None
        self._last_error = ""

    def __repr__(self) -> str:
        state = "blind" if self.blind else "watching"
        return f"<GuardWorker {state}: {self._in - self._out} requests waiting, {self._budget!r}, {self._record!r}>"

    @property
    def cpu_ns(self) -> int:
        """Processor time that the thread has spent."""
        return self._budget.spent_ns

    # --- on the event loop --------------------------------------------------------------------------------------------

    def room(self, nbytes: int) -> bool:
        """Whether a request of so many bytes may be offered. If not, it is counted as skipped."""
        if self.blind:
            self.skipped["blind"] += 1
        elif nbytes > MAX_BYTES:
            self.skipped["large"] += 1
        elif self._in - self._out >= MAX_WAITING or self._bytes_in - self._bytes_out + nbytes > MAX_BYTES:
            self.skipped["busy"] += 1
        else:
            return True
        return False

    def offer(self, sampled: Sampled) -> None:
        """A request for which there is room. Never waits."""
        self._in += 1
        self._bytes_in += sampled.nbytes
        self._queue.put(sampled)
        half = self._in - self._out >= MAX_WAITING // 2 or self._bytes_in - self._bytes_out >= MAX_BYTES // 2
        if half and not self._enough.is_set():
            self._enough.set()

    def begin_anew(self) -> None:
        """Forgets what was observed."""
        self._record = Record(self.settings)
        self.snapshot = self._record.snapshot()

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name=f"{THREAD_NAME}-guard", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread once it has run what it runs now, and frees the reference there. Does not wait for it."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._enough.set()
        self._queue.put(None)
        if self._thread is None:
            self._trusted.close()

    def join(self, timeout_s: float) -> None:
        """Waits for the end of the thread."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    # --- on the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stop.is_set() and (first := self._queue.get()) is not None:
                self._enough.wait(_GATHER_S)
                self._enough.clear()
                waiting = [first, *self._waiting()]
                del first  # or its tensors would be kept until the next one comes
                self._compare_all(waiting, self._stop.wait)
        finally:
            self._trusted.close()

    def run_waiting(self) -> None:
        """What the thread would do until nothing waits, without a rest: for tests."""
        self._compare_all(self._waiting(), lambda _: False)

    def _waiting(self) -> list[Sampled]:
        found = []
        try:
            while (one := self._queue.get_nowait()) is not None:
                found.append(one)
        except Empty:
            pass
        return found

    def _compare_all(self, waiting: list[Sampled], rest: Callable[[float], bool]) -> None:
        """In batches of requests that may share one. rest: for so many seconds; True: the end has come."""
        looks: dict[object, int] = {}
        waiting.sort(key=lambda one: looks.setdefault(_look(one), len(looks)))
        while waiting and not self.blind and not self._stop.is_set():
            begun = self._cpu_clock()
            most = max(self._cost.rows(_LONGEST_NS, BATCH_ROWS), 1)
            batch = self._take(waiting, most)
            rows, record = 0, self._record
            try:
                new = [one for one in batch if record.distinct.new(self._digest(one))]
                self.skipped["repeated"] += len(batch) - len(new)
                cut = [self._cut(one, min(MAX_ROWS, most)) for one in new]
                rows = sum(one.rows for one in cut)
                if cut:
                    self._compare(record, cut)
            except InstanceLost as error:
                self.blind = True
                self._failed(len(batch), error)
            except Exception as error:  # a request that surprises must not end the watch over all others
                self._failed(len(batch), error)
            spent = self._cpu_clock() - begun
            if rows:
                self._cost.learn(rows, spent)
            self._budget.spend(spent)
            self._out += len(batch)
            self._bytes_out += sum(one.nbytes for one in batch)
            del batch
            now = self._clock()
            if self._budget.available(now) <= 0 and rest(self._budget.rest_ns(now) / 1e9):
                return

    def _take(self, waiting: list[Sampled], most: int) -> list[Sampled]:
        """Takes out the first that wait and may share a batch of at most so many rows; one at least."""
        count = rows = 0
        for one in waiting:
            more = min(one.rows, MAX_ROWS, most)
            if count and (_look(one) != _look(waiting[0]) or rows + more > min(most, self._trusted.max_batch)):
                break
            count += 1
            rows += more
        batch = waiting[:count]
        del waiting[:count]
        return batch

    def _digest(self, one: Sampled) -> bytes:
        """Of its inputs, 128 bits."""
        digest = blake2b(repr(one.shapes).encode(), digest_size=16, key=self._key)
        for part in one.parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.digest()

    def _cut(self, one: Sampled, most: int) -> Sampled:
        """With a random sample of its rows, if there are more; its bytes are counted as before."""
        if one.rows <= most:
            return one
        chosen = choose_rows(one.rows, most, self._random)
        parts = tuple(
            _rows(spec, part, one.rows, dims, chosen) if dims is not None else part
            for spec, part, dims in zip(self._signature.inputs, one.parts, one.shapes, strict=True)
        )
        output = _rows(self._signature.outputs[self.output], one.output, one.rows, one.dims, chosen)
        return Sampled(one.template, most, parts, one.shapes, output, one.dims, one.nbytes)

    def _compare(self, record: Record, batch: Sequence[Sampled]) -> None:
        template, spec = batch[0].template, self._signature.outputs[self.output]
        counts = [one.rows for one in batch]
        lead = (sum(counts),) if self._signature.max_batch else ()
        inputs = [[one.parts[at] for one in batch] for at in range(len(self._signature.inputs))]
        members = [(one.template.fit, one.rows) for one in batch if one.template.fit is not None]
        ran = self._trusted.run(inputs, [(*lead, *dims) for dims in template.shapes], members, self.output)
        expected = ran if lead else ran[None]
        finding = None
        if members:  # of as many lengths as there are requests, once they are cut back to their own
            starts = np.cumsum([0, *counts])
            for one, start, stop in zip(batch, starts, starts[1:], strict=False):
                wanted = self._own(one, _bytes(spec, expected[start:stop]), expected.shape[1:])
                found = self._own(one, one.output, one.dims)
                finding = self._count(record, found, wanted, [one.rows]) or finding
        else:
            found = _array(spec, b"".join([one.output for one in batch]), sum(counts), batch[0].dims)
            finding = self._count(record, found, expected, counts)
        if record is self._record:  # or it has begun anew meanwhile
            self.snapshot = record.snapshot()
            if finding is not None:
                self._proved(finding)

    def _count(self, record: Record, found: Array, expected: Array, counts: Sequence[int]) -> Finding | None:
        spec = self._signature.outputs[self.output]
        return record.add(compare(self.settings, _numbers(spec, found), _numbers(spec, expected)), counts)

    def _own(self, one: Sampled, data: bytes, dims: Dims) -> Array:
        """The output of a request whose rows were padded, without what belongs to the padding."""
        buckets, fit = self._trusted.buckets, one.template.fit
        assert buckets is not None
        assert fit is not None
        shape = (one.rows, *dims) if self._signature.max_batch else dims
        (kept,), (shape,) = buckets.crop(_TAKE, fit, [self.output]).encode(b"", [data], (shape,))
        own = shape[1:] if self._signature.max_batch else shape
        return _array(self._signature.outputs[self.output], kept, one.rows, own)

    def _failed(self, requests: int, error: Exception) -> None:
        self.failed += requests
        if self.blind:
            logger.error("a guard has lost its reference and sees no more: %s", error)
        elif str(error) != self._last_error:
            logger.warning("the reference of a guard could not run a request", exc_info=error)
        self._last_error = str(error)


def _look(one: Sampled) -> Hashable:
    """Those of one look may share a batch."""
    return one.dims, one.template.key


class _Take:
    """A `messages.ReplyWriter` that writes nothing: what it is given is what there is."""

    def encode(
        self, id_field: bytes, raw: Sequence[Buffer], shapes: tuple[Dims, ...], parameters: bytes = b"", /
    ) -> tuple[Sequence[Buffer], tuple[Dims, ...]]:
        return raw, shapes

    def opening(self, shapes: tuple[Dims, ...], /) -> None:
        return None


_TAKE = _Take()


def _rows(spec: TensorSpec, part: Buffer, rows: int, dims: Dims, chosen: Array) -> bytes:
    """Some rows of a tensor."""
    return _bytes(spec, LazyRows(spec, [part], [rows], dims)[chosen])


def _bytes(spec: TensorSpec, array: Array) -> bytes:
    return array.tobytes() if DATATYPES[spec.datatype].itemsize else bytes_tensor.encode(array)


def _array(spec: TensorSpec, data: Buffer, rows: int, dims: Dims) -> Array:
    return LazyRows(spec, [data], [rows], dims)[:rows]


def _numbers(spec: TensorSpec, array: Array) -> Array:
    """BF16 as FP32; text as bytes."""
    if spec.datatype == "BF16":
        return from_bf16(array)
    if spec.datatype == "BYTES":
        elements = np.empty(array.size, object)
        elements[:] = [one.encode() if isinstance(one, str) else one for one in array.ravel().tolist()]
        return elements.reshape(array.shape)
    return array
