"""The sequences of a stateful model: which are active, what each runs next, and what it has to wait for.

Source: Triton's sequence batcher. A sequence goes from a request with the START flag to one with END; its requests run
one after another, since each needs the state that the one before it has left. A deterministic core without a clock: the
shell tells it what has happened, and `decide` says what follows from it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.errors import DeadlineUnreachable, HeadraceError, InvalidRequest, QueueFull, ShuttingDown, StateFull
from headrace.messages import SequenceFlags, State
from headrace.pipeline.admission import expired
from headrace.pipeline.queue import is_over

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.messages import InferRequest, SequenceId
    from headrace.pipeline.admission import QueueLimits

Dropped = tuple["InferRequest", HeadraceError]

_NONE = SequenceFlags(0)


@dataclass(frozen=True, slots=True)
class SequenceLimits:
    """How many sequences there may be, and what they may hold.

    active: sequences at a time; others wait until one of them is over. idle_ns: after so long without a request a
    sequence is over. state_bytes: what the states of all active sequences may take; initial_bytes: of one that begins.
    """

    active: int
    idle_ns: int
    state_bytes: int
    initial_bytes: int


class Sequence:
    """One sequence, or several of the same id one after another.

    waiting: its requests that have not begun, in order. at_work: the one that runs or is about to. state: what the last
    run has left, None for the initial one; the shell's, and opaque here. open: further requests need no START. begun:
    its first request has been at work, and has not failed.
    """

    __slots__ = ("active", "at_work", "begun", "id", "open", "ready", "state", "state_bytes", "waiting")

    def __init__(self, sequence_id: SequenceId) -> None:
        self.id = sequence_id
        self.waiting: deque[InferRequest] = deque()
        self.at_work: InferRequest | None = None
        self.state: Any = None
        self.state_bytes = 0
        self.open = True
        self.begun = False
        self.active = False
        self.ready = False

    def __repr__(self) -> str:
        state = "active" if self.active else "in the backlog"
        return f"<Sequence {self.id!r} {state}, {len(self.waiting)} wait{', one at work' if self.at_work else ''}>"


@dataclass(slots=True)
class SequenceDecision:
    """take: requests to run now, at most one of each sequence. drop: requests to be answered with an error.

    expired: how many sequences are over because they were idle. wake_at: monotonic ns at which to decide again if
    nothing else happens before; 0: no need.
    """

    take: list[tuple[Sequence, InferRequest]] = field(default_factory=list)
    drop: list[Dropped] = field(default_factory=list)
    expired: int = 0
    wake_at: int = 0


class Sequences:
    """All sequences of one model version.

    requests, nbytes: what waits in them, without the requests at work. active: how many are. held: bytes of state.
    """

    def __init__(self, model: str, limits: SequenceLimits, queue: QueueLimits) -> None:
        self.requests = 0
        self.nbytes = 0
        self.active = 0
        self.held = 0
        self._model = model
        self._limits = limits
        self._queue = queue
        self._by_id: dict[SequenceId, Sequence] = {}
        self._backlog: deque[Sequence] = deque()  # in the order in which they will become active
        self._ready: deque[Sequence] = deque()  # active, with requests and none at work
        self._idle: dict[Sequence, int] = {}  # until when each is waited for, the first one first
        self._next_expiry = 0  # no waiting request expires before; may be too early

    def __repr__(self) -> str:
        return f"<Sequences {self.active} active, {len(self._backlog)} in the backlog, {self.requests} requests wait>"

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._by_id.values())

    @property
    def backlog(self) -> int:
        """Sequences that wait to become active."""
        return len(self._backlog)

    @property
    def wake_at(self) -> int:
        """When to decide again if nothing happens before; 0: no need."""
        idle = next(iter(self._idle.values()), 0)
        return min(idle, self._next_expiry) if idle and self._next_expiry else idle or self._next_expiry

    @property
    def pending(self) -> bool:
        """Whether `decide` would find something to do at once."""
        return bool(self._ready) or (bool(self._backlog) and self._has_room())

    # --- what happens -------------------------------------------------------------------------------------------------

    def admit(
        self,
        request: InferRequest,
        now: int,
        queued: tuple[int, int],
        step_ns: int,
        *,
        draining: bool,
    ) -> HeadraceError | None:
        """Takes a request into its sequence, or says why not. Its `expires` is set.

        queued: requests and bytes that wait elsewhere for this model. step_ns: the time that a run is expected to take.
        """
        flags = request.template.sequence or _NONE
        unfit = self._unfit(request, flags)
        if unfit is not None:
            return unfit
        if draining:
            return ShuttingDown("Server is shutting down and has stopped accepting new requests")
        sequence = self._by_id.get(flags.id)
        if not flags.start and (sequence is None or not sequence.open):
            return self._not_started(flags.id)
        refusal = self._no_room(request, queued, step_ns) or _late(request, now, sequence, step_ns)
        if refusal is not None:
            return refusal
        if sequence is None:
            sequence = self._by_id[flags.id] = Sequence(flags.id)
            self._backlog.append(sequence)
        sequence.open = not flags.end
        sequence.waiting.append(request)
        self.requests += 1
        self.nbytes += request.nbytes
        if request.expires and not 0 < self._next_expiry <= request.expires:
            self._next_expiry = request.expires
        if sequence.active and sequence.at_work is None:
            self._idle.pop(sequence, None)
            self._make_ready(sequence)
        return None

    def done(self, sequence: Sequence, state: Any, nbytes: int, now: int) -> HeadraceError | None:  # noqa: ANN401
        """The request at work has run; `state` of so many bytes is what it has left.

        Returns the error to answer it with if there is no room for that state: the sequence is over then.
        """
        request = sequence.at_work
        assert request is not None
        if (request.template.sequence or _NONE).end:
            self._release(sequence)
            return None
        self.held += nbytes - sequence.state_bytes
        sequence.state, sequence.state_bytes = state, nbytes
        error = None
        if self.held > self._limits.state_bytes:
            error = StateFull(
                f"the states of {self.active} sequences of model '{self._model}' take {self.held} bytes, at most "
                f"{self._limits.state_bytes} may be held: the sequence has ended"
            )
            self._hold_initial(sequence)
            _break_off(sequence)
        self._settle(sequence, now)
        return error

    def failed(self, sequence: Sequence, now: int, *, over: bool = False) -> None:
        """The request at work has not run to its end: the state is as before. over: so is the sequence.

        Without its first request, a sequence has not begun, and what waits for it is dropped in its turn.
        """
        request = sequence.at_work
        assert request is not None
        if over or (request.template.sequence or _NONE).start:
            _break_off(sequence)
        self._settle(sequence, now)

    def cancel(self, request: InferRequest) -> list[InferRequest]:
        """The caller of a request has gone away. It runs all the same, in its turn, for the state that it leaves.

        Returns the requests that will not: those of a sequence that has not begun and that nobody waits for any more.
        """
        waits = request.state is State.WAITING
        request.state = State.ABANDONED
        if not waits:
            return []
        sequence = self._by_id[(request.template.sequence or _NONE).id]
        if sequence.active or any(other.state is not State.ABANDONED for other in sequence.waiting):
            return []
        given_up = list(sequence.waiting)
        self._uncount(given_up)
        sequence.waiting.clear()
        self._forget(sequence)
        return given_up

    def close(self) -> list[InferRequest]:
        """Forgets everything, when nothing is at work; returns the requests that waited."""
        left = [request for sequence in self._by_id.values() for request in sequence.waiting]
        self._uncount(left)
        for sequence in list(self._by_id.values()):
            self._forget(sequence)
        return left

    # --- what follows -------------------------------------------------------------------------------------------------

    def decide(self, now: int, *, draining: bool = False) -> SequenceDecision:
        """Ends sequences that are idle, drops what has expired, and takes the requests whose turn it is."""
        decision = SequenceDecision()
        if 0 < self._next_expiry <= now:
            self._drop_expired(now, decision.drop)
        while self._idle:
            sequence, until = next(iter(self._idle.items()))
            if until > now and not draining:
                break
            decision.expired += until <= now
            self._forget(sequence)
        while True:
            while self._backlog and self._has_room():
                self._activate(self._backlog.popleft())
            if not self._ready:
                break
            self._take(self._ready.popleft(), now, decision)
        decision.wake_at = self.wake_at
        return decision

    def _take(self, sequence: Sequence, now: int, decision: SequenceDecision) -> None:
        """Takes the next request of a sequence that can run."""
        sequence.ready = False
        while sequence.waiting:
            request = sequence.waiting.popleft()
            self._uncount([request])
            if (request.template.sequence or _NONE).start:
                self._hold_initial(sequence)
                sequence.begun = True
            if sequence.begun:
                sequence.at_work = request
                decision.take.append((sequence, request))
                return
            decision.drop.append((request, self._not_started(sequence.id)))
        self._settle(sequence, now)

    def _drop_expired(self, now: int, dropped: list[Dropped]) -> None:
        """Takes out what has expired by `now` and finds the next expiry. What lacks its first request goes with it."""
        self._next_expiry = 0
        for sequence in list(self._by_id.values()):
            if not sequence.waiting:
                continue
            kept: deque[InferRequest] = deque()
            begun = True
            gone: list[InferRequest] = []
            for request in sequence.waiting:
                over = 0 < request.expires <= now
                if over and not is_over(request, now):  # all that a timeout could delay it behind comes after it anyway
                    over, request.expires = False, request.rpc_deadline
                if (request.template.sequence or _NONE).start:
                    begun = not over
                if over or not begun:
                    gone.append(request)
                    dropped.append((request, expired(request, now) if over else self._not_started(sequence.id)))
                    continue
                kept.append(request)
                if request.expires and not 0 < self._next_expiry <= request.expires:
                    self._next_expiry = request.expires
            if gone:
                sequence.waiting = kept
                sequence.open &= begun
                self._uncount(gone)
                if sequence.at_work is None:
                    self._settle(sequence, now)

    # --- where a sequence goes ----------------------------------------------------------------------------------------

    def _settle(self, sequence: Sequence, now: int) -> None:
        """Nothing of the sequence is at work: it is ready, idle, or over."""
        sequence.at_work = None
        if sequence.waiting:
            if sequence.active:
                self._make_ready(sequence)
        elif sequence.open and sequence.active:
            self._idle[sequence] = now + self._limits.idle_ns
        else:
            self._forget(sequence)

    def _release(self, sequence: Sequence) -> None:
        """A sequence has run to its end. Another of the same id begins behind those that have waited longer."""
        sequence.at_work = None
        sequence.begun = False
        if not sequence.waiting:
            self._forget(sequence)
            return
        self._deactivate(sequence)
        self._backlog.append(sequence)

    def _activate(self, sequence: Sequence) -> None:
        sequence.active = True
        self.active += 1
        self._hold_initial(sequence)
        self._make_ready(sequence)

    def _deactivate(self, sequence: Sequence) -> None:
        sequence.active = False
        self.active -= 1
        self.held -= sequence.state_bytes
        sequence.state, sequence.state_bytes = None, 0

    def _forget(self, sequence: Sequence) -> None:
        del self._by_id[sequence.id]
        self._idle.pop(sequence, None)
        if sequence.active:
            self._deactivate(sequence)
        else:
            self._backlog.remove(sequence)
        if sequence.ready:
            self._ready.remove(sequence)

    def _make_ready(self, sequence: Sequence) -> None:
        if not sequence.ready:
            sequence.ready = True
            self._ready.append(sequence)

    def _hold_initial(self, sequence: Sequence) -> None:
        self.held += self._limits.initial_bytes - sequence.state_bytes
        sequence.state, sequence.state_bytes = None, self._limits.initial_bytes

    # --- limits -------------------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        """Whether one more sequence may become active."""
        limits = self._limits
        return self.active < limits.active and self.held + limits.initial_bytes <= limits.state_bytes

    def _unfit(self, request: InferRequest, flags: SequenceFlags) -> InvalidRequest | None:
        if request.template.rows > 1:
            return InvalidRequest(
                f"inference request to model '{self._model}' must specify batch-size 1 due to requirements of sequence "
                f"batcher, got {request.template.rows}"
            )
        if not flags.id:
            return InvalidRequest(
                f"inference request to model '{self._model}' must specify a non-zero or non-empty correlation ID "
                "(parameter 'sequence_id')"
            )
        return None

    def _not_started(self, sequence_id: SequenceId) -> InvalidRequest:
        return InvalidRequest(
            f"inference request for sequence {sequence_id} to model '{self._model}' must specify the START flag on the "
            "first request of the sequence"
        )

    def _no_room(self, request: InferRequest, queued: tuple[int, int], step_ns: int) -> HeadraceError | None:
        limits = self._queue
        requests, nbytes = self.requests + queued[0], self.nbytes + queued[1]
        if requests < limits.max_requests and nbytes + request.nbytes <= limits.max_bytes:
            return None
        if request.nbytes > limits.max_bytes:
            return InvalidRequest(
                f"the request has {request.nbytes} bytes, more than may ever wait for this model: {limits.max_bytes}"
            )
        return QueueFull(
            f"Exceeds maximum queue size: {requests} requests and {nbytes} bytes wait; at most {limits.max_requests} "
            f"requests and {limits.max_bytes} bytes may",
            retry_after_ms=max(step_ns // 1_000_000, 1),
        )

    def _uncount(self, requests: list[InferRequest]) -> None:
        self.requests -= len(requests)
        self.nbytes -= sum([request.nbytes for request in requests])
        if not self.requests:
            self._next_expiry = 0


def _late(request: InferRequest, now: int, sequence: Sequence | None, step_ns: int) -> HeadraceError | None:
    """Why a request cannot make its deadline, whatever else waits for the model; None if it may."""
    expires = request.rpc_deadline if request.template.policy.delays else request.expires
    if not expires:
        return None
    if expires <= now:
        return expired(request, now)
    ahead = 0 if sequence is None else len(sequence.waiting) + (sequence.at_work is not None)
    if ahead and now + (ahead + 1) * step_ns > expires:
        return DeadlineUnreachable(
            f"The deadline is {(expires - now) / 1e6:.3f} ms away and {ahead} requests of its sequence are to "
            f"run before, each of which is expected to take {step_ns / 1e6:.3f} ms"
        )
    return None


def _break_off(sequence: Sequence) -> None:
    """What is there of a sequence is over before its end; unless another begins behind it, nothing more may come."""
    sequence.begun = False
    if not any((request.template.sequence or _NONE).start for request in sequence.waiting):
        sequence.open = False
