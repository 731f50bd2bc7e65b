"""Which versions there are and what state each is in; the answer to `model m, version v` of a request. No I/O."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from headrace.errors import InvalidRequest, ModelNotFound, ModelNotReady

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

T = TypeVar("T")

UNLOADED = "unloaded"
NOT_LOADED = "not loaded"
NOT_BUILT = "not built yet"
"""The reasons of versions that are UNAVAILABLE because nobody wants them, or none has been made."""

_INTEGER = re.compile(r"[+-]?[0-9]+")
_MAX_INT64 = (1 << 63) - 1


class State(enum.StrEnum):
    """The state of a version, by the names of the model repository extension of the Open Inference Protocol."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of the repository index. `version` is None for a model of which no version could even be named."""

    name: str
    version: int | None
    state: State
    reason: str

    @property
    def condition(self) -> str:
        """The state in one lower-case word that tells apart what an operator has to: see `CONDITIONS`."""
        if self.state is State.UNAVAILABLE:
            return "unloaded" if self.reason in (UNLOADED, NOT_LOADED, NOT_BUILT) else "failed"
        return "stale" if self.state is State.READY and self.reason else self.state.lower()


CONDITIONS = ("loading", "ready", "stale", "unloading", "unloaded", "failed")
"""stale: the version serves, but loading what has taken its place in the repository failed. failed: it cannot serve,
though it should. unloaded: nobody asked for it, or it has yet to be built."""


