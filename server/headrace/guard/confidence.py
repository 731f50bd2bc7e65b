"""Confidence sequences: bounds of a mean that hold at all times at once, however often one looks, whenever one stops.

Both rest on a process that is at least 0, begins at 1 and is expected not to grow while the mean is not beyond a bound:
the chance that it ever reaches 1/alpha is at most alpha (Ville's inequality, 1939). What is observed lies in [0, 1].
Nothing need be independent or identically distributed: it is enough that the expectation of each observation, given
all before it, is on the right side of the bound.
"""

from __future__ import annotations

from math import expm1, inf, lgamma, log, log1p, sqrt

PRIOR = 0.5
"""Both parameters of the mixing beta distribution: Jeffreys' prior, Krichevsky and Trofimov, 1981."""
_PRECISION = 1e-13
_ITERATIONS = 100_000
_TINY = 1e-300
_EXACT = 1e-6
_MOST_BET = 0.5


def below(bound: float, total: float, misses: float) -> float:
    """Logarithm of the evidence that a mean is below `bound`, 0 < bound < 1: log M, see `log(1 / alpha)`.

    total: sum of the observations; misses: sum of 1 minus them. M is the mixture over q < bound, by a beta
    distribution cut off there, of the likelihood ratios (q / bound)^total ((1 - q) / (1 - bound))^misses: the one-sided
    beta-binomial mixture of Robbins, 1970, and Howard et al., 2021 (arXiv:1810.08240). A factor of it is convex in the
    observation x, so that for x in [0, 1] its expectation is at most that for an event of the same mean, which is at
    most 1 if the mean is `bound` or more. 0 where more than nothing cannot be said.
    """
    seen = total + misses
    if total >= bound * seen:  # then no q < bound is likelier than the bound: M is at most 1
        return 0.0
    ratio = -_times_log(total, bound) - misses * log1p(-bound)
    return _log_beta(bound, PRIOR + total, PRIOR + misses) - _log_beta(bound, PRIOR, PRIOR) + ratio


def at_most(level: float, total: float, misses: float) -> float:
    """The least bound, to 6 digits, that the mean is below with evidence of 1/level: an upper confidence sequence.

    1 if there is none. See `below`; the lower one is `1 - at_most(level, misses, total)`.
    """
    enough, seen = log(1 / level), total + misses
    if not seen or not misses:
        return 1.0
    low, high = total / seen, 1.0
    while high - low > _EXACT:
        middle = (low + high) / 2
        low, high = (low, middle) if below(middle, total, misses) >= enough else (middle, high)
    return high


class MeanBound:
    """An empirical-Bernstein confidence sequence of a mean, with predictable plug-ins.

    Waudby-Smith and Ramdas, 2023 (arXiv:2010.09686), Theorem 2: exp(sum of l (x - m) - v psi(l)), psi(l) =
    -log(1 - l) - l, v = (x - mean so far)^2, with bets l that depend on the past alone. Those that are added together
    have the same bet and the same mean so far. level: at which the bets are to be best; bounds hold at any.
    """

    __slots__ = ("_bets", "_cost", "_log_level", "_seen", "_spread", "_sum", "_weighted")

    def __init__(self, level: float) -> None:
        self._log_level = log(1 / level)
        self._seen = 0
        self._sum = 0.0
        self._spread = 0.25  # sum of the squared distances, with one observation at 1/2 away before all others
        self._bets = self._weighted = self._cost = 0.0

    def __repr__(self) -> str:
        return f"<MeanBound {self._seen} seen, mean {self.mean:.4g}>"

    @property
    def mean(self) -> float:
        """Of what was added; 0 if there was nothing."""
        return self._sum / max(self._seen, 1)

    def add(self, count: int, total: float, squares: float) -> None:
        """So many more observations, each in [0, 1], their sum, and that of their squares."""
        seen = self._seen + 1
        mean = (0.5 + self._sum) / seen
        bet = min(_MOST_BET, sqrt(2 * self._log_level * seen / (self._spread * (seen + 1) * log1p(seen + 1))))
        self._bets += bet * count
        self._weighted += bet * total
        self._cost += _spread(count, total, squares, mean) * (-log1p(-bet) - bet)
        self._seen += count
        self._sum += total
        self._spread += _spread(count, total, squares, (0.5 + self._sum) / (self._seen + 1))

    def at_least(self, level: float) -> float:
        """A lower confidence sequence of the mean."""
        return max(0.0, self._middle - self._width(level))

    def at_most(self, level: float) -> float:
        """An upper one."""
        return min(1.0, self._middle + self._width(level))

    @property
    def _middle(self) -> float:
        return self._weighted / self._bets if self._bets else 0.0

    def _width(self, level: float) -> float:
        return (log(1 / level) + self._cost) / self._bets if self._bets else inf


def _spread(count: int, total: float, squares: float, mean: float) -> float:
    """The sum of squared distances from `mean`."""
    return max(0.0, squares - 2 * mean * total + count * mean * mean)


def _times_log(count: float, share: float) -> float:
    return count * log(share) if count else 0.0


def _log_beta(x: float, a: float, b: float) -> float:
    """Logarithm of the incomplete beta function, the integral of t^(a - 1) (1 - t)^(b - 1) from 0 to x, 0 < x < 1.

    By its continued fraction (DLMF 8.17.22) where that converges quickly, and by what is left of the whole elsewhere.
    """
    if x < (a + 1) / (a + b + 2):
        return _log_fraction(x, a, b)
    whole = lgamma(a) + lgamma(b) - lgamma(a + b)
    rest = _log_fraction(1 - x, b, a) - whole
    return whole + (log(-expm1(rest)) if rest < 0 else -inf)


def _log_fraction(x: float, a: float, b: float) -> float:
    """The same by the continued fraction, by Lentz's method."""
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d or _TINY)
    fraction = d
    for m in range(1, _ITERATIONS):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + numerator * d or _TINY)
            c = 1 + numerator / c or _TINY
            fraction *= c * d
        if abs(c * d - 1) < _PRECISION:
            break
    return a * log(x) + b * log1p(-x) - log(a) + log(fraction)
