"""The server's own backends, as it would load them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpu_check.registry import check

if TYPE_CHECKING:
    from gpu_check.context import Context
    from gpu_check.registry import Figures

BACKEND = ("numpy", "onnx", "onnxruntime", "pydantic")
MAX_BATCH = 8


@check("backend-onnxruntime", needs=BACKEND, seconds=10, on_cpu=True)
def backend_onnxruntime(context: Context) -> Figures:
    """The backend `onnxruntime`, which runs on the processor."""
    return through_registry(context, "onnxruntime")


@check("backend-onnxruntime-cuda", needs=BACKEND, seconds=20)
def backend_onnxruntime_cuda(context: Context) -> Figures:
    """The backend `onnxruntime-cuda` loads models and agrees with the CPU at several batch sizes."""
    return through_registry(context, "onnxruntime-cuda")


@check("backend-cuda-graphs", needs=BACKEND, seconds=15)
def backend_cuda_graphs(context: Context) -> Figures:
    """CUDA graphs of several batch sizes, by turns: those that were recorded later cost the others nothing."""
    return through_registry(context, "onnxruntime-cuda", cuda_graphs=True, batch_buckets=[1, 4, MAX_BATCH])


@check("backend-onnxruntime-tensorrt", needs=(*BACKEND, "tensorrt"), seconds=60)
def backend_onnxruntime_tensorrt(context: Context) -> Figures:
    """The backend `onnxruntime-tensorrt` loads models and agrees with the CPU at several batch sizes."""
    return through_registry(context, "onnxruntime-tensorrt")


@check("backend-tensorrt", needs=(*BACKEND, "tensorrt"), seconds=120)
def backend_tensorrt(context: Context) -> Figures:
    """The backend `tensorrt` loads models and agrees with the CPU at several batch sizes."""
    return through_registry(context, "tensorrt")


def through_registry(context: Context, backend: str, **options: Any) -> Figures:  # noqa: ANN401
    """Loads a ResNet in FP32 with this backend, runs batches of one and more requests, and compares their outputs."""
    from gpu_check.agreement import checked
    from gpu_check.loaded import Loaded
    from gpu_check.sessions import on_cpu

    name, output = "resnet50-fp32", "scores"
    feeds = context.sizes.feeds(name, MAX_BATCH)
    with Loaded(context, backend, name, output, MAX_BATCH, **options) as model:
        (want,) = on_cpu(context.model(name), feeds, [output])
        figures: dict[str, object] = {"platform": model.platform}
        for requests in ([1], [1, 2], [MAX_BATCH], [1] * MAX_BATCH, [1, 1]):
            rows = sum(requests)
            what = f"{rows} rows in {len(requests)} requests"
            # TF32 is the operator's choice, so it may be on.
            figures[f"error, {what}"] = checked(model.run(feeds, requests), want[:rows], "fp16", what, figures)
    return figures
