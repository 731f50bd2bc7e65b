"""Whether the elements of a BYTES input are texts, and keep the rules for them."""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic_core import SchemaError, SchemaValidator, core_schema

from headrace.errors import InvalidRequest
from headrace.pipeline import bytes_tensor
from headrace.pipeline.rules import some, span

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from headrace.messages import Buffer
    from headrace.pipeline.rules import Policy, RuleName, TextRules

_SHOWN = 60
"""Characters of a text that an error repeats."""


@lru_cache(maxsize=256)
def matcher(pattern: str) -> SchemaValidator:
    """What tells whether a whole text matches a regular expression: `isinstance_python(text)`.

    It is Rust's crate `regex`, as pydantic brings it along: its time is linear in the text, whatever the pattern is
    (https://docs.rs/regex, "Untrusted input"), so that no text can hold the event loop up as one can with Python's
    `re`, which backtracks. For that it has neither look-around nor references to groups. Raises ValueError for what is
    no such pattern, or would compile to more than 10 MB.
    """
    try:
        _text(pattern)  # by itself: in the group below, `a)|(b` would be one too
        return SchemaValidator(_text(rf"\A(?:{pattern})\z"))
    except SchemaError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(lines[-1].removeprefix("SchemaError: ").removeprefix("error: ")) from None


def _text(pattern: str) -> core_schema.StringSchema:
    schema = core_schema.str_schema(pattern=pattern, regex_engine="rust-regex")
    SchemaValidator(schema)
    return schema


@lru_cache(maxsize=256)
def _list_matcher(pattern: str | None, min_length: int, max_length: int | None) -> SchemaValidator:
    """The same for all elements in one call: they are UTF-8, of these lengths, and match."""
    whole = None if pattern is None else rf"\A(?:{pattern})\z"
    one = core_schema.str_schema(pattern=whole, min_length=min_length, max_length=max_length, regex_engine="rust-regex")
    return SchemaValidator(core_schema.list_schema(one))


class TextCheck:
    """Of one input of a whole shape. rules: None: there are none but that it is text."""

    __slots__ = ("_all", "_count", "_length_refuses", "_matcher", "_rules", "_values")

    def __init__(
        self, rules: TextRules | None, shape: tuple[int, ...], policies: Mapping[str, Policy] = MappingProxyType({})
    ) -> None:
        self._count = prod(shape)
        self._length_refuses = policies.get("length", "reject") == "reject"
        self._rules = rules
        self._values = None if rules is None else rules.values
        self._matcher = matcher(rules.pattern) if rules is not None and rules.pattern is not None else None
        self._all: SchemaValidator | None = None
        if rules is not None and (self._matcher is not None or rules.min_length > 0 or rules.max_length is not None):
            self._all = _list_matcher(rules.pattern, rules.min_length, rules.max_length)

    def passes(self, column: Sequence[Buffer]) -> bool:
        """Whether all is well with what several requests have sent."""
        try:
            elements = list(chain.from_iterable([self.elements(part) for part in column]))
            if self._all is None:
                # what is cut short before a zero, or begins in the middle behind it, is no UTF-8: nothing can hide here
                b"\0".join(elements).decode()
        except (InvalidRequest, UnicodeDecodeError):
            return False
        if self._values is not None and not self._values.issuperset(elements):
            return False
        return self._all is None or self._all.isinstance_python(elements)

    def elements(self, part: Buffer) -> list[bytes]:
        """Raises InvalidRequest where there are not as many as the shape says."""
        return bytes_tensor.decode(part, self._count)

    def not_text(self, elements: Sequence[bytes]) -> tuple[int, str] | None:
        """Which element is not UTF-8, and why."""
        for at, element in enumerate(elements):
            try:
                element.decode()
            except UnicodeDecodeError as error:
                return at, f"byte {error.start} is 0x{element[error.start]:02x}"
        return None

    def broken(self, elements: Sequence[bytes]) -> Iterator[tuple[RuleName, int, str]]:
        """Of each rule that elements, which are UTF-8, break: the first that does, and what it is and should be."""
        seen: set[str] = set()
        for rule, at, text in self._broken(elements):
            if rule not in seen:
                seen.add(rule)
                yield rule, at, text

    def _broken(self, elements: Sequence[bytes]) -> Iterator[tuple[RuleName, int, str]]:
        rules = self._rules
        if rules is None:
            return
        values, matching = self._values, self._matcher
        for at, element in enumerate(elements):
            text = element.decode()
            if values is not None and element not in values:
                yield "values", at, f"is {_shown(text)}, expected {some(sorted(one.decode() for one in values))}"
            size = len(text)
            of_length = size >= rules.min_length and (rules.max_length is None or size <= rules.max_length)
            if not of_length:
                expected = span(rules.min_length or None, rules.max_length)
                yield "length", at, f"has {size} characters, expected a length {expected}"
            if not of_length and self._length_refuses:
                continue  # it may be of any length, and is refused already
            if matching is not None and not matching.isinstance_python(text):
                yield "pattern", at, f"is {_shown(text)}, expected all of it to match {rules.pattern!r}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
