"""A `Condition` as the test wants it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class FakeCondition:
    """See `engine.served.Condition`."""

    usable: int = 1
    note: str = ""
    backend: str = "onnxruntime"

    def count(self) -> dict[tuple[str, str], int]:
        """See `engine.served.Condition`."""
        return {(self.backend, "idle"): self.usable}
