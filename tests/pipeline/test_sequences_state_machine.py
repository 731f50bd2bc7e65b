"""Whatever happens to sequences, in whatever order: each request ends once and in order, with the state of its own."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.errors import (
    DeadlineUnreachable,
    InvalidRequest,
    QueueFull,
    QueueTimeout,
    ShuttingDown,
    StateFull,
)
from headrace.messages import SequenceFlags, State
from headrace.pipeline.admission import QueueLimits
from headrace.pipeline.sequences import SequenceLimits, Sequences
from headrace.testing.requests import make_request

IDLE = 50
INITIAL = 4
STATE_BYTES = 40
MAX_REQUESTS = 12
MAX_BYTES = 100
IDS = ("a", 1, 2)


class SequencesMachine(RuleBasedStateMachine):
    """history: what the state of a sequence should be: the numbers of the requests that have run since its START."""

    def __init__(self):
        super().__init__()
        self.now = 1
        self.number = 0
        self.numbers = {}  # by request
        self.pending = []  # admitted, and neither taken nor dropped, in the order of admission
        self.at_work = {}  # request -> sequence
        self.history = {}  # by id; absent: no sequence has begun
        self.latest = {}  # by id: the number of the START that was admitted last
        self.began = {}  # by id: the number of the START that was taken last
        self.first_of = {}  # by request: the number of the START of its sequence
        self.open = {}  # by id: whether a request without START may come
        self.idle_since = {}  # by id, of those of which nothing waits and nothing is at work
        self.draining = False

    @initialize(active=st.integers(1, 3))
    def set_up(self, active):
        self.limit = active
        limits = SequenceLimits(active, IDLE, STATE_BYTES, INITIAL)
        self.core = Sequences("m", limits, QueueLimits(MAX_REQUESTS, 0, MAX_BYTES))

    # --- what can happen ---

    @rule(
        sequence=st.sampled_from(IDS),
        start=st.booleans(),
        end=st.integers(0, 5).map(lambda n: n == 0),
        ahead=st.sampled_from([0, 0, 0, 3, 10]),
        nbytes=st.sampled_from([0, 0, 1, 30]),
        more=st.lists(st.booleans(), max_size=3),
        looks=st.booleans(),
    )
    def send(self, sequence, start, end, ahead, nbytes, more, looks):
        """A request, some more of the same sequence, and what follows from them."""
        self.send_one(sequence, start, end, ahead, nbytes)
        for last in more:
            self.send_one(sequence, False, last, 0, nbytes)
        if looks:
            self.decide()

    def send_one(self, sequence, start, end, ahead, nbytes):
        flags = SequenceFlags(sequence, start, end)
        expires = self.now + ahead if ahead else 0
        request = make_request(now=self.now, sequence=flags, expires=expires, nbytes=nbytes)
        error = self.core.admit(request, self.now, (0, 0), 2, draining=self.draining)
        mine = [other for other in self.pending if self.id_of(other) == sequence]
        if error is None:
            self.number += 1
            self.numbers[request] = self.number
            self.pending.append(request)
            if start:
                self.latest[sequence] = self.number
            self.first_of[request] = self.latest[sequence]
            assert not self.draining
            assert start or self.open.get(sequence), "in a sequence that has not begun"
            self.open[sequence] = not end
            self.idle_since.pop(sequence, None)
        elif isinstance(error, InvalidRequest):
            assert not start
            assert not self.open.get(sequence)
        elif isinstance(error, QueueFull):
            assert len(self.pending) == MAX_REQUESTS or sum(r.nbytes for r in self.pending) + nbytes > MAX_BYTES
        elif isinstance(error, DeadlineUnreachable):
            assert mine or self.busy(sequence)
        else:
            assert isinstance(error, ShuttingDown)
            assert self.draining

    def broken_off(self, request):
        """What begins with this request does not go on."""
        if self.numbers[request] == self.latest[self.id_of(request)]:
            self.open[self.id_of(request)] = False

    def busy(self, sequence):
        return any(self.id_of(request) == sequence for request in self.at_work)

    @rule()
    def decide(self):
        decision = self.core.decide(self.now, draining=self.draining)
        over = [name for name, since in self.idle_since.items() if self.draining or self.now >= since + IDLE]
        for name in over:
            del self.idle_since[name], self.history[name]
            self.open[name] = False
        assert self.draining or decision.expired == len(over), "over, and not for being idle"
        for request, error in decision.drop:
            self.pending.remove(request)
            if isinstance(error, QueueTimeout):
                assert 0 < request.expires <= self.now
                if request.template.sequence.start:
                    self.broken_off(request)
            else:
                assert isinstance(error, InvalidRequest)
                assert not request.template.sequence.start
        for sequence, request in decision.take:
            self.take(sequence, request)
        self.settled(decision.wake_at)

    def take(self, sequence, request):
        flags = request.template.sequence
        assert not 0 < request.expires <= self.now, "what had expired runs"
        assert not self.busy(flags.id), "two of a sequence at a time"
        mine = [other for other in self.pending if self.id_of(other) == flags.id]
        assert mine[0] is request, "not in its turn"
        self.pending.remove(request)
        if flags.start:
            self.history[flags.id] = ()
            self.began[flags.id] = self.numbers[request]
        assert self.began[flags.id] == self.first_of[request], "in the sequence of another"
        assert (sequence.state or ()) == self.history[flags.id], "the state of another"
        self.at_work[request] = sequence

    def settled(self, wake_at):
        """Nothing could be done now that is not under way."""
        core = self.core
        assert not core.pending
        assert wake_at > self.now or wake_at == 0
        if core.backlog:
            assert core.active == self.limit or core.held + INITIAL > STATE_BYTES
        for request in self.pending:
            assert not 0 < request.expires <= self.now
            assert not request.expires or 0 < wake_at <= request.expires
            if self.sequence_of(request).active:
                assert self.busy(self.id_of(request)), "nothing of it is at work, and it waits"

    @precondition(lambda self: self.at_work)
    @rule(which=st.integers(0, 9), nbytes=st.sampled_from([0, INITIAL, INITIAL, 12, 25]), looks=st.booleans())
    def done(self, which, nbytes, looks):
        request, sequence = self.pick(which)
        flags = request.template.sequence
        state = (*self.history[flags.id], self.numbers[request])
        error = self.core.done(sequence, state, nbytes, self.now)
        if flags.end:
            assert error is None
            del self.history[flags.id]
        elif error is not None:
            assert isinstance(error, StateFull)
            del self.history[flags.id]
            self.open[flags.id] &= self.began[flags.id] != self.latest[flags.id]
        else:
            self.history[flags.id] = state
        self.look_for_idle()
        if looks:
            self.decide()

    @precondition(lambda self: self.at_work)
    @rule(which=st.integers(0, 9))
    def fail(self, which):
        request, sequence = self.pick(which)
        flags = request.template.sequence
        self.core.failed(sequence, self.now)
        if flags.start or flags.end:
            del self.history[flags.id]
        if flags.start:
            self.broken_off(request)
        self.look_for_idle()

    def pick(self, which):
        request = list(self.at_work)[which % len(self.at_work)]
        return request, self.at_work.pop(request)

    def look_for_idle(self):
        waiting = {self.id_of(request) for request in self.pending}
        for name in list(self.history):
            if name not in waiting and not self.busy(name):
                if self.open[name]:
                    self.idle_since.setdefault(name, self.now)
                else:  # its end was taken, and has not run
                    del self.history[name]

    @precondition(lambda self: self.pending or self.at_work)
    @rule(which=st.integers(0, 20))
    def cancel(self, which):
        everybody = [*self.pending, *self.at_work]
        request = everybody[which % len(everybody)]
        if request.state is State.ABANDONED:
            return
        if request in self.at_work:
            request.state = State.RUNNING
        given_up = self.core.cancel(request)
        for other in given_up:
            assert other.state is State.ABANDONED, "somebody waits for it"
            self.pending.remove(other)
            self.open[self.id_of(request)] = False
        if given_up:
            assert self.id_of(request) not in {self.id_of(other) for other in self.pending}

    @rule(ns=st.sampled_from([1, 2, 3, 10, IDLE]))
    def time_passes(self, ns):
        self.now += ns
        self.decide()

    @precondition(lambda self: not self.draining)
    @rule(chance=st.integers(0, 9))
    def drain(self, chance):
        self.draining = chance == 9

    # --- what must hold ---

    @staticmethod
    def id_of(request):
        return request.template.sequence.id

    def sequence_of(self, request):
        return next(sequence for sequence in self.core if sequence.id == self.id_of(request))

    @invariant()
    def counts_are_right_and_limits_hold(self):
        if not hasattr(self, "core"):
            return
        core = self.core
        assert core.requests == len(self.pending) <= MAX_REQUESTS
        assert core.nbytes == sum(request.nbytes for request in self.pending) <= MAX_BYTES
        assert core.active == sum(sequence.active for sequence in core) <= self.limit
        assert core.backlog == len(core) - core.active
        assert core.held == sum(sequence.state_bytes for sequence in core) <= STATE_BYTES
        assert {request for sequence in core for request in sequence.waiting} == set(self.pending)
        assert len(self.at_work) == sum(sequence.at_work is not None for sequence in core)

    def teardown(self):
        if not hasattr(self, "core"):
            return
        self.draining = True
        for _ in range(2 * MAX_REQUESTS + len(IDS)):
            self.decide()
            if self.at_work:
                self.done(0, INITIAL, looks=False)
        self.decide()
        assert not self.pending
        assert (len(self.core), self.core.held, self.core.wake_at) == (0, 0, 0)


SequencesMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=50)
TestSequences = SequencesMachine.TestCase
