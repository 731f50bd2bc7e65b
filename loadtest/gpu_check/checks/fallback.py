"""A list of backends: the first that works here serves, and the server says who does."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from time import sleep
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
LOST, INSTEAD = "onnxruntime-cuda", "onnxruntime-cpu"
FAULTING = "gpu_check.faulting:FaultingBackend"
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
        text = serving.metrics(server.http)
    return {"error": error, **judged(text, wanted(CHAIN, cpu=context.cpu, tensorrt=importable("tensorrt")))}


@check("fallback-lost-device", needs=(*SERVER, "cuda.bindings"), seconds=15)
def fallback_lost_device(context: Context) -> Figures:
    """A GPU is lost under load: the processor takes over, each request has the right answer, and the server says so."""
    import numpy as np

    from gpu_check import serving
    from gpu_check.faulting import FATAL

    name, output = "resnet50-fp32", "scores"
    repository = context.scratch / "repository"
    how = (
        f'backend = ["{LOST}", "{INSTEAD}"]\nmax_batch = 8\n[backend_options."{LOST}"]\ndevices = [{context.device}]\n'
    )
    serving.write_model(repository, name, context.model(name), how)
    backend = f'backend = "{FAULTING}"\n[backend_options]\ndevice = {context.device}\n'
    serving.write_model(repository, "faulting", context.model(name), backend)
    payloads = serving.payloads_of(context, name, output)
    fatal = serving.request("faulting", {"x": np.full((1, 1), FATAL, np.float32)}, ("y",))
    with serving.serving(repository, context.scratch) as server, ThreadPoolExecutor(1) as pool:
        before = serving.load(server, name, payloads, processes=1, in_flight=8, seconds=context.seconds / 3)

        def break_it() -> None:
            sleep(context.seconds / 3)
            serving.ask(server.address, fatal)

        broken = pool.submit(break_it)
        during = serving.load(server, name, payloads, processes=1, in_flight=8, seconds=context.seconds)
        broken.result()
        figures = lost(serving.metrics(server.http), name) | {
            "rows_per_second_before": before["requests_per_second"],
            "rows_per_second_during": during["requests_per_second"],
            "p99_us_during": during["p99_us"],
            "error": during["error"],
        }
        if not serving.is_ready(server, name):
            raise Failed("the model is not ready any more, though the processor serves it", figures)
    return figures


def lost(text: str, model: str) -> dict[str, object]:
    """What /metrics says of a model that has lost its GPU. Raises Failed where it should say something else."""
    names = ("headrace_instances_lost_total", "headrace_rerun_requests_total", "nv_inference_request_failure")
    counts = {
        name: sum(map(float, re.findall(rf'^{name}\{{[^}}]*model="{model}".*\}} (\S+)$', text, re.MULTILINE)))
        for name in names
    }
    serving = re.findall(rf'^headrace_backend_info\{{backend="([^"]*)",model="{model}".*\}} 1\.0$', text, re.MULTILINE)
    figures: dict[str, object] = {**counts, "serving": serving}
    instances, rerun, failed = counts.values()
    if not (instances and rerun) or failed or serving != [INSTEAD]:
        raise Failed(
            f"expected instances lost, requests run again, none failed, and {[INSTEAD]} to serve; found {figures}",
            figures,
        )
    return figures


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
