"""Which inputs were compared already: one that is sent again and again says nothing new of a version."""

from __future__ import annotations

from collections import OrderedDict

REMEMBERED = 16_384
"""Inputs that are remembered: with an input that comes back as soon as it is forgotten, one observation in 16,384."""


class Distinct:
    """Digests of inputs, at most `most` of them; no input. Not for several threads.

    The one that was counted longest ago is forgotten first, and only for another that is counted, however often it has
    come meanwhile. So of `most` observations in a row no two are of the same input: who would have one of his counted
    twice has to bring as many different ones, and no one input is more than one in `most` of what decides.
    """

    def __init__(self, most: int = REMEMBERED) -> None:
        self._most = most
        self._met: OrderedDict[bytes, None] = OrderedDict()  # in the order in which they were counted

    def __repr__(self) -> str:
        return f"<Distinct {len(self._met)} of {self._most} inputs>"

    def __len__(self) -> int:
        return len(self._met)

    def new(self, digest: bytes) -> bool:
        """Whether it is not remembered. It is from now on."""
        if digest in self._met:
            return False
        if len(self._met) == self._most:
            self._met.popitem(last=False)
        self._met[digest] = None
        return True
