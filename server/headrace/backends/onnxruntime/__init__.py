"""ONNX files, run by ONNX Runtime: on the processor (`cpu`), or on a GPU by its CUDA or its TensorRT provider.

What all three share is in `sessions` (options, opening), `signature` and `feeds`; `gpu` is what the two for GPUs share.
"""

from headrace.backends.onnxruntime.cpu import OnnxRuntimeBackend, Options

__all__ = ["OnnxRuntimeBackend", "Options"]
