"""What serves a model version: a scheduler over instances, or what runs requests through other models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.engine.sequence_plan import SequencePlan
    from headrace.messages import InferRequest, Signature
    from headrace.pipeline.decode import ModelView
    from headrace.repository.model_config import ModelConfig
    from headrace.rpc import model_config_pb2 as mc
    from headrace.telemetry.observer import ModelObserver
    from headrace.telemetry.statistics import Statistics


class Condition(Protocol):
    """What a model version has to run requests with, at the moment."""

    @property
    def usable(self) -> int:
        """How many instances can run requests; 0: none can."""

    @property
    def note(self) -> str:
        """What an operator should know of them; empty if all is as it was loaded."""

    @property
    def backend(self) -> str:
        """The backend that runs it, or ran it last; empty if there is none."""

    def count(self) -> dict[tuple[str, str], int]:
        """How many instances there are, by backend and state: idle, running, lost."""


class Served(Protocol):
    """A model version that takes requests, on the event loop.

    name, version: as on the wire. platform: what ModelMetadata reports. signature: as clients see it. view: for
    decoding. stated: what its config.pbtxt says, if there is one. level: 0, or one more than the highest of the models
    that its requests run through. plan: of a stateful model. condition: what it can run requests with.
    """

    name: str
    version: str
    signature: Signature
    config: ModelConfig
    stated: mc.ModelConfig | None
    view: ModelView
    observer: ModelObserver
    statistics: Callable[[], Statistics]

    @property
    def draining(self) -> bool: ...  # noqa: D102
    @property
    def platform(self) -> str: ...  # noqa: D102
    @property
    def level(self) -> int: ...  # noqa: D102
    @property
    def condition(self) -> Condition: ...  # noqa: D102
    @property
    def plan(self) -> SequencePlan | None: ...  # noqa: D102

    def submit(self, requests: Sequence[InferRequest], /) -> None:
        """Takes decoded requests of one template: each is answered once, now or later."""

    def cancel(self, request: InferRequest, /) -> None:
        """The request's caller has gone away."""

    def depth(self) -> tuple[int, int]:
        """(requests, rows) that wait."""

    def wait_ns(self) -> int:
        """Predicted time until a request that arrived now would run, behind all that waits; 0: at once."""

    async def drain(self, seconds: float, /) -> bool:
        """Takes no more; returns True once all that was accepted is answered, False when `seconds` have passed."""

    def close(self) -> None:
        """Fails what is left and frees what is held."""
