"""How much of a model's own speed the server passes on."""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpu_check.loaded import known, options_of
from gpu_check.registry import Failed, check

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpu_check.bare import Best
    from gpu_check.context import Context
    from gpu_check.registry import Figures

ORT = ("numpy", "onnx", "onnxruntime")
SERVER = (*ORT, "google.protobuf", "grpc", "grpc_reflection", "httptools", "orjson", "prometheus_client", "pydantic",
          "starlette", "uvicorn")  # fmt: skip
SHARE_RESNET, SHARE_BERT = 0.85, 0.9
"""What the server has to reach of the model's own rows per second, at its best batch size, without a server."""
IN_FLIGHT = 4
"""Batches of requests that callers keep under way: those that the device has, and as many that wait behind them."""
LAYOUTS = ("NCHW", "NHWC")
"""Of images within ONNX Runtime, its own first. With the other one version 1.31 cannot run the model in INT8."""
_NOTHING: Mapping[str, object] = MappingProxyType({})
FEWER = (1, 8, 32)
"""Sizes of batches that are served beside the best one, each by a graph of its own."""


@check("throughput-resnet50-fp16", needs=SERVER, seconds=40, on_cpu=True)
def throughput_resnet50_fp16(context: Context) -> Figures:
    """ResNet-50 in FP16: rows/s through gRPC, of octets, against the model without a server."""
    return throughput(context, "resnet50-fp16-u8", "scores", SHARE_RESNET, graphs=True, layouts=LAYOUTS)


@check("throughput-resnet50-int8", needs=SERVER, seconds=50, on_cpu=True)
def throughput_resnet50_int8(context: Context) -> Figures:
    """ResNet-50 in INT8: rows/s through gRPC, of octets, against the model without a server."""
    return throughput(context, "resnet50-int8-u8", "scores", SHARE_RESNET, graphs=True)


@check("throughput-bert-fp16", needs=SERVER, seconds=40, on_cpu=True)
def throughput_bert_fp16(context: Context) -> Figures:
    """BERT-base in FP16, 128 tokens: rows/s through gRPC against the model without a server."""
    return throughput(context, "bert-fp16", "pooler_output", SHARE_BERT, graphs=False)


@check("throughput-resnet50-tensorrt", needs=(*SERVER, "tensorrt"), seconds=150)
def throughput_resnet50_tensorrt(context: Context) -> Figures:
    """ResNet-50 in FP16 on TensorRT: rows/s through gRPC, of octets, against the same backend without a server."""
    return throughput_of_backend(context, "tensorrt", "resnet50-fp16-u8", "scores", SHARE_RESNET)


def throughput(
    context: Context, name: str, output: str, share: float, *, graphs: bool, layouts: Sequence[str] = LAYOUTS[:1]
) -> Figures:
    """Against ONNX Runtime alone, its inputs and outputs in the device's memory.

    graphs: whether the server has any. layouts: of those that images may have, both have the one that is quicker.
    """
    from gpu_check.bare import best

    batches = _batches(context)
    bares = {
        layout: best(name, output, context, context.seconds / len(batches), batches, layout)
        for layout in layouts[: 1 if context.cpu else None]
    }
    layout, bare = max(bares.items(), key=lambda found: found[1].rate)
    more = {f"bare_{layout}_rows_per_second_by_batch": found.rates for layout, found in bares.items()}
    if context.cpu:
        return compared(context, name, output, 'backend = "onnxruntime"', bare, share, more)
    how = f'backend = "{known("onnxruntime-cuda")}"\n[backend_options]\ndevices = [{context.device}]\n'
    if layout == "NHWC":
        how += "prefer_nhwc = true\n"
    if graphs:  # without, ONNX Runtime plans convolutions anew whenever a batch has another size than the last
        how += f"cuda_graphs = true\nbatch_buckets = {sorted({*(b for b in FEWER if b < bare.batch), bare.batch})}\n"
    return compared(context, name, output, how, bare, share, more)


def throughput_of_backend(context: Context, backend: str, name: str, output: str, share: float) -> Figures:
    """Against one instance of the same backend, from the host's memory to the host's."""
    from gpu_check.bare import best_of_backend

    batches = _batches(context)
    bare = best_of_backend(backend, name, output, context, context.seconds / len(batches), batches)
    options = "".join(f"\n[backend_options]\n{key} = {value}" for key, value in options_of(context, backend).items())
    return compared(context, name, output, f'backend = "{backend}"{options}', bare, share)


def _batches(context: Context) -> tuple[int, ...]:
    from gpu_check.bare import BATCHES

    return (1, 4) if context.cpu else BATCHES


def compared(
    context: Context, name: str, output: str, how: str, bare: Best, share: float, more: Mapping[str, object] = _NOTHING
) -> Figures:
    """Both rates and their ratio. Raises Failed where it is below `share` (never for a run without a GPU).

    how: what model.toml says beside the largest batch. more: other figures of the model without a server.
    """
    alone = {
        "bare_rows_per_second": bare.rate,
        "bare_host_rows_per_second": bare.host_rate,
        "bare_batch": bare.batch,
        "bare_rows_per_second_by_batch": bare.rates,
        **more,
    }
    try:
        served = _served(context, name, output, how, bare)
    except Failed as failed:
        raise Failed(str(failed), {**alone, **failed.figures}) from failed
    ratio = served["rows_per_second"] / bare.rate
    figures = {
        "ratio": ratio,
        "ratio_to_host_memory": served["rows_per_second"] / bare.host_rate,
        **alone,
        **{f"server_{name}": value for name, value in served.items()},
    }
    if ratio < share and not context.cpu:
        raise Failed(f"{ratio:.2f} of the model's own rows/s, expected at least {share}", figures)
    return figures


def _served(context: Context, name: str, output: str, how: str, bare: Best) -> dict[str, float]:
    """Rows/s and latency of the server with requests of one row each; some replies are compared with the CPU's."""
    from gpu_check import serving

    repository = context.scratch / "repository"
    serving.write_model(repository, name, context.model(name), f"max_batch = {bare.batch}\n{how}\n")
    payloads = serving.payloads_of(context, name, output)
    cores = os.cpu_count() or 1
    workers = max(1, cores // 4)
    with serving.serving(repository, context.scratch, workers) as server:
        processes = max(1, min(8, cores // 2))
        shape = {"processes": processes, "in_flight": IN_FLIGHT * bare.batch}
        serving.load(server, name, payloads, seconds=context.seconds / 3, **shape)  # it learns what batches cost
        figures = serving.load(server, name, payloads, seconds=context.seconds, **shape)
        alone = serving.load(server, name, payloads, seconds=context.seconds / 3, processes=1, in_flight=1)
        figures |= {f"alone_{percentile}": alone[percentile] for percentile in ("p50_us", "p99_us")}
        context.say(f"{name}, server: {figures['requests_per_second']:.0f} rows/s")
    return {"rows_per_second": figures.pop("requests_per_second"), "workers": workers, **shape, **figures}
