"""Which instances a model version has, and what is to be made in the place of lost ones: decisions, without I/O.

A model has as many places as it was loaded with instances, all of the first backend. One that is lost leaves its place,
which is filled again: after a pause that doubles from attempt to attempt. While no place is filled, instances of the
next backend that works stand in; they leave when one of the first backend is back. Every method that tells of an event
returns what has to be done about it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

MemberT = TypeVar("MemberT", bound="Hashable")

_MAX_DOUBLINGS = 40


@dataclass(frozen=True, slots=True)
class Make:
    """To do: make an instance, from the moment `at` on (monotonic ns), and tell `Roster.made` or `Roster.failed`.

    index: what the backend is given; of the first backend, that of the place.
    """

    backend: str
    index: int
    at: int


@dataclass(frozen=True, slots=True)
class Part(Generic[MemberT]):
    """To do: have a member go that is not needed any more; at once, or when it has run."""

    member: MemberT


@dataclass(frozen=True, slots=True)
class Forget:
    """To do: free what is kept for further instances of a backend that stood in."""

    backend: str


@dataclass(frozen=True, slots=True)
class FellBack:
    """To tell: `to` is taken, or tried, in the place of a backend; empty: there is none. reason: a metric's label."""

    backend: str
    to: str
    reason: str


Command = Make | Part[MemberT] | Forget | FellBack


@dataclass(slots=True)
class _Place:
    """since: when its instance came, ns. failures: losses and vain attempts in a row. hopeless: the last one was."""

    filled: bool
    since: int
    failures: int = 0
    hopeless: bool = False


@dataclass(slots=True)
class Roster(Generic[MemberT]):
    """The instances that can be given requests, as members by whatever stands for them.

    backends: the one that serves and those that may stand in for it, in order. first_ns, max_ns: the first and the
    longest pause before a place is filled again; max_ns 0: it is not.
    """

    backends: Sequence[str]
    first_ns: int
    max_ns: int
    why: str = ""
    _places: list[_Place] = field(default_factory=list)
    _members: dict[MemberT, Make] = field(default_factory=dict)
    _stand_in: Make | None = None

    def __repr__(self) -> str:
        lost = f", {self.lost} lost" if self.lost else ""
        stand_in = f", {self._stand_in.backend} is made to stand in" if self._stand_in else ""
        return f"<Roster {len(self._members)} of {', '.join(self.serving) or 'nothing'}{lost}{stand_in}>"

    # --- what there is ------------------------------------------------------------------------------------------------

    @property
    def usable(self) -> int:
        """How many members there are."""
        return len(self._members)

    @property
    def hopeless(self) -> bool:
        """Whether there are none, and all that could be done about it has been tried at least once."""
        return not self._members and self._stand_in is None and all(place.hopeless for place in self._places)

    @property
    def serving(self) -> list[str]:
        """The backends that have members, in order."""
        found = {made.backend for made in self._members.values()}
        return [backend for backend in self.backends if backend in found]

    @property
    def lost(self) -> int:
        """How many places are empty."""
        return sum(not place.filled for place in self._places)

    @property
    def note(self) -> str:
        """What is not as it was when the model was loaded; empty if nothing is."""
        if not self.lost:
            return ""
        what = f"{self.lost} of {len(self._places)} instances of {self.backends[0]} are lost"
        again = " and are being made anew" if self.max_ns else ""
        return f"{what}{again}, served by {', '.join(self.serving) or 'nothing'}: {self.why}"

    def all_of(self, member: MemberT) -> list[MemberT]:
        """The members of the backend of one of them."""
        backend = self._members[member].backend
        return [other for other, made in self._members.items() if made.backend == backend]

    def __contains__(self, member: object) -> bool:
        return member in self._members

    # --- events -------------------------------------------------------------------------------------------------------

    def begin(self, members: Iterable[MemberT], now: int) -> None:
        """The model was loaded: fills the places."""
        for index, member in enumerate(members):
            self._places.append(_Place(filled=True, since=now))
            self._members[member] = Make(self.backends[0], index, now)

    def gone(self, members: Sequence[MemberT], why: str, now: int) -> list[Command[MemberT]]:
        """Members of one backend are lost."""
        self.why = why
        commands: list[Command[MemberT]] = []
        after = 0
        for member in members:
            made = self._members.pop(member)
            after = self.backends.index(made.backend) + 1
            if made.backend == self.backends[0]:
                place = self._places[made.index]
                place.filled = False
                if now - place.since >= self.max_ns:  # else it is lost again and again
                    place.failures = 0
                place.hopeless = place.failures > 0 or not self.max_ns
                commands += self._later(made.index, now)
        return commands + self._cover(after, now)

    def made(self, make: Make, member: MemberT, total: int, now: int) -> list[Command[MemberT]]:
        """An instance is there. total: how many of its backend there should be."""
        if make.backend == self.backends[0]:
            place = self._places[make.index]
            place.filled, place.since, place.hopeless = True, now, False
            stand_ins = {other: made.backend for other, made in self._members.items() if made.backend != make.backend}
            for stand_in in stand_ins:
                del self._members[stand_in]
            self._members[member] = make
            forgotten = [Forget(backend) for backend in self.backends if backend in stand_ins.values()]
            return [*(Part(stand_in) for stand_in in stand_ins), *forgotten]
        self._stand_in = None
        if any(place.filled for place in self._places):
            return [Part(member), Forget(make.backend)]  # it comes too late
        self._members[member] = make
        commands: list[Command[MemberT]] = []
        if make.index == 0:
            commands.append(FellBack(self.backends[0], make.backend, "lost"))
        if make.index + 1 < total:
            self._stand_in = Make(make.backend, make.index + 1, now)
            commands.append(self._stand_in)
        return commands

    def failed(self, make: Make, why: str, reason: str, now: int) -> list[Command[MemberT]]:
        """An instance could not be made. reason: a metric's label."""
        if make.backend == self.backends[0]:
            self.why = why
            self._places[make.index].hopeless = True
            return [*self._later(make.index, now), *self._cover(1, now)]
        self._stand_in = None
        after = self.backends.index(make.backend) + 1
        commands: list[Command[MemberT]] = []
        if make.index == 0:
            commands.append(FellBack(make.backend, "".join(self.backends[after : after + 1]), reason))
        return commands + self._cover(after, now)

    def _later(self, index: int, now: int) -> list[Command[MemberT]]:
        """Has a place filled again, if places are."""
        if not self.max_ns:
            return []
        place = self._places[index]
        pause = min(self.first_ns << min(place.failures, _MAX_DOUBLINGS), self.max_ns)
        place.failures += 1
        return [Make(self.backends[0], index, now + pause)]

    def _cover(self, after: int, now: int) -> list[Command[MemberT]]:
        """Where nothing is left, has an instance of the backend of that number stand in, unless one is being made."""
        if self._members or self._stand_in is not None or after >= len(self.backends):
            return []
        self._stand_in = Make(self.backends[after], 0, now)
        return [self._stand_in]
