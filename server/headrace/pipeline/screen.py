"""What requests of one look must satisfy before they join a batch: one caller's mistake never fails another.

Requests that came together are looked at together: a few NumPy calls on what they have sent, side by side, tell that
all is well. Only if it is not is it found out who broke which rule, and where.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from headrace.errors import InvalidRequest, RuleBroken
from headrace.pipeline.number_screen import NumberCheck
from headrace.pipeline.text_screen import TextCheck

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.messages import Buffer, InferRequest, InputTensor, TensorSpec
    from headrace.pipeline.rules import Policy, RuleName, Rules

    Numbers = np.ndarray[Any, np.dtype[Any]]
    Mask = np.ndarray[Any, np.dtype[np.bool_]]
    Shape = tuple[int, ...]

JOINED_BYTES = 16 << 10
"""From here on, a request's input is looked at by itself: to copy it beside others would cost more than it saves."""


@dataclass(slots=True)
class Findings:
    """What is wrong with some of several requests, which are known by their place among them.

    refused: the first reason. replaced: by request and input, the bytes in place of those that were sent. broken: how
    many requests broke a rule, by (input, rule, policy).
    """

    refused: dict[int, InvalidRequest] = field(default_factory=dict)
    replaced: dict[int, dict[int, bytes]] = field(default_factory=dict)
    broken: Counter[tuple[str, RuleName, Policy]] = field(default_factory=Counter)


class _Screen(Protocol):
    """Of one input. index: its place in the signature."""

    index: int

    def passes(self, column: Sequence[Buffer]) -> bool:
        """Whether all is well with what several requests have sent. May say no where it is, but never yes if not."""

    def find(self, column: Sequence[Buffer], findings: Findings) -> None:
        """Adds what is wrong."""


class Screen:
    """Of all inputs of a look. Calling it with requests gives what is wrong with some; None: nothing is."""

    __slots__ = ("_inputs",)

    def __init__(self, inputs: Sequence[_Screen]) -> None:
        self._inputs = tuple(inputs)

    def __repr__(self) -> str:
        return f"<Screen of inputs {[screen.index for screen in self._inputs]}>"

    def __call__(self, requests: Sequence[InferRequest]) -> Findings | None:
        """Never raises for what a request holds."""
        findings: Findings | None = None
        for screen in self._inputs:
            index = screen.index
            column = [request.parts[index] for request in requests]
            if not screen.passes(column):
                findings = findings or Findings()
                screen.find(column, findings)
        return findings


def screen_of(
    specs: Sequence[TensorSpec],
    tensors: Sequence[InputTensor | None],
    rules: Mapping[str, Rules],
    model: str,
    *,
    batched: bool,
) -> Screen | None:
    """The screen of requests with these inputs, in the signature's order; None: there is nothing to look at.

    tensors: as a request describes them, None for one that the server fills.
    """
    screens: list[_Screen] = []
    for index, (spec, tensor) in enumerate(zip(specs, tensors, strict=True)):
        if tensor is None:
            continue
        own = rules.get(spec.name)
        about = _About(index, spec.name, model, tensor.shape, own)
        if spec.datatype == "BOOL":
            screens.append(_Bools(about))
        elif spec.datatype == "BYTES":
            screens.append(_Texts(about))
        if own is not None and own.size is not None and (wrong := own.size.refusal(tensor.shape)):
            screens.append(_Size(about, wrong))
        if own is not None and own.numbers is not None:
            screens.append(
                _Numbers(about, NumberCheck(own.numbers, own.policies, spec.datatype, tensor.shape, batched))
            )
    return Screen(screens) if screens else None


@dataclass(frozen=True, slots=True)
class _About:
    """One input of one look, for error messages. shape: whole."""

    index: int
    name: str
    model: str
    shape: Shape
    rules: Rules | None

    @property
    def what(self) -> str:
        return f"input '{self.name}' for model '{self.model}'"

    def place(self, element: int) -> str:
        """Where in the input a flat index is."""
        places: list[int] = []
        for dim in reversed(self.shape):
            element, place = divmod(element, dim)
            places.append(place)
        return str(places[::-1])

    def element(self, element: int) -> str:
        """The same in words, with the name of its feature if it has one."""
        names = self.rules.names if self.rules is not None else ()
        named = f" ({names[element % len(names)]})" if names else ""
        return f"element {self.place(element)}{named} of {self.what}"

    def broken(self, rule: RuleName, requests: int, findings: Findings) -> Policy:
        """Has a rule broken by so many requests; returns what is to become of them."""
        assert self.rules is not None
        policy = self.rules.policy(rule)
        findings.broken[self.name, rule, policy] += requests
        return policy

    def refuse(self, request: int, rule: RuleName, error: Callable[[], str], findings: Findings) -> None:
        """Has a request refused, if it is not already."""
        if request not in findings.refused:
            findings.refused[request] = RuleBroken(f"{error()} (rule '{rule}')")


