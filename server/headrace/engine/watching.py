"""What looks on while a model serves: told of each batch that has run, and of each request that did not have to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.engine.worker import OutputRows
    from headrace.messages import Batch, Buffer, InferRequest, Signature
    from headrace.pipeline.response_cache import Outputs
    from headrace.repository.discovery import Found


class Watcher(Protocol):
    """Of one model version, on the event loop."""

    def batch(
        self,
        batch: Batch,
        inputs: Sequence[Sequence[Buffer]],
        indices: Sequence[int],
        outputs: Sequence[OutputRows],
        /,
    ) -> None:
        """A batch has run and is answered. inputs: as a `Job` has them; indices: of the outputs that were computed."""

    def cached(self, request: InferRequest, parts: Sequence[Buffer], outputs: Outputs, /) -> None:
        """A request was answered from the response cache. parts: its inputs; outputs: those that its template names."""

    def close(self) -> None:
        """Frees what it holds; it is told of nothing more. Without effect on one that is closed."""


class Watching(Protocol):
    """Makes watchers, for the versions that ask for one, and owns those of versions that serve."""

    def open(self, found: Found, signature: Signature) -> Watcher | None:
        """A watcher for a version; None: it asks for none. Runs on a thread. Raises ModelLoadError."""

    def add(self, name: str, version: str, watcher: Watcher | None) -> None:
        """The version serves, in the place of one that may have served before."""

    def forget(self, name: str, version: str) -> None:
        """The version has left."""
