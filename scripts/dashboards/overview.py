"""What to look at first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashboards.parts import SERVER, Query, lines, make, number, quantile, rate, rows

if TYPE_CHECKING:
    from dashboards.parts import Panel

BY_MODEL = "{{model}}"
ERRORS = rate("headrace_refused_total")
ANSWERED = rate("headrace_request_seconds_count")


def text() -> str:
    """The dashboard as JSON."""
    return make(
        "headrace-overview",
        "Headrace / Overview",
        "All servers and models at a glance.",
        [*_now(), *_models(), *_servers(), *_versions()],
    )


def _now() -> list[Panel]:
    """Figures of the moment."""
    return [
        number("Requests", Query(ANSWERED), unit="reqps", about="Requests answered with success."),
        number(
            "Errors",
            Query(f"{ERRORS} / ({ERRORS} + {ANSWERED} > 0) or vector(0)"),
            unit="percentunit",
            about="Share of requests that ended without success.",
            bad_from=0.01,
        ),
        number(
            "p99",
            Query(quantile(0.99, "headrace_request_seconds")),
            unit="s",
            about="From the read of it to its reply.",
        ),
        number(
            "Predicted wait",
            Query(f"max(headrace_queue_wait_seconds{{{SERVER}}})"),
            unit="s",
            about="Of a request that arrives now, of the model that is worst off.",
        ),
        number(
            "Versions ready",
            Query(f'count(headrace_model_state{{{SERVER}, state=~"ready|stale"}})'),
            unit="none",
            about="Model versions that serve, over all servers.",
        ),
        number(
            "Versions failed",
            Query(f'count(headrace_model_state{{{SERVER}, state=~"failed|stale"}}) or vector(0)'),
            unit="none",
            about="Model versions of which the newest form cannot be served.",
            bad_from=1,
        ),
    ]


def _models() -> list[Panel]:
    """What models do."""
    return [
        lines(
            "Requests by model",
            Query(rate("headrace_request_seconds_count", "model"), BY_MODEL),
            unit="reqps",
            about="Requests answered with success.",
        ),
        lines(
            "p99 by model",
            Query(quantile(0.99, "headrace_request_seconds", "model"), BY_MODEL),
            unit="s",
            about="From the read of a request to its reply.",
        ),
        lines(
            "Errors by cause",
            Query(rate("headrace_refused_total", "model, reason"), "{{model}} {{reason}}"),
            unit="reqps",
            about="Requests that ended without success; docs/errors.md has the reasons.",
        ),
        lines(
            "Predicted wait by model",
            Query(f"max by (model) (headrace_queue_wait_seconds{{{SERVER}}})", BY_MODEL),
            unit="s",
            about="Of a request that arrives now. What to scale by.",
        ),
        lines(
            "Busy instances",
            Query(rate("headrace_instance_busy_seconds_total", "model"), BY_MODEL),
            unit="none",
            about="How many instances of a model run a batch, on average. At their number, it can take no more.",
        ),
    ]


def _servers() -> list[Panel]:
    """What servers take, and what their ports see."""
    return [
        lines(
            "Processor",
            Query(f"rate(process_cpu_seconds_total{{{SERVER}}}[$__rate_interval])", "{{instance}}"),
            Query(
                f"rate(headrace_grpc_worker_cpu_seconds_total{{{SERVER}}}[$__rate_interval])",
                "{{instance}} worker {{worker}}",
            ),
            unit="none",
            about="Cores that a server keeps busy, and its workers for gRPC, if there are any: one each at most.",
        ),
        lines(
            "Memory",
            Query(f"process_resident_memory_bytes{{{SERVER}}}", "{{instance}}"),
            Query(f"headrace_grpc_worker_resident_memory_bytes{{{SERVER}}}", "{{instance}} worker {{worker}}"),
            unit="bytes",
            about="Resident memory of a server and of its workers for gRPC, which share the memory of large requests.",
        ),
        lines(
            "Connections",
            Query(f"sum by (instance) (headrace_connections{{{SERVER}}})", "{{instance}} gRPC"),
            Query(f"sum by (instance) (headrace_http_connections{{{SERVER}}})", "{{instance}} HTTP"),
            unit="none",
            about="Open connections; of gRPC on the native transport.",
        ),
        lines(
            "gRPC workers",
            Query(f"headrace_grpc_workers{{{SERVER}}}", "{{instance}}"),
            Query(
                f"increase(headrace_grpc_worker_restarts_total{{{SERVER}}}[$__rate_interval])", "{{instance}} restarts"
            ),
            unit="none",
            about="With grpc_workers: those that take connections, and starts in the place of others that ended.",
        ),
        lines(
            "HTTP replies",
            Query(rate("headrace_http_requests_total", "route, status", SERVER), "{{route}} {{status}}"),
            unit="reqps",
            about="Replies of the HTTP port by route and status.",
        ),
        lines(
            "Ended before their model was known",
            Query(rate("headrace_unrouted_total", "reason", SERVER), "{{reason}}"),
            unit="reqps",
            about="Requests that named no model that is there, or could not be read.",
        ),
        lines(
            "HTTP/2 limits and violations",
            Query(rate("headrace_http2_limits_total", "limit", SERVER), "limit {{limit}}"),
            Query(rate("headrace_protocol_errors_total", "code", SERVER), "{{code}}"),
            unit="ops",
            about="What was ended because a client asked too much, and connections that broke the protocol: "
            "docs/http2.md.",
        ),
    ]


def _versions() -> list[Panel]:
    """The state of each."""
    return [
        rows(
            "Model versions",
            Query(f"sum by (instance, model, version, state) (headrace_model_state{{{SERVER}}})"),
            about="The state of each, on each server. failed: it should serve and cannot; stale: an older form serves.",
            hidden=["Value"],
            width=8,
        ),
    ]
