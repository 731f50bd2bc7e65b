"""What a check is given: where it may write, which models it has, how long it may measure."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from gpu_check.modules import importable
from gpu_check.registry import Skip

if TYPE_CHECKING:
    from headrace.backends.device import Device
    from speed_models.store import Sizes

ROOT = Path(__file__).parents[2]
DRAWINGS = "drawings"


@dataclass(frozen=True)
class Context:
    """scratch: a directory of the run's own. models: where built models are kept. seconds: of one measurement.

    cpu: no GPU is used, and models are tiny: to see that the checks themselves work. device: the GPU's number.
    """

    scratch: Path
    models: Path
    seconds: float = 3
    cpu: bool = False
    device: int = 0

    @property
    def sizes(self) -> Sizes:
        """Of the models."""
        from speed_models.store import TINY, Sizes

        return TINY if self.cpu else Sizes()

    def model(self, name: str) -> Path:
        """The file of a model of speed_models, built if need be. Raises Skip where it cannot be built here."""
        from speed_models.quantize import NoQuantizer
        from speed_models.store import file

        try:
            return file(name, self.models, self.sizes)
        except NoQuantizer as error:
            raise Skip(str(error)) from error

    def open_device(self) -> Device:
        """The server's own device layer on the GPU, or on the host's memory for a run without one.

        Raises Skip where cuda-bindings is missing, and ModelLoadError where the driver refuses.
        """
        if self.cpu:
            from headrace.testing.device import FakeDevice

            return cast("Device", FakeDevice())
        if not importable("cuda.bindings"):
            raise Skip("not installed: cuda.bindings (cuda-bindings)")
        from headrace.backends.device import open_device

        return open_device(self.device)

    @property
    def drawings(self) -> Path:
        """Made when it is first asked for."""
        place = self.scratch / DRAWINGS
        place.mkdir(parents=True, exist_ok=True)
        return place

    def say(self, text: str) -> None:
        """Progress."""
        print(f"    {text}", file=sys.stderr, flush=True)

    def for_check(self, name: str) -> Context:
        """The same, with a directory of the check's own."""
        scratch = self.scratch / name
        scratch.mkdir(parents=True, exist_ok=True)
        return replace(self, scratch=scratch)

    def dumps(self) -> str:
        """As JSON, for another process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def loads(cls, text: str) -> Context:
        """What `dumps` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "scratch": Path(fields["scratch"]), "models": Path(fields["models"])})
