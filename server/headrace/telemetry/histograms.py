"""Histogram families whose samples are made when they are read, so that a scrape can be spread over turns of the loop.

prometheus_client's own family makes all samples at once: with twenty models those of the phases are 3,000, for which
the loop would stand still for 15 ms. And it makes the text of each from its labels every time, for another 50 ms.
"""

from __future__ import annotations

from functools import cache, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client.core import Metric
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prometheus_client.samples import Exemplar

    from headrace.telemetry.recorder import Histogram

    Labels = tuple[tuple[str, str], ...]
    Exemplars = Mapping[int, Exemplar]

KEPT: Final = 1 << 14
"""Of how many histograms, and of how many other series, the text of name and labels is kept."""

_NO_EXEMPLARS: Final[Exemplars] = {}
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_SHORT: Final = 1_000_000
"""Counts below are written as they are; floatToGoString gives those above an exponent."""


class Histograms(Metric):
    """One family. `texts` gives its lines series by series; `samples`, for everybody else, all samples."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        self._labels = tuple(labels)
        self._series: list[tuple[tuple[str, ...], Histogram, float, Exemplars]] = []
        super().__init__(name, documentation, "histogram")

    def add(
        self, labels: Sequence[str], histogram: Histogram, ns_per_unit: float, exemplars: Exemplars = _NO_EXEMPLARS
    ) -> None:
        """Adds a series.

        histogram: does not change any more. ns_per_unit: 1e9 for seconds, 1e3 for microseconds. exemplars: by bucket.
        """
        self._series.append((tuple(labels), histogram, ns_per_unit, exemplars))

    def texts(self, *, openmetrics: bool) -> Iterator[tuple[int, str]]:
        """The lines of one series after the other, and how many they are; only one of the formats has exemplars."""
        for values, histogram, ns_per_unit, exemplars in self._series:
            labels = tuple(zip(self._labels, values, strict=True))
            starts = _starts(self.name, labels, _bounds(tuple(histogram.edges.tolist()), ns_per_unit))
            counts = list(accumulate(histogram.counts.tolist()))
            counts.append(counts[-1])
            lines = [
                f"{start} {count}.0\n" if count < _SHORT else f"{start} {number(count)}\n"
                for start, count in zip(starts, counts, strict=False)
            ]
            lines.append(f"{starts[-1]} {number(histogram.total / ns_per_unit)}\n")
            for bucket, exemplar in exemplars.items() if openmetrics else ():
                lines[bucket] = f"{lines[bucket][:-1]} # {_exemplar(exemplar)}\n"
            yield len(lines), "".join(lines)

    @property
    def samples(self) -> list[Sample]:
        """All of them."""
        samples = []
        for values, histogram, ns_per_unit, exemplars in self._series:
            labels = dict(zip(self._labels, values, strict=True))
            counts = list(accumulate(histogram.counts.tolist()))
            bounds = _bounds(tuple(histogram.edges.tolist()), ns_per_unit)
            samples += [
                Sample(f"{self.name}_bucket", {**labels, "le": bound}, count, None, exemplars.get(bucket))
                for bucket, (bound, count) in enumerate(zip(bounds, counts, strict=True))
            ]
            samples.append(Sample(f"{self.name}_count", labels, counts[-1]))
            samples.append(Sample(f"{self.name}_sum", labels, histogram.total / ns_per_unit))
        return samples

    @samples.setter
    def samples(self, none: list[Sample]) -> None:
        """What prometheus_client's constructor sets."""


@lru_cache(KEPT)
def series(name: str, labels: Labels) -> str:
    r"""Name and labels as both formats have them: sorted, and `\`, `"` and the end of a line escaped."""
    if not labels:
        return name
    pairs = (f'{label}="{value.translate(_ESCAPES)}"' for label, value in sorted(labels))
    return f"{name}{{{','.join(pairs)}}}"


def _exemplar(exemplar: Exemplar) -> str:
    """What OpenMetrics has behind a bucket's count."""
    labels = series("", tuple(exemplar.labels.items()))
    return f"{labels} {number(exemplar.value)} {exemplar.timestamp}"


def number(value: float) -> str:
    """A value as prometheus_client itself writes it."""
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


@cache
def bound(edge: float) -> str:
    """The label `le` as prometheus_client itself writes it."""
    return number(edge)


@lru_cache(KEPT)
def _starts(name: str, labels: Labels, bounds: tuple[str, ...]) -> tuple[str, ...]:
    """What stands before the values of a series: of each bucket, the count and the sum."""
    buckets = (series.__wrapped__(f"{name}_bucket", (*labels, ("le", one))) for one in bounds)
    return (*buckets, *(series.__wrapped__(f"{name}_{what}", labels) for what in ("count", "sum")))


@cache
def _bounds(edges: tuple[int, ...], ns_per_unit: float) -> tuple[str, ...]:
    """The labels `le` of a histogram."""
    return (*(bound(edge / ns_per_unit) for edge in edges), "+Inf")
