"""How batches are formed, and what of the computing is of no use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashboards.parts import MODEL, Query, busy_instances, heat, lines, make, mean, quantile, rate

if TYPE_CHECKING:
    from dashboards.parts import Panel

BY_MODEL = "{{model}}"
SHED = "queue_full|state_full|overloaded|deadline_unreachable|queue_timeout|deadline_exceeded"
"""Reasons of requests that were given up for want of capacity."""


def text() -> str:
    """The dashboard as JSON."""
    return make("headrace-batching", "Headrace / Batching", "How batches are formed.", [*_batches(), *_rows()])


def _batches() -> list[Panel]:
    """Their size, and why they close."""
    return [
        heat("Batches by their rows", "headrace_batch_rows", unit="none", about="How large batches are."),
        lines(
            "Mean and largest batches",
            Query(mean("headrace_batch_rows", "model"), "{{model}} mean"),
            Query(quantile(0.99, "headrace_batch_rows", "model"), "{{model}} p99"),
            unit="none",
            about="Rows in a batch.",
            width=12,
        ),
        lines(
            "What closes batches",
            Query(rate("headrace_batches_total", "close_reason"), "{{close_reason}}"),
            unit="ops",
            about="idle: an idle instance took all there was. full, cost: a further row did not fit, or would not have "
            "become cheaper. deadline: it would have made a member late. docs/metrics.md has the others.",
            stacked=True,
        ),
        lines(
            "Batches by instance",
            Query(
                rate("headrace_batches_total", "model, version, exported_instance"),
                "{{model}} {{version}} instance {{exported_instance}}",
            ),
            unit="ops",
            about="Who runs them.",
        ),
        busy_instances(),
    ]


def _rows() -> list[Panel]:
    """What is in them, what waits, and what nobody has of it."""
    added, sent = (rate(f"headrace_{what}_total", "model") for what in ("padding_elements", "elements"))
    return [
        lines(
            "Rows",
            Query(rate("nv_inference_count", "model"), BY_MODEL),
            unit="rowsps",
            about="Rows of the requests answered with success.",
        ),
        lines(
            "Rows that wait",
            Query(f"sum by (model) (headrace_queue_rows{{{MODEL}}})", BY_MODEL),
            unit="none",
            about="At the moment of the scrape.",
        ),
        lines(
            "Sheds by reason",
            Query(
                rate(
                    "headrace_refused_total",
                    "model, reason",
                    MODEL + f', reason=~"{SHED}"',
                ),
                "{{model}} {{reason}}",
            ),
            Query(rate("headrace_late_requests_total", "model"), "{{model}} late"),
            unit="reqps",
            about="Requests refused on arrival because they could not have been served in time, and those that expired "
            "while they waited. late: answered, but after the deadline.",
        ),
        lines(
            "Padding",
            Query(f"{added} / ({added} + {sent} > 0)", BY_MODEL),
            unit="percentunit",
            about="Share of the elements of inputs with buckets that were added to fill them.",
            top=1,
        ),
        lines(
            "Wasted rows",
            Query(rate("headrace_wasted_rows_total", "model"), BY_MODEL),
            unit="rowsps",
            about="Rows computed although their caller had gone away.",
        ),
        lines(
            "Wasted time",
            Query(rate("headrace_wasted_seconds_total", "model"), BY_MODEL),
            unit="s",
            about="Compute time each second for these rows.",
        ),
    ]
