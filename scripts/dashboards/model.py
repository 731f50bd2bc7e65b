"""One model: load, latency, errors, queue, instances."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashboards.parts import MODEL, Query, busy_instances, lines, make, mean, number, quantile, rate

if TYPE_CHECKING:
    from dashboards.parts import Panel


def text() -> str:
    """The dashboard as JSON."""
    return make(
        "headrace-model",
        "Headrace / Model",
        "One model, or some, in detail.",
        [*_now(), *_requests(), *_execution(), *_rest()],
    )


def _now() -> list[Panel]:
    """Figures of the moment."""
    return [
        number("Requests", Query(rate("headrace_request_seconds_count")), unit="reqps", about="Answered with success."),
        number("Rows", Query(rate("nv_inference_count")), unit="rowsps", about="Rows of these requests."),
        number("Mean", Query(mean("headrace_request_seconds")), unit="s", about="From the read to the reply."),
        number("Mean batch", Query(mean("headrace_batch_rows")), unit="none", about="Rows in a batch."),
        number(
            "Predicted wait",
            Query(f"max(headrace_queue_wait_seconds{{{MODEL}}})"),
            unit="s",
            about="Of a request that arrives now.",
        ),
        number(
            "Loading took",
            Query(f"max(nv_model_load_duration_secs{{{MODEL}}})"),
            unit="s",
            about="Loading and warming, of the version that took longest.",
        ),
    ]


def _requests() -> list[Panel]:
    """What becomes of requests."""
    latency = [Query(quantile(q, "headrace_request_seconds"), f"p{q * 100:g}") for q in (0.5, 0.9, 0.99)]
    return [
        lines("Latency", *latency, unit="s", about="From the read of a request to its reply."),
        lines(
            "Requests by version",
            Query(rate("headrace_request_seconds_count", "model, version"), "{{model}} {{version}}"),
            unit="reqps",
            about="Requests answered with success.",
        ),
        lines(
            "Refused and failed",
            Query(rate("headrace_refused_total", "reason"), "{{reason}}"),
            unit="reqps",
            about="queue_full: shed on arrival. deadline_unreachable: on arrival, or in favour of others. "
            "queue_timeout, deadline_exceeded: expired while they waited. docs/errors.md has the others.",
            stacked=True,
        ),
    ]


def _execution() -> list[Panel]:
    """What waits, and what runs."""
    return [
        lines(
            "Queue",
            Query(f"sum(headrace_queue_requests{{{MODEL}}})", "requests"),
            Query(f"sum(headrace_queue_rows{{{MODEL}}})", "rows"),
            unit="none",
            about="What waits, at the moment of the scrape.",
        ),
        lines(
            "Predicted wait",
            Query(f"max by (model, version) (headrace_queue_wait_seconds{{{MODEL}}})", "{{model}} {{version}}"),
            unit="s",
            about="Of a request that arrives at the moment of the scrape.",
        ),
        busy_instances(),
        lines(
            "Instances by backend and state",
            Query(f"sum by (model, backend, state) (headrace_instances{{{MODEL}}})", "{{model}} {{backend}} {{state}}"),
            unit="none",
            about="lost: the device of an instance was lost, or had no memory left, and it is to be made anew.",
            stacked=True,
        ),
        lines(
            "Lost instances, and requests that ran again",
            Query(rate("headrace_instances_lost_total", "model"), "{{model}} lost"),
            Query(rate("headrace_rerun_requests_total", "model"), "{{model}} run again"),
            unit="ops",
            about="docs/fallback.md says what becomes of them.",
        ),
    ]


def _rest() -> list[Panel]:
    """What only some models have."""
    hits, misses = (rate(f"nv_cache_num_{what}_per_model", "model") for what in ("hits", "misses"))
    return [
        lines(
            "Wasted",
            Query(rate("headrace_wasted_seconds_total", "model"), "{{model}}"),
            unit="s",
            about="Compute time each second for callers that had gone away.",
        ),
        lines(
            "Response cache",
            Query(f"{hits} / ({hits} + {misses} > 0)", "{{model}}"),
            unit="percentunit",
            about="Share of requests answered from the response cache, of models that use it.",
            top=1,
        ),
        lines(
            "Sequences",
            Query(f"sum by (model) (headrace_sequences_active{{{MODEL}}})", "{{model}} active"),
            Query(f"sum by (model) (headrace_sequences_waiting{{{MODEL}}})", "{{model}} waiting"),
            unit="none",
            about="Of stateful models: sequences that hold a state, and those that wait to.",
        ),
    ]
