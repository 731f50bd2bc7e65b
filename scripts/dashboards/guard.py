"""Whether versions answer as those that are trusted would."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashboards.parts import MODEL, Query, lines, make, number, rate, rows

if TYPE_CHECKING:
    from dashboards.parts import Panel

VERSION = "{{model}} {{version}}"


def of(metric: str, more: str = "", by: str = "") -> str:
    """A gauge of guards, one series for each version."""
    return f"max by (model, version{by}) (headrace_guard_{metric}{{{MODEL}{more}}})"


def text() -> str:
    """The dashboard as JSON."""
    return make(
        "headrace-guard",
        "Headrace / Guard",
        "Versions beside those that are trusted.",
        [*_now(), *_verdicts(), *_effort()],
    )


def _now() -> list[Panel]:
    """Figures of the moment."""
    return [
        number(
            "Below a limit",
            Query(f"sum({of('alarm')})"),
            unit="none",
            about="Versions that are proved not to keep the limits of their guards.",
            width=6,
            bad_from=1,
        ),
        number(
            "Moved back",
            Query(f"sum({of('fallen_back_state')})"),
            unit="none",
            about="Versions in the place of which requests find the reference.",
            width=6,
            bad_from=1,
        ),
        number(
            "Guards that see nothing",
            Query(f"sum({of('blind_state')})"),
            unit="none",
            about="Their reference is lost.",
            width=6,
            bad_from=1,
        ),
        number(
            "Compared",
            Query(rate("headrace_guard_requests_total")),
            unit="reqps",
            about="Requests that were run on the reference as well.",
            width=6,
        ),
    ]


def _verdicts() -> list[Panel]:
    """What is held against the limits, and where versions differ."""
    return [
        lines(
            "Agreement",
            Query(of("agreement", by=", bound"), f"{VERSION} {{{{bound}}}}"),
            Query(of("agreement_limit"), f"{VERSION} limit"),
            unit="percentunit",
            about="Mean since the version was loaded, with bounds that hold at all times. A guard acts when an upper "
            "bound is below the limit.",
            width=16,
            top=1,
        ),
        lines(
            "Agreement of the last requests",
            Query(of("agreement_recent"), VERSION),
            unit="percentunit",
            about="Of the last 128 to 255 that were compared.",
            top=1,
        ),
        lines(
            "Error",
            Query(of("error", by=", bound"), f"{VERSION} {{{{bound}}}}"),
            unit="percentunit",
            about="Distance of the answer from the reference's, 0 to 1, with its bounds.",
            top=1,
        ),
        lines(
            "Disagreement by margin",
            Query(of("margin_disagreement", by=", low"), f"{VERSION} from {{{{low}}}}"),
            unit="percentunit",
            about="Where the reference was sure, versions should agree; where it was not, either may be right.",
            top=1,
        ),
    ]


def _effort() -> list[Panel]:
    """What it costs, and what was left out."""
    return [
        lines(
            "Processor time",
            Query(rate("headrace_guard_cpu_seconds_total", "model, version"), VERSION),
            unit="percentunit",
            about="Of a core; at most guard.cpu_budget.",
        ),
        rows("Absolute difference", Query(of("absolute_error", by=", statistic")), about="Of elements."),
        lines(
            "Not compared",
            Query(rate("headrace_guard_skipped_requests_total", "model, version, reason"), f"{VERSION} {{{{reason}}}}"),
            Query(rate("headrace_guard_failed_requests_total", "model, version"), f"{VERSION} failed"),
            unit="reqps",
            about="Requests that were sampled in vain, by reason: docs/guard.md.",
            width=12,
        ),
    ]
