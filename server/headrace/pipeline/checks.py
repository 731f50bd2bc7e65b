"""What the bytes of an input must satisfy before they may join a batch: one caller's mistake never fails another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from headrace.datatypes import DATATYPES
from headrace.errors import InvalidRequest
from headrace.messages import Buffer
from headrace.pipeline import bytes_tensor

if TYPE_CHECKING:
    from headrace.messages import TensorSpec

    Numbers = np.ndarray[Any, np.dtype[Any]]

Check = Callable[[Buffer], None]
"""Raises InvalidRequest if the raw bytes of a tensor break the rule."""


class InputRules(Protocol):
    """The per-input checks of model.toml; None or False: not asked for."""

    @property
    def finite(self) -> bool:
        """No NaN and no infinity."""

    @property
    def min(self) -> float | None:
        """The least allowed value."""

    @property
    def max(self) -> float | None:
        """The greatest allowed value."""


def checks_for(spec: TensorSpec, shape: tuple[int, ...], rules: InputRules | None, model: str) -> list[Check]:
    """The checks that a tensor of this datatype and full shape must pass."""
    what = f"input '{spec.name}' for model '{model}'"
    checks: list[Check] = []
    if spec.datatype == "BOOL":
        checks.append(lambda raw: _check_bool(raw, what))
    elif spec.datatype == "BYTES":
        count = int(np.prod(shape, dtype=np.int64)) if shape else 1
        checks.append(lambda raw: _check_text(raw, count, what))
    if rules is not None and spec.datatype not in ("BOOL", "BYTES", "BF16"):
        dtype = DATATYPES[spec.datatype].numpy
        low, high, finite = rules.min, rules.max, rules.finite and dtype.kind == "f"
        if finite or low is not None or high is not None:
            checks.append(lambda raw: _check_values(np.frombuffer(raw, dtype), low, high, finite, what))
    return checks


def _check_bool(raw: Buffer, what: str) -> None:
    values = np.frombuffer(raw, np.uint8)
    if values.size and int(values.max()) > 1:
        at = int(np.argmax(values > 1))
        raise InvalidRequest(f"element {at} of {what} is {int(values[at])}, expected a BOOL: 0 or 1")


def _check_text(raw: Buffer, count: int, what: str) -> None:
    """ONNX strings are UTF-8, and one bad element would fail the whole batch inside the runtime."""
    try:
        elements = bytes_tensor.decode(raw, count)
    except InvalidRequest as error:
        raise InvalidRequest(f"{what}: {error}") from None
    for at, element in enumerate(elements):
        try:
            element.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"element {at} of {what} is not UTF-8: byte {error.start} is 0x{element[error.start]:02x}"
            ) from None


def _check_values(values: Numbers, low: float | None, high: float | None, finite: bool, what: str) -> None:
    """Two passes over good values: NaN goes through minimum and maximum, so that every comparison with them fails."""
    if not values.size:
        return
    least, most = np.minimum.reduce(values), np.maximum.reduce(values)
    floor = -math.inf if low is None else low
    ceiling = math.inf if high is None else high
    if (not finite or (math.isfinite(least) and math.isfinite(most))) and floor <= least and most <= ceiling:
        return
    if finite and not np.isfinite(values).all():
        at = int(np.argmin(np.isfinite(values)))
        raise InvalidRequest(f"element {at} of {what} is {values[at]}, expected a finite number")
    bad = ~((values >= floor) & (values <= ceiling))
    if bad.any():
        at = int(np.argmax(bad))
        raise InvalidRequest(f"element {at} of {what} is {values[at]}, expected a value from {floor:g} to {ceiling:g}")
