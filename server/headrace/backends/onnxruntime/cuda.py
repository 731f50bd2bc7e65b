"""ONNX Runtime's CUDA provider: `backend = "onnxruntime-cuda"`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.backends.onnxruntime.gpu import GpuModel
from headrace.backends.onnxruntime.gpu_options import CUDA, CudaOptions, cuda_provider
from headrace.backends.onnxruntime.sessions import find_file, read_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from headrace.backends.device import Device
    from headrace.backends.onnxruntime.gpu import Providers
    from headrace.messages import Signature


class OnnxRuntimeCudaBackend:
    """Opens ONNX files with ONNX Runtime's CUDA execution provider. for_tests: see `GpuModel`."""

    def __init__(self, **for_tests: Any) -> None:  # noqa: ANN401
        self._for_tests = for_tests

    def load(self, path: Path, *, max_batch: int | None, threads: int, options: Mapping[str, Any]) -> GpuModel:
        """See `backends.base.Backend`."""
        checked = read_options(CudaOptions, options)

        def providers(signature: Signature, buckets: Sequence[int]) -> Providers:
            def make(device: Device, stream: int) -> list[tuple[str, dict[str, str]]]:
                return [(CUDA, cuda_provider(checked, device.index, stream))]

            return make

        return GpuModel(find_file(path, checked), max_batch, threads, checked, CUDA, providers, **self._for_tests)
