"""What a translation has to tell the operator."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Notes:
    """What is wrong and what is ignored: a line each, which begins with the field that says it."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def wrong(self, where: str, what: str) -> None:
        """The model cannot be served so."""
        self.problems.append(f"{where}: {what}")

    def ignored(self, where: str, why: str) -> None:
        """Something has no effect, or another than in Triton."""
        self.warnings.append(f"{where}: {why}")
