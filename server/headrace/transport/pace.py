"""Whether what a peer sends or takes moves at all: the answer to those who hold on to memory by being slow."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

Flow = tuple[int, str]
"""A stream's id, 0 for the connection itself, and the direction: `IN` or `OUT`."""
IN, OUT = "in", "out"


class Pace:
    """Octets that have to move, as they are seen now and then: `least` of them in each period, or they have stalled.

    A period begins when a flow is first seen, and anew whenever one is over: what ends within a period is never too
    slow, however small it is. period_ns: of monotonic time.
    """

    __slots__ = ("_least", "_marks", "_period_ns")

    def __init__(self, period_ns: int, least: int) -> None:
        self._period_ns = period_ns
        self._least = least
        self._marks: dict[Flow, tuple[int, int]] = {}

    def __repr__(self) -> str:
        return f"<Pace of {len(self._marks)} flows>"

    def forget(self, flow: Flow) -> None:
        """The flow has come to its end; another one may begin under its name."""
        self._marks.pop(flow, None)

    def stalled(self, moved: Mapping[Flow, int], now: int) -> list[Flow]:
        """What has moved too little; moved: octets so far of all that has to move now, the rest is forgotten."""
        marks: dict[Flow, tuple[int, int]] = {}
        stalled = []
        for flow, octets in moved.items():
            since, before = self._marks.get(flow, (now, octets))
            if now - since >= self._period_ns:
                if octets - before < self._least:
                    stalled.append(flow)
                since, before = now, octets
            marks[flow] = since, before
        self._marks = marks
        return stalled
