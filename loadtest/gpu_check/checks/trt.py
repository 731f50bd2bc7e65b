"""TensorRT itself: that it is there, builds, and computes what the CPU computes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from gpu_check.registry import Failed, check

if TYPE_CHECKING:
    import numpy as np

    from gpu_check.context import Context
    from gpu_check.registry import Figures

BATCH = 8


@check("tensorrt", needs=("numpy", "onnx", "onnxruntime", "tensorrt"), seconds=60)
def tensorrt(context: Context) -> Figures:
    """TensorRT parses, builds, loads and runs a model, and agrees with the CPU; TF32 off."""
    import tensorrt as trt

    from gpu_check.agreement import checked
    from gpu_check.sessions import on_cpu
    from gpu_check.small_models import floats, perceptron

    model, x = perceptron(), floats(BATCH, 1024)
    log = _log(trt)
    began = time.monotonic()
    plan = _plan(trt, log, model)
    built = time.monotonic() - began
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise Failed(f"the plan cannot be loaded: {log.errors}")
    found = checked(_run(engine, x, context.device), on_cpu(model, {"x": x})[0], "fp32")
    return {"tensorrt": trt.__version__, "build_s": built, "plan_octets": len(plan), "error": found}


def _log(trt: Any) -> Any:  # noqa: ANN401 - a module without types
    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: object, text: str) -> None:
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                self.errors.append(text)

    return Log()


def _plan(trt: Any, log: Any, model: bytes) -> bytes:  # noqa: ANN401 - a module without types
    builder = trt.Builder(log)
    flags = 0
    if int(trt.__version__.split(".")[0]) == 10:  # always so from 11 on
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        raise Failed(
            "the model cannot be parsed", {"errors": [str(parser.get_error(i)) for i in range(parser.num_errors)]}
        )
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 1024), (BATCH, 1024), (BATCH, 1024))
    if config.add_optimization_profile(profile) < 0:
        raise Failed("the profile was refused", {"errors": log.errors})
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Failed("nothing was built", {"errors": log.errors})
    return bytes(plan)


def _run(engine: Any, x: np.ndarray[Any, Any], device: int) -> np.ndarray[Any, Any]:  # noqa: ANN401 - a module without types
    import numpy as np

    from gpu_check.cudart import Cuda

    with Cuda(device) as cuda:
        stream = cuda.stream()
        context = engine.create_execution_context()
        places = {"x": cuda.memory(x.nbytes), "y": cuda.memory(x.nbytes)}
        sent, received = cuda.pinned(x.shape, np.float32), cuda.pinned(x.shape, np.float32)
        sent[:], received[:] = x, np.nan
        context.set_input_shape("x", x.shape)
        for name, place in places.items():
            context.set_tensor_address(name, place)
        if unspecified := context.infer_shapes():
            raise Failed(f"shapes of {unspecified} are not known")
        cuda.upload(places["x"], sent, stream)
        if not context.execute_async_v3(stream):
            raise Failed("execute_async_v3 refused to run")
        cuda.download(received, places["y"], stream)
        cuda.wait(stream)
        return received.copy()
