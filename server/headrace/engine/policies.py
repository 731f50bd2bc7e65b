"""A model's settings in the terms of the pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.engine.rules import input_rules
from headrace.messages import QueuePolicy
from headrace.pipeline.admission import QueueLimits
from headrace.pipeline.batching import BatchLimits
from headrace.pipeline.bucket_cost import BucketCosts
from headrace.pipeline.buckets import Buckets
from headrace.pipeline.cost import CostModel
from headrace.pipeline.decode import ModelView

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.messages import Owner, Signature
    from headrace.pipeline.padding import RaggedRule
    from headrace.pipeline.rules import Rules
    from headrace.repository.model_config import LevelConfig, ModelConfig, QueueConfig


def model_view(
    name: str,
    version: str,
    signature: Signature,
    config: ModelConfig,
    owner: Owner,
    rules: Mapping[str, Rules] | None = None,
    buckets: Buckets | None = None,
) -> ModelView:
    """What decoding needs to know. rules: for inputs; None: those of `config`. Raises ModelLoadError."""
    return ModelView(
        name,
        version,
        signature,
        input_rules(config, signature) if rules is None else rules,
        owner,
        config.split_oversize,
        config.priority_levels,
        config.default_level,
        {spec.name: spec.labels for spec in signature.outputs if spec.labels},
        _policy(config.queue),
        {int(level) - 1: _policy(config.queue, own) for level, own in config.queue.levels.items()},
        buckets,
    )


def make_buckets(
    config: ModelConfig, signature: Signature, ragged: Mapping[str, RaggedRule] | None = None
) -> Buckets | None:
    """How rows of variable size share batches; None: there are none. ragged: see `Buckets`. Raises ModelLoadError."""
    pads = {name: said.pad for name, said in config.inputs.items() if said.pad is not None}
    return Buckets(config.buckets, signature, pads, ragged) if config.buckets or pads or ragged else None


def cost_model(config: ModelConfig, signature: Signature, inline_below_ns: int) -> CostModel:
    """What is to learn how long a batch runs."""
    kind = BucketCosts if config.buckets else CostModel
    return kind(signature.max_batch, config.batching.quantile, inline_below_ns)


def batch_limits(config: ModelConfig, max_rows: int) -> BatchLimits:
    """How batches are formed."""
    batching = config.batching
    preferred = tuple(sorted(batching.preferred_sizes or ()))
    return BatchLimits(
        max_rows,
        policy=batching.policy,
        delay_ns=batching.delay_us * 1000,
        margin_ns=batching.margin_us * 1000,
        preferred=preferred,
    )


def queue_limits(config: ModelConfig) -> QueueLimits:
    """How much may wait."""
    queue = config.queue
    by_level = bool(queue.max_level_requests or any(level.max_level_requests for level in queue.levels.values()))
    return QueueLimits(queue.max_requests, queue.max_rows, queue.max_bytes, by_level)


def _policy(queue: QueueConfig, level: LevelConfig | None = None) -> QueuePolicy:
    """How requests wait: as `level` says, where it does."""
    own = {} if level is None else level.model_dump(exclude_none=True)
    return QueuePolicy(
        own.get("timeout_us", queue.timeout_us) * 1000,
        own.get("timeout_override", queue.timeout_override),
        own.get("on_timeout", queue.on_timeout) == "delay",
        own.get("max_level_requests", queue.max_level_requests),
    )
