"""A list of backends: the first that works here serves, and the server says who does."""

from __future__ import annotations

import re
import urllib.request
from typing import TYPE_CHECKING

from gpu_check.loaded import options_of
from gpu_check.modules import importable
from gpu_check.registry import Failed, check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpu_check.context import Context
    from gpu_check.registry import Figures

CHAIN = ("nowhere.to_be_found:Backend", "tensorrt", "onnxruntime-cuda", "onnxruntime-cpu")
"""The first one is never there."""
SERVER = ("numpy", "onnx", "onnxruntime", "google.protobuf", "grpc", "grpc_reflection", "httptools", "orjson",
          "prometheus_client", "pydantic", "starlette", "uvicorn")  # fmt: skip


@check("fallback", needs=SERVER, seconds=25, on_cpu=True)
def fallback(context: Context) -> Figures:
    """Of TensorRT, ONNX Runtime on the GPU and on the processor, the first that works serves, and replies are right."""
    from gpu_check import serving
    from gpu_check.agreement import checked
    from gpu_check.sessions import on_cpu

    name, output = "resnet50-fp32", "scores"
    repository = context.scratch / "repository"
    listed = ", ".join(f'"{backend}"' for backend in CHAIN)
    options = "".join(
        f"[backend_options.{backend}]\n{key} = {value}\n"
        for backend in CHAIN
        for key, value in options_of(context, backend).items()
    )
    serving.write_model(repository, name, context.model(name), f"backend = [{listed}]\nmax_batch = 8\n{options}")
    feeds = context.sizes.feeds(name, 4)
    (want,) = on_cpu(context.model(name), feeds, [output])
    with serving.serving(repository, context.scratch) as server:
        error = checked(serving.ask(server.address, serving.request(name, feeds, (output,))), want, "fp16", "a reply")
        with urllib.request.urlopen(f"{server.http}/metrics", timeout=10) as reply:
            text = reply.read().decode()
    return {"error": error, **judged(text, wanted(CHAIN, cpu=context.cpu, tensorrt=importable("tensorrt")))}


def wanted(chain: Sequence[str], *, cpu: bool, tensorrt: bool) -> str:
    """Who has to serve: the first of the chain that this machine has what it needs for."""
    able = {"onnxruntime-cpu": True, "onnxruntime-cuda": not cpu, "tensorrt": tensorrt and not cpu}
    return next(backend for backend in chain if able.get(backend, False))


def judged(metrics: str, backend: str) -> Figures:
    """Who serves, and who was passed over why, from /metrics. Raises Failed unless `backend` alone serves."""
    serving = re.findall(r'^headrace_backend_info\{.*backend="([^"]*)".*\} 1\.0$', metrics, re.MULTILINE)
    passed = re.findall(r"^headrace_backend_fallbacks_total\{(.*)\} (\S+)$", metrics, re.MULTILINE)
    figures = {"serving": serving, "passed_over": {labels: float(count) for labels, count in passed}}
    if serving != [backend]:
        raise Failed(f"{serving} serves, expected {[backend]}", figures)
    return figures
