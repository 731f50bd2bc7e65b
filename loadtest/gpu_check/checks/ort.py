"""ONNX Runtime's CUDA provider: that it is really used, that it is right, and which of its ways of running work."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from gpu_check.registry import Failed, check

if TYPE_CHECKING:
    from gpu_check.context import Context
    from gpu_check.registry import Figures

ORT = ("numpy", "onnx", "onnxruntime")
BATCH = 8


@check("ort-cuda", needs=ORT, seconds=8, on_cpu=True)
def ort_cuda(context: Context) -> Figures:
    """Matrix products and convolutions run on the GPU and agree with the CPU; TF32 off."""
    import onnxruntime

    from gpu_check.agreement import BOUNDS, error
    from gpu_check.sessions import EXACT, on_cpu, opened
    from gpu_check.small_models import convolution, floats, perceptron

    figures: dict[str, object] = {
        "onnxruntime": onnxruntime.__version__,
        "cuda": getattr(onnxruntime, "cuda_version", ""),
    }
    mlp, images = {"x": floats(BATCH, 1024)}, {"x": floats(2, 3, 64, 64)}
    bad = []
    for what, model, feeds in (("gemm", perceptron(), mlp), ("conv", convolution(), images)):
        session = opened(model, context, **EXACT)
        figures[f"{what}_error"] = found = error(session.run(None, feeds)[0], on_cpu(model, feeds)[0])
        figures["provider_options"] = session.get_provider_options()
        bad += [] if found <= BOUNDS["fp32"] else [f"{what}: error {found:.3g}"]
    if bad:
        raise Failed(f"{', '.join(bad)}; expected at most {BOUNDS['fp32']}", figures)
    return figures


@check("ort-iobinding", needs=ORT, seconds=5, on_cpu=True)
def ort_iobinding(context: Context) -> Figures:
    """A run with inputs and outputs in the GPU's memory, which are changed in place."""
    return _bound(context, graph=False)


@check("ort-cuda-graph", needs=ORT, seconds=5)
def ort_cuda_graph(context: Context) -> Figures:
    """A CUDA graph is captured, replayed, and sees inputs that are changed in place."""
    return _bound(context, graph=True)


def _bound(context: Context, *, graph: bool) -> Figures:
    from gpu_check.agreement import checked
    from gpu_check.bare import latency_us
    from gpu_check.sessions import EXACT, Bound, on_cpu, opened
    from gpu_check.small_models import floats, perceptron

    model = perceptron()
    options = {"enable_cuda_graph": "1"} if graph else {}
    bound = Bound(opened(model, context, **EXACT, **options), {"x": floats(BATCH, 1024)}, "y", context)
    if graph:
        bound.graph(1)
    for _ in range(5):  # a graph is captured after two ordinary runs, then replayed
        bound.run()
    fresh = {"x": floats(BATCH, 1024, seed=7)}
    bound.update(fresh)
    bound.run()
    found = checked(bound.output(), on_cpu(model, fresh)[0], "fp32")
    return {"error": found, **latency_us(bound.run, min(context.seconds, 1))}


@check("ort-user-stream", needs=ORT, seconds=5)
def ort_user_stream(context: Context) -> Figures:
    """A run on a stream of the server's own, with memory of its own, that ends when the stream says so."""
    import numpy as np
    import onnxruntime

    from gpu_check.agreement import checked
    from gpu_check.sessions import EXACT, on_cpu, opened
    from gpu_check.small_models import floats, perceptron
    from headrace.backends.staging import Lane
    from headrace.messages import TensorSpec

    model, feeds = perceptron(), floats(BATCH, 1024)
    with closing(Lane(context.open_device(), [feeds.nbytes], [feeds.nbytes])) as lane:
        session = opened(model, context, user_compute_stream=str(lane.stream.handle), **EXACT)
        binding, options = session.io_binding(), onnxruntime.RunOptions()
        binding.bind_input("x", "cuda", context.device, np.float32, feeds.shape, lane.inputs[0].pointer)
        binding.bind_output("y", "cuda", context.device, np.float32, feeds.shape, lane.outputs[0].pointer)
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        lane.lay(0, [memoryview(feeds.tobytes())], feeds.nbytes)
        lane.upload(0, feeds.nbytes)
        session.run_with_iobinding(binding, options)
        lane.download(0, feeds.nbytes)
        lane.stream.synchronize()
        got = lane.result(0, TensorSpec("y", "FP32", feeds.shape[1:]), feeds.shape)
        return {"error": checked(got, on_cpu(model, {"x": feeds})[0], "fp32")}