class Catalog(Generic[T]):
    """States by (name, version), and the model of each version that is READY.

    `generation` grows with every change of what `resolve` answers with success, so that a caller may keep its answers.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._models: dict[str, dict[int | None, IndexEntry]] = {}
        self._ready: dict[tuple[str, int], T] = {}
        self._labels: dict[str, Mapping[str, int]] = {}
        self._stand_ins: dict[tuple[str, int], int] = {}
        self._served: dict[tuple[str, str], T] = {}  # what resolve() answers, "" being the newest

    def __repr__(self) -> str:
        entries = [f"{e.name}/{e.version or '-'} {e.state}" for e in self.index()]
        return f"<Catalog generation {self.generation}: {', '.join(entries) or 'empty'}>"

    def loading(self, name: str, version: int) -> None:
        """The version is being loaded. One that was READY is served no more."""
        self._set(name, version, State.LOADING)

    def ready(self, name: str, version: int, model: T, reason: str = "") -> None:
        """The version serves, with `model`; one that it had before is replaced. reason: what the index says of it."""
        self._set(name, version, State.READY, reason, model=model)

    def unloading(self, name: str, version: int) -> None:
        """The version takes no new requests."""
        self._set(name, version, State.UNLOADING)

    def failed(self, name: str, version: int | None, reason: str) -> None:
        """The version is UNAVAILABLE, for this reason. `version` None: so is the model as a whole."""
        self._set(name, version, State.UNAVAILABLE, reason)

    def forget(self, name: str, version: int | None) -> None:
        """The version is no longer in the repository. Forgetting one that is not known does nothing."""
        versions = self._models.get(name, {})
        if versions.pop(version, None) is not None and not versions:
            del self._models[name]
            self._labels.pop(name, None)
        if version is not None and self._ready.pop((name, version), None) is not None:
            self._serve()

    def forget_failed(self, name: str, wanted: Collection[int] = ()) -> None:
        """Forgets what should have served and could not, but for the versions of the model that still should."""
        for version, entry in list(self._models.get(name, {}).items()):
            if version not in wanted and entry.condition == "failed":
                self.forget(name, version)

    def label(self, name: str, labels: Mapping[str, int]) -> None:
        """The names under which requests find versions of a model; those that it had before are replaced."""
        if labels != self._labels.get(name, {}):
            self._labels[name] = labels
            self._serve()

    def stand_in(self, name: str, version: int, other: int | None) -> None:
        """Requests that would find a version, but not by its number, find another as long as that is READY.

        other: None takes that back.
        """
        if other != self._stand_ins.get((name, version)):
            if other is None:
                del self._stand_ins[name, version]
            else:
                self._stand_ins[name, version] = other
            self._serve()

    def resolve(self, name: str, version: str = "") -> T:
        """The model for a request. `version` as on the wire: decimal digits, a label, or empty for the newest ready.

        By a label, and by none, one that another stands in for is not found.

        Raises InvalidRequest, ModelNotFound or ModelNotReady, with Triton's texts.
        """
        model = self._served.get((name, version))
        return self._resolve_uncommon(name, version) if model is None else model

    def state(self, name: str, version: int | None) -> State | None:
        """The state of a version; None if it is not known."""
        entry = self._models.get(name, {}).get(version)
        return None if entry is None else entry.state

    def ready_versions(self, name: str) -> list[int]:
        """The versions of a model that serve, ascending; empty for one that is unknown."""
        return sorted(v for n, v in self._ready if n == name)

    def names(self) -> list[str]:
        """Every model that there is, whatever its state, sorted."""
        return sorted(self._models)

    def index(self) -> list[IndexEntry]:
        """Every version that there is, by name and then version."""
        return [
            entry
            for _, versions in sorted(self._models.items())
            for entry in sorted(versions.values(), key=_version_order)
        ]

    def _set(self, name: str, version: int | None, state: State, reason: str = "", model: T | None = None) -> None:
        versions = self._models.setdefault(name, {})
        reason = reason.encode(errors="backslashreplace").decode()  # of a path that is not UTF-8
        versions[version] = IndexEntry(name, version, state, reason)
        if version is None:
            return
        versions.pop(None, None)  # now more is known than that the model is broken
        changed = self._ready.pop((name, version), None) is not None
        if model is not None:
            self._ready[name, version] = model
        if changed or model is not None:
            self._serve()

    def _serve(self) -> None:
        self._served = {(name, str(version)): model for (name, version), model in self._ready.items()}
        for name, labels in self._labels.items():
            for label, version in labels.items():
                if (name, version) in self._ready:
                    self._served[name, label] = self._found(name, version)
        for name, version in sorted(self._ready):  # ascending: the newest is written last
            self._served[name, ""] = self._found(name, version)
        self.generation += 1

    def _found(self, name: str, version: int) -> T:
        """What requests find that mean a ready version, but not by its number."""
        other = self._ready.get((name, self._stand_ins.get((name, version), version)))
        return self._ready[name, version] if other is None else other

    def _resolve_uncommon(self, name: str, version: str) -> T:
        """A version in another spelling (`01`), or the reason why there is none."""
        number = self._labels.get(name, {}).get(version)
        if number is not None:
            raise ModelNotReady(
                f"Request for unknown model: '{name}' version {number}, labelled '{version}', is not at ready state"
            )
        number = _parse_version(version, self._labels.get(name, ())) if version else None
        if number is not None and (name, number) in self._ready:
            return self._ready[name, number]
        versions = self._models.get(name)
        if versions is None:
            raise ModelNotFound(f"Request for unknown model: '{name}' is not found")
        if number is None:
            raise ModelNotFound(f"Request for unknown model: '{name}' has no available versions")
        if number not in versions:
            raise ModelNotFound(f"Request for unknown model: '{name}' version {number} is not found")
        raise ModelNotReady(f"Request for unknown model: '{name}' version {number} is not at ready state")


def _parse_version(text: str, labels: Collection[str]) -> int:
    if not _INTEGER.fullmatch(text):
        problem = "not an integer"
    elif len(text) > 20 or int(text) > _MAX_INT64:
        problem = "out of range"
    elif int(text) < 1:
        problem = "not above 0"
    else:
        return int(text)
    raise InvalidRequest(
        f"failed to get model version from specified version string '{text[:40]}' (details: {problem}), "
        f"version should be an integral value > 0{', or a label: ' if labels else ''}{', '.join(sorted(labels))}"
    )


def _version_order(entry: IndexEntry) -> int:
    return entry.version or 0
