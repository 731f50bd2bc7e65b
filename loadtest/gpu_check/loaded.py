"""A model behind one of the server's own backends, without the server."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from gpu_check.registry import Skip

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from gpu_check.context import Context

    Array = np.ndarray[Any, Any]


def known(backend: str) -> str:
    """The name. Raises Skip where the registry does not know it."""
    from headrace.backends.registry import BACKENDS

    if backend not in BACKENDS:
        raise Skip(f"this revision has no backend {backend!r}; there are {', '.join(sorted(BACKENDS))}")
    return backend


def options_of(context: Context, backend: str) -> dict[str, Any]:
    """What `[backend_options]` must say for a backend to be on the GPU that is asked for."""
    on_gpus = ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt")
    return {"devices": [context.device]} if backend in on_gpus else {}


class Loaded:
    """One instance of a model of speed_models, and one output of it. A context manager. Raises Skip as `known` does.

    forms: what the model is told of its rows, see `TakesForms`. options: of the backend, as `[backend_options]` has
    them. lanes: the batches that the instance can have in flight.
    """

    def __init__(
        self,
        context: Context,
        backend: str,
        name: str,
        output: str,
        max_batch: int,
        *,
        forms: Sequence[Sequence[tuple[int, ...]]] = (),
        **options: Any,  # noqa: ANN401
    ) -> None:
        from headrace.backends import registry
        from headrace.backends.base import TakesForms

        entry = registry.get(known(backend))
        version = context.scratch / f"{backend}-{name}-{max_batch}-{len(list(context.scratch.iterdir()))}" / "1"
        version.mkdir(parents=True)
        (version / "model.onnx").symlink_to(context.model(name).resolve())
        model = entry.load(version, max_batch=max_batch, threads=0, options=options_of(context, backend) | options)
        if forms and isinstance(model, TakesForms):
            model.take_forms(forms)
        self.platform = model.platform
        self._inputs = [spec.name for spec in model.signature.inputs]
        self._output = [spec.name for spec in model.signature.outputs].index(output)
        self._instances = [model.make_instance(lane) for lane in range(model.executors_per_instance)]

    @property
    def lanes(self) -> range:
        """By their numbers."""
        return range(len(self._instances))

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *error: object) -> None:
        with ExitStack() as stack:
            for instance in self._instances:
                stack.enter_context(closing(instance))

    def prepared(self, feeds: Mapping[str, Array], requests: Sequence[int] = (), lane: int = 0) -> Callable[[], Array]:
        """What runs the first rows of `feeds`, as requests of so many rows each; by default all in one request."""
        requests = requests or [len(feeds[self._inputs[0]])]
        rows = sum(requests)
        starts = [sum(requests[:index]) for index in range(len(requests))]
        parts = [
            [memoryview(feeds[name][at : at + size].tobytes()) for at, size in zip(starts, requests, strict=True)]
            for name in self._inputs
        ]
        shapes = [(rows, *feeds[name].shape[1:]) for name in self._inputs]
        return lambda: self._instances[lane].run(parts, shapes, [self._output])[0]

    def run(self, feeds: Mapping[str, Array], requests: Sequence[int] = ()) -> Array:
        """The output for these rows. It holds good until the next run."""
        return self.prepared(feeds, requests)()
