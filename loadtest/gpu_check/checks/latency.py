"""What a single row takes, with and without a CUDA graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpu_check.registry import Failed, check

if TYPE_CHECKING:
    from gpu_check.context import Context
    from gpu_check.registry import Figures

ORT = ("numpy", "onnx", "onnxruntime")


BACKEND = (*ORT, "pydantic")


@check("latency-resnet50-fp16", needs=ORT, seconds=10, on_cpu=True)
def latency_resnet50_fp16(context: Context) -> Figures:
    """One row of ResNet-50 in FP16 on ONNX Runtime alone, with and without a CUDA graph."""
    return _latency(context, "resnet50-fp16-u8", "scores")


@check("latency-bert-fp16", needs=ORT, seconds=10, on_cpu=True)
def latency_bert_fp16(context: Context) -> Figures:
    """One row of 128 tokens of BERT-base in FP16 on ONNX Runtime alone, with and without a CUDA graph."""
    return _latency(context, "bert-fp16", "pooler_output")


@check("latency-backend-resnet50-fp16", needs=BACKEND, seconds=15, on_cpu=True)
def latency_backend_resnet50_fp16(context: Context) -> Figures:
    """One row of ResNet-50 in FP16 through the server's backend, host to host, with and without a CUDA graph.

    And with one that is waited for on a core of its own.
    """
    from gpu_check.agreement import checked
    from gpu_check.bare import latency_us
    from gpu_check.loaded import Loaded
    from gpu_check.sessions import on_cpu

    name, output = "resnet50-fp16-u8", "scores"
    feeds, fresh = context.sizes.feeds(name, 1), context.sizes.feeds(name, 1, seed=9)
    (want,) = on_cpu(context.model(name), fresh, [output])
    backend = "onnxruntime" if context.cpu else "onnxruntime-cuda"
    ways: dict[str, dict[str, Any]] = {"plain": {}} if context.cpu else {
        "plain": {"cuda_graphs": False}, "graph": {"cuda_graphs": True},
        "graph_busy_wait": {"cuda_graphs": True, "busy_wait": True}}  # fmt: skip
    figures: dict[str, object] = {}
    for way, options in ways.items():
        with Loaded(context, backend, name, output, 1, **options) as model:
            took = latency_us(model.prepared(feeds), context.seconds / 2)
            figures |= {f"{way}_{key}": value for key, value in took.items()}
            what = f"{way}, with other inputs"
            figures[f"{way}_error"] = checked(model.run(fresh), want, "fp16", what, figures)
    return judged(figures)


@check("latency-backend-bert-fp16", needs=BACKEND, seconds=15, on_cpu=True)
def latency_backend_bert_fp16(context: Context) -> Figures:
    """One row of BERT-base in FP16 through the server's backend, host to host, with and without CUDA graphs.

    Graphs are of the two lengths that the model has been told of, as by buckets; a row of each, and its output.
    """
    from gpu_check.agreement import checked
    from gpu_check.bare import latency_us
    from gpu_check.loaded import Loaded
    from gpu_check.sessions import on_cpu

    name, output, longest = "bert-fp16", "pooler_output", context.sizes.tokens
    forms = [[(tokens,), (tokens,)] for tokens in (longest, longest // 4)]
    backend = "onnxruntime" if context.cpu else "onnxruntime-cuda"
    graphs = {"plain": {"cuda_graphs": False}, "graph": {"cuda_graphs": True}}
    ways: dict[str, dict[str, Any]] = {"plain": {}} if context.cpu else graphs
    figures: dict[str, object] = {}
    for way, options in ways.items():
        with Loaded(context, backend, name, output, 4, forms=forms, **options) as model:
            for ((tokens,), _), prefix in zip(forms, (way, f"{way}_short"), strict=True):
                feeds, fresh = (
                    {key: array[:, :tokens].copy() for key, array in context.sizes.feeds(name, 1, seed).items()}
                    for seed in (1, 9)
                )
                took = latency_us(model.prepared(feeds), context.seconds / 4)
                figures |= {f"{prefix}_{key}": value for key, value in took.items()}
                (want,) = on_cpu(context.model(name), fresh, [output])
                what = f"{way}, {tokens} tokens, with other inputs"
                figures[f"{prefix}_error"] = checked(model.run(fresh), want, "fp16", what, figures)
    return judged(figures)


def _latency(context: Context, name: str, output: str) -> Figures:
    """p50 and p99 of both ways; the graph's output after its input was changed must be right."""
    from gpu_check.agreement import checked
    from gpu_check.bare import latency_us
    from gpu_check.sessions import Bound, on_cpu, opened

    feeds, fresh = context.sizes.feeds(name, 1), context.sizes.feeds(name, 1, seed=9)
    (want,) = on_cpu(context.model(name), fresh, [output])
    figures: dict[str, object] = {}
    for way, options in (("plain", {}), ("graph", {"enable_cuda_graph": "1"})):
        if context.cpu and options:
            continue
        bound = Bound(opened(context.model(name), context, **options), feeds, output, context)
        if options:
            bound.graph(1)
        figures |= {f"{way}_{key}": value for key, value in latency_us(bound.run, context.seconds / 2).items()}
        bound.update(fresh)
        bound.run()
        what = f"{way}, with other inputs"
        figures[f"{way}_error"] = checked(bound.output(), want, "fp16", what, figures)
    return judged(figures)


def judged(figures: dict[str, object]) -> Figures:
    """The figures. Raises Failed where the graph is no quicker than what it was recorded of."""
    plain, graph = (figures.get(f"{way}_p50_us") for way in ("plain", "graph"))
    if isinstance(graph, float) and isinstance(plain, float) and not graph < plain:
        raise Failed(f"{graph:.0f} us with a graph, expected less than the {plain:.0f} us without", figures)
    return figures
