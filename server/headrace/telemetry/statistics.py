"""What ModelStatistics reports of one model version, in terms that know no protocol.

The semantics are Triton's, which perf_analyzer computes with: everything is cumulative and only grows; times are
nanoseconds summed over requests, so that a batch of eight that computed for 1 ms adds 8 ms of `compute_infer`;
`success` counts requests, `inference_count` rows, `execution_count` batches.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Duration:
    """How many there were and the nanoseconds that they took together."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """The executions of one batch size. Counts and times are per execution here, not per request."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


@dataclass(frozen=True, slots=True)
class Statistics:
    """One model version since it was loaded.

    `last_inference_ms` is the end of the last batch in milliseconds since the Unix epoch, 0 before the first.
    `queue.count` and `success.count` are equal, and above `compute_*.count` by the requests that the response cache
    answered, which count as no inference; `cache_hit` and `cache_miss` are lookups in it. `fail` counts the requests
    that ended in any error; its time is not measured. `batches` is sorted by batch size.
    """

    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Duration = Duration()
    fail: Duration = Duration()
    queue: Duration = Duration()
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()
    cache_hit: Duration = Duration()
    cache_miss: Duration = Duration()
    batches: list[BatchStatistics] = field(default_factory=list)
