"""A `Supply` of fake instances, which takes virtual time and fails as the test wants."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from typing import TYPE_CHECKING

from headrace.engine.policies import cost_model
from headrace.repository.model_config import ModelConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.pipeline.cost import CostModel
    from headrace.testing.backend import FakeInstance, FakeModel


class FakeSupply:
    """See `engine.instances.Supply`.

    models: of each backend, in the order of the chain. takes_ns: how long making an instance takes, by backend.
    failures: what the next attempts raise, by backend; None: that one succeeds. hurried: whether each attempt was to
    hurry. made, forgotten: how often, by backend.
    total: instances of each backend.
    """

    def __init__(
        self,
        models: Mapping[str, FakeModel],
        *,
        total: int = 1,
        first_ns: int = 1_000_000_000,
        max_ns: int = 60_000_000_000,
        inline_below_ns: int = 0,
    ) -> None:
        self.backends = list(models)
        self.first_ns = first_ns
        self.max_ns = max_ns
        self.takes_ns: Counter[str] = Counter()
        self.failures: defaultdict[str, deque[Exception | None]] = defaultdict(deque)
        self.hurried: list[bool] = []
        self.made: Counter[str] = Counter()
        self.forgotten: Counter[str] = Counter()
        self._models = models
        self._total = total
        self._inline_below_ns = inline_below_ns

    def __repr__(self) -> str:
        return f"<FakeSupply {dict(self.made)}>"

    async def make(self, backend: str, index: int, *, hurry: bool) -> FakeInstance:
        """See `Supply`."""
        self.hurried.append(hurry)
        if self.takes_ns[backend]:
            await asyncio.sleep(self.takes_ns[backend] / 1e9)
        failures = self.failures[backend]
        if failures and (failure := failures.popleft()) is not None:
            raise failure
        self.made[backend] += 1
        return self._models[backend].make_instance(index)

    def total(self, backend: str) -> int:
        """See `Supply`."""
        return self._total

    def cost_model(self, backend: str) -> CostModel:
        """See `Supply`."""
        return cost_model(ModelConfig(), self._models[backend].signature, self._inline_below_ns)

    def forget(self, backend: str) -> None:
        """See `Supply`."""
        self.forgotten[backend] += 1
