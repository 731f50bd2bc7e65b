"""ONNX Runtime sessions that are where they are said to be, and bindings of their inputs and outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from gpu_check.registry import Failed, Skip

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from gpu_check.context import Context

    Array = np.ndarray[Any, Any]

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
EXACT = {"use_tf32": "0"}
"""For what is compared in FP32. Not for FP16: what it rules out are kernels of tensor cores, which FP16 needs too."""


def opened(model: Path | bytes, context: Context, **options: str) -> ort.InferenceSession:
    """A session on the GPU, or on the processor for a run without one. options: of the CUDA provider.

    Kernels of convolutions are chosen as the server's backend has it, unless `options` says otherwise. Raises Skip
    where ONNX Runtime was built without CUDA, and Failed where the model would not run on the GPU: by itself ONNX
    Runtime says so in its log and runs it elsewhere, and its Python class makes another session on the processor when a
    run fails.
    """
    from headrace.backends.onnxruntime.placement import NOT_FOR_GPUS

    ort.set_default_logger_severity(3)
    source = model if isinstance(model, bytes) else str(model)
    settings = ort.SessionOptions()
    if context.cpu:
        settings.intra_op_num_threads = 1
        return ort.InferenceSession(source, settings, providers=[CPU])
    if CUDA not in ort.get_available_providers():
        raise Skip(f"onnxruntime {ort.__version__} was built without CUDA: onnxruntime-gpu is needed")
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    told = {"device_id": str(context.device), "cudnn_conv_algo_search": "HEURISTIC", **options}
    provider = (CUDA, told)
    more = {"enable_fallback": 0, "disabled_optimizers": NOT_FOR_GPUS}
    try:
        session = ort.InferenceSession(source, settings, providers=[provider], **more)
    except Exception as error:  # of the module's own classes, which have no base but this
        if "fallback" not in str(error):
            raise
        # Nodes that only compute shapes belong on the processor; without the entry ONNX Runtime puts them there.
        session = ort.InferenceSession(source, providers=[provider, CPU], **more)
    if session.get_providers()[0] != CUDA:
        raise Failed(f"the session runs on {session.get_providers()[0]}, expected {CUDA}")
    return session


def as_served(context: Context, *, nhwc: bool = False) -> dict[str, str]:
    """Options of the CUDA provider as the server's backend has them where nobody asks for others, its stream apart."""
    from headrace.backends.onnxruntime.gpu_options import CudaOptions, cuda_provider

    options = cuda_provider(CudaOptions(prefer_nhwc=nhwc), context.device, stream=0)
    del options["user_compute_stream"]
    return options


def on_cpu(model: Path | bytes, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
    """The reference: outputs (all) of the model on the CPU provider."""
    source = model if isinstance(model, bytes) else str(model)
    found: list[Array] = ort.InferenceSession(source, providers=[CPU]).run(outputs, dict(feeds))
    return found


class Bound:
    """A session with inputs and one output in the device's memory; the input's place never changes."""

    def __init__(
        self, session: ort.InferenceSession, feeds: Mapping[str, Array], output: str, context: Context
    ) -> None:
        self._session = session
        device, number = ("cpu", 0) if context.cpu else ("cuda", context.device)
        self._binding = session.io_binding()
        self._options = ort.RunOptions()
        self._inputs = {name: ort.OrtValue.ortvalue_from_numpy(array, device, number) for name, array in feeds.items()}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        # Run once to learn the output's shape, which then has a place of its own: a graph needs one. -1: none yet.
        plain = ort.RunOptions()
        plain.add_run_config_entry("gpu_graph_id", "-1")
        (first,) = session.run([output], dict(feeds), plain)
        self._output = ort.OrtValue.ortvalue_from_shape_and_type(first.shape, first.dtype, device, number)
        self._binding.bind_ortvalue_output(output, self._output)

    def graph(self, number: int) -> None:
        """From now on runs are those of a CUDA graph with this number, captured in the first ones."""
        self._options.add_run_config_entry("gpu_graph_id", str(number))

    def run(self) -> None:
        """One run, to its end."""
        self._session.run_with_iobinding(self._binding, self._options)

    def update(self, feeds: Mapping[str, Array]) -> None:
        """Other inputs of the same shapes, in the same place."""
        for name, array in feeds.items():
            self._inputs[name].update_inplace(array)

    def output(self) -> Array:
        """A copy of the last run's output."""
        found: Array = self._output.numpy()
        return found
