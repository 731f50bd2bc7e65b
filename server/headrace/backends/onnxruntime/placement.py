"""Where ONNX Runtime has put the nodes of a model's graph, and whether that is where they were asked to be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

CPU = "CPUExecutionProvider"
RECORD = "session.record_ep_graph_assignment_info"
"""The session option that has ONNX Runtime remember it (1.24 and later)."""

NOT_FOR_GPUS = ("WeightBiasQuantization",)
"""Optimisers of ONNX Runtime that are switched off for GPUs. This one (1.31) gives biases that are in FP32 to the
processor: as INT32 behind a DequantizeLinear, which CUDA has no kernel for, and TensorRT's parser no place. Each run
would fetch every bias, and none could be recorded."""


class AssignedNode(Protocol):
    """As ONNX Runtime tells of a node."""

    op_type: str


class AssignedSubgraph(Protocol):
    """As ONNX Runtime tells of nodes that one provider runs; of one that compiles, many."""

    ep_name: str

    def get_nodes(self) -> Sequence[AssignedNode]:
        """All of them."""
        ...


@dataclass(frozen=True, slots=True)
class Placement:
    """How many nodes each provider has, by the kind of node. As they were before the last optimisations."""

    nodes: Mapping[str, Mapping[str, int]]

    @property
    def counts(self) -> dict[str, int]:
        """Nodes by provider."""
        return {provider: sum(kinds.values()) for provider, kinds in sorted(self.nodes.items())}

    def __str__(self) -> str:
        total = sum(self.counts.values())
        texts = []
        for provider, count in sorted(self.counts.items(), key=lambda pair: (pair[0] == CPU, -pair[1])):
            kinds = f" ({_listed(self.nodes[provider])})" if provider == CPU else ""
            texts.append(f"{count} by {provider}{kinds}")
        return f"of {total} nodes {', '.join(texts)}"


def read_placement(subgraphs: Iterable[AssignedSubgraph]) -> Placement:
    """What ONNX Runtime says of a session."""
    nodes: dict[str, Counter[str]] = {}
    for subgraph in subgraphs:
        kinds = nodes.setdefault(subgraph.ep_name, Counter())
        kinds.update(node.op_type for node in subgraph.get_nodes())
    return Placement(nodes)


def session_placement(session: Any) -> Placement | None:  # noqa: ANN401  -- of ONNX Runtime, which is not typed
    """The placement of a session that was opened with `RECORD`; None where this ONNX Runtime does not tell."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    return None if tell is None else read_placement(tell())


def check_providers(found: Sequence[str], wanted: Sequence[str]) -> None:
    """Whether a session has the providers that it was opened with. Raises ModelLoadError.

    Where one cannot be set up, ONNX Runtime goes on without it, and says so in its log alone.
    """
    missing = [provider for provider in wanted if provider not in found]
    if missing:
        raise ModelLoadError(
            f"ONNX Runtime could not set up {missing[0]} and would run the model by {', '.join(found)}; its log says "
            "what is missing, often a library: `pip install onnxruntime-gpu[cuda,cudnn] nvidia-cublas` brings those of "
            "CUDA"
        )


def check_placement(placement: Placement, main: str, max_cpu_nodes: float) -> None:
    """Whether enough of a model runs where it was asked to. Raises ModelLoadError that lists what does not.

    main: the provider that must have a node. max_cpu_nodes: the share of nodes that the processor may run.
    """
    counts = placement.counts
    total = sum(counts.values())
    if total and not counts.get(main):
        raise ModelLoadError(f"{main} runs no node of the model: {placement}")
    on_cpu = counts.get(CPU, 0)
    if on_cpu > max_cpu_nodes * total:
        raise ModelLoadError(
            f"the processor would run {on_cpu} of the model's {total} nodes, {_listed(placement.nodes[CPU])}, and "
            f"max_cpu_nodes = {max_cpu_nodes:g} allows {int(max_cpu_nodes * total)}"
        )


_CONTROL = frozenset({"If", "Loop", "Scan"})


def unrecordable(
    session: Any,  # noqa: ANN401  -- not typed either
    placement: Placement | None,
    main: str,
    *,
    processor: bool = False,
) -> str:
    """Why the work of a session cannot be recorded as a whole; empty where nothing is known against it.

    What the processor does in a run, and what it fetches from the host's memory, would be done once and for all.
    main: the provider that must have all nodes. processor: or the processor may, whoever records sees what it does.
    """
    if placement is None:
        return "this version of ONNX Runtime does not tell which nodes run where"
    others = sorted(set(placement.nodes) - {main} - ({CPU} if processor else set()))
    if others:
        return f"not all nodes are run by {main}: {placement}"
    if control := sorted(_CONTROL & set[str]().union(*placement.nodes.values())):
        return f"the model decides as it runs: {', '.join(control)}"
    if on_host := sorted(inputs_on_host(session) | outputs_on_host(session)):
        return f"{', '.join(on_host)} is in the host's memory"
    return ""


def inputs_on_host(session: Any) -> frozenset[str]:  # noqa: ANN401
    """Inputs that a session reads in the host's memory: of nodes on the processor, or as a shape, a size, a `k`.

    One that is bound elsewhere ONNX Runtime copies when it is bound, and not when it runs: it would see that for ever.
    Empty where its version does not tell (1.22 and before).
    """
    tell = getattr(session, "get_input_memory_infos", None)
    return frozenset() if tell is None else _on_host(session.get_inputs(), tell())


def outputs_on_host(session: Any) -> frozenset[str]:  # noqa: ANN401
    """Outputs that a session makes in the host's memory. Empty where its version does not tell."""
    tell = getattr(session, "get_output_memory_infos", None)
    return frozenset() if tell is None else _on_host(session.get_outputs(), tell())


def _on_host(arguments: Iterable[Any], infos: Iterable[Any]) -> frozenset[str]:
    return frozenset(one.name for one, info in zip(arguments, infos, strict=True) if info.name == "Cpu")


def _listed(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0])))
