"""What the precisions cost in accuracy on the GPU, against FP32 on the CPU; and what ONNX Runtime fuses there."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from gpu_check.registry import Failed, check

if TYPE_CHECKING:
    import onnxruntime

    from gpu_check.context import Context
    from gpu_check.registry import Figures

ORT = ("numpy", "onnx", "onnxruntime")
ROWS = 4
HEAVY = {"Attention", "BiasGelu", "Gemm", "MatMul", "Softmax", "LayerNormalization", "SkipLayerNormalization"}
"""Operators that have no business on the processor, other than those that compute shapes."""


@check("accuracy-resnet50", needs=ORT, seconds=20, on_cpu=True)
def accuracy_resnet50(context: Context) -> Figures:
    """ResNet-50 in FP32, FP16 and INT8, of floats and of octets, against FP32 on the CPU."""
    names = [f"resnet50-{precision}{u8}" for precision in ("fp32", "fp16", "int8") for u8 in ("", "-u8")]
    return _errors(context, "resnet50-fp32", "scores", names)


@check("accuracy-bert", needs=ORT, seconds=20, on_cpu=True)
def accuracy_bert(context: Context) -> Figures:
    """BERT-base in FP32 and FP16, with padding, against FP32 on the CPU."""
    return _errors(context, "bert-fp32", "pooler_output", ["bert-fp32", "bert-fp16"])


def _errors(context: Context, reference: str, output: str, names: list[str]) -> Figures:
    from gpu_check.agreement import BOUNDS, error
    from gpu_check.sessions import EXACT, on_cpu, opened

    (want,) = on_cpu(context.model(reference), context.sizes.feeds(reference, ROWS), [output])
    errors = {}
    for name in names:
        options = EXACT if "fp32" in name else {}
        (got,) = opened(context.model(name), context, **options).run([output], context.sizes.feeds(name, ROWS))
        errors[name] = error(got, want)
        context.say(f"{name}: error {errors[name]:.2e}")
    bad = [name for name, found in errors.items() if not found <= BOUNDS[name.split("-")[1]]]
    if bad:
        raise Failed(f"not accurate: {', '.join(bad)}; bounds: {BOUNDS}", errors)
    return errors


@check("ort-fusions", needs=ORT, seconds=8, on_cpu=True)
def ort_fusions(context: Context) -> Figures:
    """The encoder of BERT runs as fused attention, GELU and normalization; what stays on the processor."""
    import onnx
    import onnxruntime

    from gpu_check.sessions import CPU, CUDA
    from speed_models.bert import Bert

    layers = 2
    model = Bert(layers=layers, vocabulary=100).build()
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(context.scratch / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    providers = [CPU] if context.cpu else [CUDA, CPU]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers, enable_fallback=0)
    if session.get_providers()[0] != providers[0]:
        raise Failed(f"the session runs on {session.get_providers()[0]}, expected {providers[0]}")
    kinds = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    figures = {"nodes": dict(kinds), "on_processor": _on_processor(session)}
    wanted = {"Attention": layers, "BiasGelu": layers, "SkipLayerNormalization": 2 * layers}
    if unfused := [kind for kind, count in wanted.items() if kinds[kind] < count]:
        raise Failed(f"not fused in each of {layers} layers: {', '.join(unfused)}", figures)
    if not context.cpu and (strays := HEAVY & set(figures["on_processor"])):
        raise Failed(f"on the processor: {', '.join(sorted(strays))}", figures)
    return figures


def _on_processor(session: onnxruntime.InferenceSession) -> dict[str, int]:
    """How many nodes of each operator ONNX Runtime gave to its CPU provider, before they were fused there."""
    return dict(
        Counter(
            node.op_type
            for graph in session.get_provider_graph_assignment_info()
            if graph.ep_name == "CPUExecutionProvider"
            for node in graph.get_nodes()
        )
    )
