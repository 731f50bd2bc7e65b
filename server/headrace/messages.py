"""The values that flow through the server: tensor and model descriptions, a request, a finished batch.

Requests are the one thing made per call, so they are bare slots without validation: `pipeline/decode.py` is where a
request is checked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from headrace.errors import HeadraceError

Buffer = bytes | bytearray | memoryview
"""Contiguous bytes: a tensor as it came off the wire."""

ParameterValue = bool | int | float | str


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model. `shape` leaves the batch dimension out; -1 is a dimension of any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def fixed(self) -> bool:
        """Whether every dimension is known."""
        return all(d >= 0 for d in self.shape)


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model version takes and gives. `max_batch` is in rows; 0: the model has no batch dimension."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int


PHASES = ("decode", "admit", "queue", "batch", "execute", "encode")
"""The stages of a request, in order; names of metrics labels and of the reply's timing parameters."""


class ReplySink(Protocol):
    """Where the reply to one request goes: a stream of a transport. Exactly one of the two is called, once."""

    def reply(self, message: bytes) -> None:
        """Sends the one response message (a serialised ModelInferResponse) and an OK status."""

    def fail(self, error: HeadraceError) -> None:
        """Ends the call with the error's status."""
