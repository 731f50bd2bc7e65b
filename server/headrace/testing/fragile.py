"""Backends whose device can be taken away while a server runs: a chain can be tried out without a GPU.

What happens is said by files in the version's directory, named after the backend. For `First`:

- `first.absent`: it cannot be loaded.
- `first.broken`: a run fails, and the instance goes on.
- `first.lost`: a run finds its instance lost.
- `first.all-lost`: and the others of the backend with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from headrace.backends.base import InstanceLost
from headrace.errors import ModelLoadError
from headrace.messages import Signature, TensorSpec
from headrace.testing.backend import FakeModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    Array = np.ndarray[Any, Any]


class FragileBackend:
    """x FP32 [N, 2] -> y = 2 x.

    Options: `add`, which makes each result wrong by so much; `executors` per instance; `inline`, see `LoadedModel`.
    """

    name: ClassVar[str]

    def load(self, path: Path, *, max_batch: int | None, threads: int, options: Mapping[str, Any]) -> FakeModel:
        """See `backends.base.Backend`."""
        if (path / f"{self.name}.absent").exists():
            raise ModelLoadError("there is no such device")

        def compute(inputs: list[Array]) -> Sequence[Array]:
            if (path / f"{self.name}.broken").exists():
                raise RuntimeError("the device refuses")
            for what in ("lost", "all-lost"):
                if (path / f"{self.name}.{what}").exists():
                    raise InstanceLost("the device is lost", with_others=what == "all-lost")
            return [2 * inputs[0] + inputs[0].dtype.type(options.get("add", 0))]

        x, y = (TensorSpec(name, "FP32", (2,)) for name in "xy")
        model = FakeModel(Signature((x,), (y,), 8 if max_batch is None else max_batch), compute)
        model.executors_per_instance = options.get("executors", 1)
        model.inline = options.get("inline", True)
        return model


class First(FragileBackend):
    """`backend = "headrace.testing.fragile:First"`."""

    name = "first"


class Second(FragileBackend):
    """Another, for a longer chain."""

    name = "second"
