"""Whether two backends have computed the same: outputs of one beside those of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.messages import TensorSpec

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an element may be off: `absolute + relative * greatest magnitude of what is expected`."""

    absolute: float = 0.0
    relative: float = 0.0


def difference(
    specs: Sequence[TensorSpec], found: Sequence[Array], expected: Sequence[Array], tolerances: Sequence[Tolerance]
) -> str:
    """What differs, with the output, the element and by how much; empty if nothing does.

    specs: of the outputs. found, expected: an array of each, as `backends.base.Instance.run` returns them.
    """
    for spec, got, want, tolerance in zip(specs, found, expected, tolerances, strict=True):
        what = _difference(spec.datatype, got, want, tolerance)
        if what:
            return f"output '{spec.name}'{what}"
    return ""


def _difference(datatype: str, got: Array, want: Array, tolerance: Tolerance) -> str:
    if got.shape != want.shape:
        return f" has shape {list(got.shape)}, expected {list(want.shape)}"
    if datatype == "BYTES":
        wrong = np.array([_text(a) != _text(b) for a, b in zip(got.flat, want.flat, strict=True)], bool)
        return _first(wrong.reshape(got.shape), got, want, "")
    if got.dtype != want.dtype:
        return f" is {got.dtype}, expected {want.dtype}"
    if not want.size:
        return ""
    if datatype == "BF16":
        got, want = from_bf16(got), from_bf16(want)
    if got.dtype.kind == "f":
        finite = np.isfinite(want)
        same = (got == want) | (np.isnan(got) & np.isnan(want))  # infinities are equal to themselves
        if not same[~finite].all() or not np.isfinite(got[finite]).all():
            return _first(~same & ~(finite & np.isfinite(got)), got, want, "")
        # in doubles: the difference of two numbers of FP16 may not be one
        got, want = (np.where(finite, array, 0).astype(np.float64) for array in (got, want))
        off: Array = np.abs(got - want)
    else:
        off = np.abs(got.astype(object) - want.astype(object)).astype(np.float64)  # of UINT64 as well
    allowed = tolerance.absolute + tolerance.relative * float(np.abs(want.astype(np.float64)).max())
    worst = np.unravel_index(int(off.argmax()), off.shape)
    if off[worst] <= allowed:
        return ""
    by = f", off by {off[worst]:.6g}, allowed {allowed:.6g}"
    return _element(worst, got, want) + by


def _first(wrong: Array, got: Array, want: Array, more: str) -> str:
    """The first element that is wrong, if there is one."""
    if not wrong.any():
        return ""
    return _element(np.unravel_index(int(wrong.argmax()), wrong.shape), got, want) + more


def _element(at: tuple[Any, ...], got: Array, want: Array) -> str:
    place = [int(index) for index in at]
    return f", element {place}: {_shown(got[at])}, expected {_shown(want[at])}"


def _shown(value: Any) -> str:  # noqa: ANN401
    return f"{value:.7g}" if isinstance(value, float | np.floating) else str(value)[:80]


def _text(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


def from_bf16(bits: Array) -> Array:
    """FP32 of the same values as these bit patterns, of 16 bits."""
    array: Array = (bits.astype(np.uint32) << 16).view(np.float32)
    return array
