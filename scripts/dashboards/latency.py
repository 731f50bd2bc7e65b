"""Where the time of requests goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashboards.parts import MODEL, Query, heat, lines, make, mean, quantile, rate

if TYPE_CHECKING:
    from dashboards.parts import Panel

PHASES = ("decode", "admit", "queue", "batch", "execute", "encode")


def text() -> str:
    """The dashboard as JSON."""
    return make(
        "headrace-latency", "Headrace / Latency breakdown", "Where the time of requests goes.", [*_whole(), *_parts()]
    )


def _whole() -> list[Panel]:
    """All of a request."""
    requests = rate("headrace_request_seconds_count")
    phase_rates = rate("headrace_request_phase_seconds_sum", "phase")
    return [
        lines(
            "Mean time of a request by phase",
            Query(f"{phase_rates} / scalar({requests} > 0)", "{{phase}}"),
            unit="s",
            about="Stacked, the phases add up to the mean of the whole (but for what the response cache answered).",
            width=12,
            stacked=True,
        ),
        lines(
            "Share of the time by phase",
            Query(f"{phase_rates} / scalar({rate('headrace_request_phase_seconds_sum')} > 0)", "{{phase}}"),
            unit="percentunit",
            about="Where the time of all requests together goes.",
            width=12,
            stacked=True,
            top=1,
        ),
        heat("Requests by their time", "headrace_request_seconds", unit="s", about="From the read to the reply."),
        lines(
            "Quantiles",
            *(Query(quantile(q, "headrace_request_seconds"), f"p{q * 100:g}") for q in (0.5, 0.9, 0.95, 0.99, 0.999)),
            unit="s",
            about="From the read of a request to its reply.",
            width=12,
        ),
        *(
            lines(
                f"Phase {phase}",
                *(
                    Query(
                        quantile(q, "headrace_request_phase_seconds", "", MODEL + f', phase="{phase}"'), f"p{q * 100:g}"
                    )
                    for q in (0.5, 0.99)
                ),
                unit="s",
                about=about,
            )
            for phase, about in zip(PHASES, ABOUT, strict=True)
        ),
    ]


def _parts() -> list[Panel]:
    """What takes longest."""
    in_queue, at_work = (MODEL + f', phase="{phase}"' for phase in ("queue", "execute"))
    return [
        lines(
            "Time in the queue, and what is predicted",
            Query(mean("headrace_request_phase_seconds", "model", in_queue), "{{model}} mean"),
            Query(f"max by (model) (headrace_queue_wait_seconds{{{MODEL}}})", "{{model}} predicted"),
            unit="s",
            about="The mean of the requests that were answered, and the wait of one that arrives at the scrape.",
            width=12,
        ),
        lines(
            "Execution by model",
            Query(quantile(0.5, "headrace_request_phase_seconds", "model", at_work), "{{model}} p50"),
            Query(quantile(0.99, "headrace_request_phase_seconds", "model", at_work), "{{model}} p99"),
            unit="s",
            about="How long the batches run, weighted by the requests in them.",
            width=12,
        ),
    ]


ABOUT = (
    "From the read to the tensors. High where requests are large, or the event loop is busy.",
    "Until it stands in the queue.",
    "Until a batch takes it. High under overload: see the predicted wait.",
    "The tensor of the batch is put together.",
    "The model runs.",
    "From the outputs to the reply.",
)
