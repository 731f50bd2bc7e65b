"""GPUs, as NVML sees them, and what models take of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashboards.parts import MODEL, SERVER, Query, lines, make, number

if TYPE_CHECKING:
    from dashboards.parts import Panel

BY_GPU = "{{instance}} {{gpu_uuid}}"


def text() -> str:
    """The dashboard as JSON."""

    def of(metric: str) -> str:
        return f"{metric}{{{SERVER}}}"

    used, total = of("nv_gpu_memory_used_bytes"), of("nv_gpu_memory_total_bytes")
    panels: list[Panel] = [
        number("GPUs", Query(f"count({total})"), unit="none", about="That NVML lists.", width=6),
        number("Utilization", Query(f"avg({of('nv_gpu_utilization')})"), unit="percentunit", about="Mean.", width=6),
        number("Memory", Query(f"sum({used}) / sum({total})"), unit="percentunit", about="In use.", width=6),
        number("Power", Query(f"sum({of('nv_gpu_power_usage')})"), unit="watt", about="Of all together.", width=6),
        lines(
            "Utilization",
            Query(of("nv_gpu_utilization"), BY_GPU),
            unit="percentunit",
            about="Share of time in which a kernel ran, which is not how full the GPU was.",
            top=1,
        ),
        lines("Memory in use", Query(used, BY_GPU), unit="bytes", about="By all processes."),
        lines("Share of memory", Query(f"{used} / {total}", BY_GPU), unit="percentunit", about="Of each GPU.", top=1),
        lines(
            "Power",
            Query(of("nv_gpu_power_usage"), BY_GPU),
            Query(of("nv_gpu_power_limit"), BY_GPU + " limit"),
            unit="watt",
            about="And the limit in force.",
        ),
        lines(
            "Energy a request",
            Query(
                f"sum by (instance) (rate({of('nv_energy_consumption')}[$__rate_interval])) / "
                f"(sum by (instance) (rate({of('headrace_request_seconds_count')}[$__rate_interval])) > 0)",
                "{{instance}}",
            ),
            unit="joule",
            about="Of all GPUs of a server, for all of its requests.",
        ),
        lines(
            "Memory of models",
            Query(f"headrace_model_memory_bytes{{{MODEL}}}", "{{instance}} {{model}} {{version}} {{device}}"),
            unit="bytes",
            about="What loading a model was measured to take.",
        ),
        lines(
            "Nodes by provider",
            Query(f"sum by (model, version, provider) (headrace_model_nodes{{{MODEL}}})",
                  "{{model}} {{version}} {{provider}}"),
            unit="none",
            about="Of ONNX graphs: nodes that do not run on the GPU copy their tensors there and back.",
        ),
    ]  # fmt: skip
    return make("headrace-gpu", "Headrace / GPU", "GPUs, and what models take of them.", panels)