class _Bools:
    """A BOOL is 0 or 1: anything else is undefined behaviour inside a runtime."""

    def __init__(self, about: _About) -> None:
        self.index = about.index
        self._about = about

    def passes(self, column: Sequence[Buffer]) -> bool:
        return all(not part or int(np.maximum.reduce(np.frombuffer(part, np.uint8))) < 2 for part in _joined(column))

    def find(self, column: Sequence[Buffer], findings: Findings) -> None:
        for request, part in enumerate(column):
            values = np.frombuffer(part, np.uint8)
            if values.size and values.max() > 1:
                at = int(np.argmax(values > 1))
                text = f"{self._about.element(at)} is {values[at]}, expected a BOOL: 0 or 1"
                findings.refused.setdefault(request, InvalidRequest(text))


class _Texts:
    """Texts are UTF-8, as ONNX has them: a bad one would fail the whole batch inside the runtime."""

    def __init__(self, about: _About) -> None:
        self.index = about.index
        self._about = about
        own = about.rules
        self._check = TextCheck(own.texts if own is not None else None, about.shape, own.policies if own else {})

    def passes(self, column: Sequence[Buffer]) -> bool:
        return self._check.passes(column)

    def find(self, column: Sequence[Buffer], findings: Findings) -> None:
        about = self._about
        for request, part in enumerate(column):
            try:
                elements = self._check.elements(part)
            except InvalidRequest as error:
                findings.refused.setdefault(request, InvalidRequest(f"{about.what}: {error}"))
                continue
            wrong = self._check.not_text(elements)
            if wrong is not None:
                text = f"{about.element(wrong[0])} is not UTF-8: {wrong[1]}"
                findings.refused.setdefault(request, InvalidRequest(text))
                continue
            for rule, at, text in self._check.broken(elements):
                if about.broken(rule, 1, findings) == "reject":
                    about.refuse(request, rule, partial("{} {}".format, about.element(at), text), findings)


class _Size:
    """An image of a wrong size: every request of the look has it."""

    def __init__(self, about: _About, wrong: str) -> None:
        self.index = about.index
        self._about = about
        self._wrong = wrong

    def passes(self, column: Sequence[Buffer]) -> bool:
        return False

    def find(self, column: Sequence[Buffer], findings: Findings) -> None:
        if self._about.broken("size", len(column), findings) == "reject":
            error = partial("{} has images of {}".format, self._about.what, self._wrong)
            for request in range(len(column)):
                self._about.refuse(request, "size", error, findings)


class _Numbers:
    def __init__(self, about: _About, check: NumberCheck) -> None:
        self.index = about.index
        self._about = about
        self._check = check

    def passes(self, column: Sequence[Buffer]) -> bool:
        if len(column) == 1 or len(column[0]) >= JOINED_BYTES:
            return all(map(self._check.passes, column))
        return self._check.passes(b"".join(column))

    def find(self, column: Sequence[Buffer], findings: Findings) -> None:
        if len(column[0]) >= JOINED_BYTES:
            for request, part in enumerate(column):
                self._find(part, [request], findings)
        else:
            self._find(b"".join(column), range(len(column)), findings)

    def _find(self, raw: Buffer, requests: Sequence[int], findings: Findings) -> None:
        """raw: of so many requests, one after another."""
        check, about = self._check, self._about
        values = check.view(raw).reshape(len(requests), -1)
        clipped = set(check.unfilled(values))
        for rule, bad in check.broken(values):
            places = np.flatnonzero(bad.any(axis=1)).tolist()
            if not places:
                continue
            policy = about.broken(rule, len(places), findings)
            if policy == "clip":
                clipped.update(places)
            elif policy == "reject":
                for place in places:
                    about.refuse(requests[place], rule, partial(self._error, rule, values[place], bad[place]), findings)
        chosen = [place for place in sorted(clipped) if requests[place] not in findings.refused]
        for place, made in zip(chosen, check.clipped(values[chosen]) if chosen else (), strict=True):
            findings.replaced.setdefault(requests[place], {})[self.index] = made

    def _error(self, rule: RuleName, values: Numbers, bad: Mask) -> str:
        at = int(bad.argmax())
        return f"{self._about.element(at)} {self._check.wrong(rule, values, at)}"


def _joined(column: Sequence[Buffer]) -> Sequence[Buffer]:
    """The same bytes in fewer pieces, where that is cheaper."""
    return column if len(column) == 1 or len(column[0]) >= JOINED_BYTES else [b"".join(column)]
