"""Which of several ways to do the same is the quickest, learned while doing it."""

from __future__ import annotations

_RATE = 0.2
"""Step of the running estimate of a way that is in use."""
_TRIAL_RATE = 0.5
"""That of one that is only tried now and then: the machine may have changed since."""
_TRIAL_EVERY = 64


class Quicker:
    """Picks one of `ways` ways, 0 to ways - 1: each once, then the quickest, and at times another one."""

    __slots__ = ("_costs", "_last", "_picks", "_ways")

    def __init__(self, ways: int) -> None:
        self._ways = ways
        self._costs: dict[int, float] = {}
        self._picks = 0
        self._last = -1

    def __repr__(self) -> str:
        costs = ", ".join(f"{way}: {cost:.4g}" for way, cost in sorted(self._costs.items()))
        return f"<Quicker {self._picks} picks, costs {{{costs}}}>"

    def pick(self) -> int:
        """The way to go now; say by `took` what it cost."""
        self._picks += 1
        if len(self._costs) < self._ways:
            return next(way for way in range(self._ways) if way not in self._costs)
        if self._picks % _TRIAL_EVERY == 0:
            return self._picks // _TRIAL_EVERY % self._ways
        return min(self._costs, key=self._costs.__getitem__)

    def took(self, way: int, cost: float) -> None:
        """What this time cost, in any unit that does not depend on how much was done."""
        known = self._costs.get(way, cost)
        rate = _RATE if way == self._last else _TRIAL_RATE
        self._costs[way] = known + rate * (cost - known)
        self._last = way
