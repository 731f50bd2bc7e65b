"""The server's own backends, as it would load them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpu_check.registry import Skip, check

if TYPE_CHECKING:
    from gpu_check.context import Context
    from gpu_check.registry import Figures

BACKEND = ("numpy", "onnx", "onnxruntime", "pydantic")
MAX_BATCH = 8


@check("backend-onnxruntime", needs=BACKEND, seconds=20, on_cpu=True)
def backend_onnxruntime(context: Context) -> Figures:
    """The backend `onnxruntime`, which runs on the processor."""
    return through_registry(context, "onnxruntime")


@check("backend-onnxruntime-cuda", needs=BACKEND, seconds=30)
def backend_onnxruntime_cuda(context: Context) -> Figures:
    """The backend `onnxruntime-cuda` loads models and agrees with the CPU at several batch sizes."""
    return through_registry(context, "onnxruntime-cuda")


@check("backend-onnxruntime-tensorrt", needs=(*BACKEND, "tensorrt"), seconds=60)
def backend_onnxruntime_tensorrt(context: Context) -> Figures:
    """The backend `onnxruntime-tensorrt` loads models and agrees with the CPU at several batch sizes."""
    return through_registry(context, "onnxruntime-tensorrt")


@check("backend-tensorrt", needs=(*BACKEND, "tensorrt"), seconds=120)
def backend_tensorrt(context: Context) -> Figures:
    """The backend `tensorrt` loads models and agrees with the CPU at several batch sizes."""
    return through_registry(context, "tensorrt")


def known_backend(name: str) -> str:
    """The name. Raises Skip where the registry does not know it."""
    from headrace.backends.registry import BACKENDS

    if name not in BACKENDS:
        raise Skip(f"this revision has no backend {name!r}; there are {', '.join(sorted(BACKENDS))}")
    return name


def through_registry(context: Context, name: str) -> Figures:
    """Loads a ResNet in FP32 with this backend, runs batches of one and more requests, and compares their outputs."""
    from gpu_check.agreement import checked
    from gpu_check.sessions import on_cpu
    from headrace.backends import registry

    backend = registry.get(known_backend(name))
    version = context.scratch / "1"
    version.mkdir()
    (version / "model.onnx").symlink_to(context.model("resnet50-fp32").resolve())
    feeds = context.sizes.feeds("resnet50-fp32", MAX_BATCH)["pixels"]
    (want,) = on_cpu(version / "model.onnx", {"pixels": feeds}, ["scores"])
    model = backend.load(version, max_batch=MAX_BATCH, threads=0, options={})
    figures: dict[str, object] = {"platform": model.platform}
    instance = model.make_instance(0)
    try:
        for requests in ([1], [1, 2], [MAX_BATCH], [1] * MAX_BATCH):
            rows = sum(requests)
            starts = [sum(requests[:index]) for index in range(len(requests))]
            parts = [memoryview(feeds[at : at + size].tobytes()) for at, size in zip(starts, requests, strict=True)]
            (got,) = instance.run([parts], [(rows, *feeds.shape[1:])], [0])
            what = f"{rows} rows in {len(requests)} requests"
            # TF32 is the operator's choice, so it may be on.
            figures[f"error, {what}"] = checked(got, want[:rows], "fp16", what)
    finally:
        instance.close()
    return figures
