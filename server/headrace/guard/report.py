"""What is said of a version that is guarded: the JSON of `GET /v2/models/M/guard`."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from headrace.guard.record import MARGINS
from headrace.guard.settings import Action, Kind  # noqa: TC001 - pydantic reads the annotations

if TYPE_CHECKING:
    from headrace.guard.evidence import Finding
    from headrace.guard.record import Snapshot
    from headrace.guard.settings import GuardSettings

State = Literal["watching", "fallen_back", "reported", "blind"]
"""fallen_back, reported: a limit is proved not to be kept, and requests find the reference, or the version as before.
blind: the reference cannot be run any more."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Mean(_Part):
    """A mean over requests, and bounds that hold at all times together with probability 1 - alpha."""

    mean: float | None = Field(description="null before the first request")
    lower: float = Field(description="lower bound")
    upper: float = Field(description="upper bound")


class Recent(_Part):
    """Of the last 128 to 255 requests; of all while there are fewer."""

    requests: int = Field(description="how many")
    agreement: float | None = Field(description="their mean agreement")
    error: float | None = Field(description="their mean error")


class Proof(_Part):
    """The proof that a limit is not kept, which has made the guard act."""

    what: Literal["agreement", "error"] = Field(description="which limit")
    limit: float = Field(description="the limit")
    mean: float = Field(description="mean over the requests of the sequence that proves it")
    bound: float = Field(description="bound of that mean: of agreement from above, of error from below")
    level: float = Field(description="chance of such a proof against a version that keeps the limit")
    requests: int = Field(description="requests of the sequence that proves it")
    since: int = Field(description="which of the requests compared its first was")
    compared: int = Field(description="requests that had been compared by then")
    at_ms: int = Field(description="when, in milliseconds since the epoch")
    text: str = Field(description="the same in words")


class MarginReport(_Part):
    """Rows by how sure the reference was: probability of its first class less that of its second."""

    low: float = Field(description="lower end of the bin")
    high: float = Field(description="upper end")
    rows: int = Field(description="rows in it")
    disagreement: float | None = Field(description="share of them that have another class; null for no row")


class GuardReport(_Part):
    """One version beside its reference."""

    model: str = Field(description="name of the model")
    version: str = Field(description="the version that is guarded")
    reference: str = Field(description="the version that is trusted")
    state: State = Field(description="what the guard has done")
    action: Action = Field(description="what it does when a limit is proved not to be kept")
    output: str = Field(description="the output that decides")
    kind: Kind = Field(description="how it is compared")
    share: float = Field(description="of requests that are compared")
    limit: float = Field(description="of the mean agreement")
    max_mean_error: float | None = Field(description="limit of the mean error; null: none")
    alpha: float = Field(description="the chance that a version which keeps its limits is ever acted upon")
    requests: int = Field(description="requests that were compared")
    rows: int = Field(description="their rows")
    skipped: dict[str, int] = Field(description="requests that were sampled and not compared, by reason")
    failed: int = Field(description="requests on which the reference failed")
    agreement: Mean = Field(description="share of rows that agree, mean over requests")
    error: Mean = Field(description="error of a row, 0 to 1, mean over requests")
    recent: Recent = Field(description="the last ones")
    mean_absolute_error: float | None = Field(description="of elements that are finite in both; null without")
    max_absolute_error: float | None = Field(description="the greatest of any such element")
    nonfinite_differences: int = Field(description="elements not finite, and not the same in the reference")
    mean_cosine: float | None = Field(description="cosine of the two rows; null unless kind is values")
    margins: tuple[MarginReport, ...] = Field(description="by margin; empty unless kind is classes")
    proof: Proof | None = Field(description="why the guard has acted; null if it has not")
    cpu_seconds: float = Field(description="processor time that all this has taken")


def mean_of(mean: float | None, bounds: tuple[float, float]) -> Mean:
    """A mean and its bounds."""
    return Mean(mean=mean, lower=bounds[0], upper=bounds[1])


def proof_of(finding: Finding, compared: int, at_ms: int) -> Proof:
    """compared: requests so far."""
    return Proof(
        what=finding.what,
        limit=finding.limit,
        mean=finding.mean,
        bound=finding.bound,
        level=finding.level,
        requests=finding.requests,
        since=finding.since,
        compared=compared,
        at_ms=at_ms,
        text=str(finding),
    )


def margins_of(snapshot: Snapshot) -> tuple[MarginReport, ...]:
    """The bins; none where no row has a margin."""
    return tuple(
        MarginReport(low=low, high=high, rows=rows, disagreement=misses / rows if rows else None)
        for (low, high), (rows, misses) in zip(pairwise(MARGINS), snapshot.margins, strict=False)
    )


def report_of(
    settings: GuardSettings,
    snapshot: Snapshot,
    *,
    model: str,
    version: str,
    reference: str,
    state: State,
    action: Action,
    share: float,
    skipped: dict[str, int],
    failed: int,
    proof: Proof | None,
    cpu_ns: int,
) -> GuardReport:
    """The report of what a record held at a moment."""
    overall, recent = snapshot.overall, snapshot.recent
    return GuardReport(
        model=model,
        version=version,
        reference=reference,
        state=state,
        action=action,
        output=settings.output,
        kind=settings.kind,
        share=share,
        limit=settings.limit,
        max_mean_error=settings.max_mean_error,
        alpha=settings.alpha,
        requests=overall.requests,
        rows=snapshot.rows,
        skipped=skipped,
        failed=failed,
        agreement=mean_of(overall.mean_agreement, overall.agreement_bounds()),
        error=mean_of(overall.mean_error, overall.error_bounds()),
        recent=Recent(requests=recent.requests, agreement=recent.mean_agreement, error=recent.mean_error),
        mean_absolute_error=snapshot.absolute,
        max_absolute_error=snapshot.largest,
        nonfinite_differences=snapshot.strange,
        mean_cosine=snapshot.cosine,
        margins=margins_of(snapshot),
        proof=proof,
        cpu_seconds=cpu_ns / 1e9,
    )
