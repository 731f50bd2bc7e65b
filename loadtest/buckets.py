"""What buckets are worth: throughput of mixed lengths with and without them, and how well their cost is predicted.

    python loadtest/buckets.py [--seconds 3] [--rounds 3] [--callers 32] [--costs]

Two models on one CPU thread each, in this process and without a network: `encoder`, a transformer encoder made here
whose weights do not fit the processor's cache (four layers of width 512), with queries of 3 to 32 tokens; and
`textline` of models/, if it has been fetched, a convolutional network, with lines of 60 to 1280 columns. Each is served
with its buckets and without, in turns, to callers that each wait for their reply.

With --costs, batches of random buckets and sizes are run one after another, and three ways to predict how long each
takes are compared: by rows alone, by padded elements, and by rows for each bucket, which is what the server does.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from prometheus_client import CollectorRegistry

from headrace.clock import monotonic_ns
from headrace.engine.lifecycle import Engine
from headrace.engine.opening import open_model
from headrace.engine.policies import make_buckets
from headrace.engine.shared_memory import NoSharedMemory
from headrace.engine.turn import Turn
from headrace.pipeline.bucket_cost import BucketCosts
from headrace.pipeline.cost import CostModel
from headrace.repository.catalog import Catalog
from headrace.repository.discovery import Found, scan
from headrace.telemetry.guard import ObserverGuard
from headrace.telemetry.metrics import Metrics
from headrace.testing.client import InProcessClient
from headrace.transport.infer import InferService

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Feeds = dict[str, NDArray[Any]]

TEXTLINE = Path(__file__).parent.parent / "models" / "textline"
WIDTH, LAYERS = 512, 4
ENCODER_BUCKETS = """
[buckets.tokens]
sizes = [4, 8, 12, 16, 24, 32]
inputs = { x = 1 }
masks = { mask = 1 }
outputs = { y = 1 }
"""


def encoder() -> bytes:
    """Attention of one head and two dense layers, four times: x FP32 [N,S,512], mask FP32 [N,S] -> y FP32 [N,S,512]."""
    rng = np.random.default_rng(0)
    weights: dict[str, NDArray[Any]] = {
        "axis": np.array([1], np.int64),
        "one": np.array(1, np.float32),
        "far": np.array(-1e4, np.float32),
        "scale": np.array(WIDTH**-0.5, np.float32),
        "norm": np.ones(WIDTH, np.float32),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["mask", "axis"], ["wide"]),
        helper.make_node("Sub", ["one", "wide"], ["absent"]),
        helper.make_node("Mul", ["absent", "far"], ["bias"]),
    ]
    at = "x"
    for layer in range(LAYERS):

        def name(part: str, layer: int = layer) -> str:
            return f"{part}{layer}"

        for part, shape in (
            ("q", (WIDTH, WIDTH)), ("k", (WIDTH, WIDTH)), ("v", (WIDTH, WIDTH)),
            ("up", (WIDTH, 4 * WIDTH)), ("down", (4 * WIDTH, WIDTH)),
        ):  # fmt: skip
            weights[name(f"w_{part}")] = (rng.standard_normal(shape) * 0.05).astype(np.float32)
        nodes += [
            *(helper.make_node("MatMul", [at, name(f"w_{part}")], [name(part)]) for part in "qkv"),
            helper.make_node("Transpose", [name("k")], [name("kt")], perm=[0, 2, 1]),
            helper.make_node("MatMul", [name("q"), name("kt")], [name("qk")]),
            helper.make_node("Mul", [name("qk"), "scale"], [name("scaled")]),
            helper.make_node("Add", [name("scaled"), "bias"], [name("biased")]),
            helper.make_node("Softmax", [name("biased")], [name("a")], axis=-1),
            helper.make_node("MatMul", [name("a"), name("v")], [name("av")]),
            helper.make_node("Add", [at, name("av")], [name("sum")]),
            helper.make_node("LayerNormalization", [name("sum"), "norm"], [name("ln")], axis=-1),
            helper.make_node("MatMul", [name("ln"), name("w_up")], [name("wide")]),
            helper.make_node("Relu", [name("wide")], [name("relu")]),
            helper.make_node("MatMul", [name("relu"), name("w_down")], [name("narrow")]),
            helper.make_node("Add", [name("ln"), name("narrow")], [name("sum2")]),
            helper.make_node("LayerNormalization", [name("sum2"), "norm"], [name("out")], axis=-1),
        ]
        at = name("out")
    nodes.append(helper.make_node("Identity", [at], ["y"]))
    graph = helper.make_graph(
        nodes,
        "encoder",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "S", WIDTH]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N", "S"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "S", WIDTH])],
        [numpy_helper.from_array(value, key) for key, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model.SerializeToString()


def write(root: Path, name: str, model: bytes, toml: str) -> None:
    (root / name / "1").mkdir(parents=True)
    (root / name / "1" / "model.onnx").write_bytes(model)
    (root / name / "model.toml").write_text(toml)


def without_buckets(toml: str) -> str:
    """A model.toml without its last tables and what belongs to them."""
    return toml[: toml.index("[buckets.")].replace("pad = ", "# pad = ")


def queries(rng: random.Random, *, masked: bool) -> Feeds:
    """Many short, few long."""
    length = min(max(round(rng.lognormvariate(2.2, 0.5)), 3), 32)
    x = np.full((1, length, WIDTH), 0.1, np.float32)
    return {"x": x} if masked else {"x": x, "mask": np.ones((1, length), np.float32)}


def lines(rng: random.Random) -> Feeds:
    return {"x": np.zeros((1, 3, 48, min(max(round(rng.lognormvariate(5.6, 0.6)), 60), 1280)), np.float32)}


async def throughput(
    found: Found, feeds: Callable[[random.Random], Feeds], callers: int, seconds: float
) -> list[float]:
    """Requests a second, CPU time of one in ms, mean rows of a batch, percent of padding."""
    metrics = Metrics(CollectorRegistry())
    catalog = Catalog()  # type: ignore[var-annotated]
    turn = Turn(asyncio.get_running_loop())
    engine = Engine(catalog, ObserverGuard(metrics), metrics, monotonic_ns, turn, 5_000_000)
    reason = await engine.load(found)
    if reason:
        raise SystemExit(f"{found.name}: {reason}")
    client = InProcessClient(InferService(catalog, turn, lambda reason: None, NoSharedMemory()), monotonic_ns)
    recorder = metrics.recorder(found.name, str(found.version))
    assert recorder is not None
    end = 0.0

    async def call(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < end:
            await client.infer(found.name, feeds(rng))

    rates = []
    for spent in (seconds / 3, seconds):  # the first is for the cost model to learn
        before = recorder.read()
        began, busy = time.monotonic(), time.process_time()
        end = began + spent
        await asyncio.gather(*(call(seed) for seed in range(callers)))
        elapsed, busy = time.monotonic() - began, time.process_time() - busy
        after = recorder.read()
        rows = after.statistics.inference_count - before.statistics.inference_count
        batches = after.statistics.execution_count - before.statistics.execution_count
        padding, own = after.padding - before.padding, after.elements - before.elements
        rates = [rows / elapsed, 1e3 * busy / rows, rows / max(batches, 1), 100 * padding / max(padding + own, 1)]
    engine.close()
    return rates


def compare(
    root: Path, name: str, feeds: Sequence[Callable[[random.Random], Feeds]], arguments: argparse.Namespace
) -> None:
    found = {entry.name: entry for entry in scan(root) if isinstance(entry, Found)}
    sides = (f"{name}_buckets", f"{name}_plain")
    results: dict[str, list[list[float]]] = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side, feed in zip(sides, feeds, strict=True):
            results[side].append(asyncio.run(throughput(found[side], feed, arguments.callers, arguments.seconds)))
    for side in sides:
        rate, busy, rows, padding = (statistics.median(column) for column in zip(*results[side], strict=True))
        print(
            f"{side:18} {rate:8.1f} requests/s, {busy:6.2f} ms of CPU each, {rows:5.2f} rows a batch, "
            f"{padding:4.1f} % padding"
        )


def costs(found: Found, batches: int) -> None:
    """Feeds three predictors with the same runs; prints their errors over the second half."""
    model, (instance,), _ = open_model(found, monotonic_ns, 5_000_000)
    buckets = make_buckets(found.config, model.signature)
    assert buckets is not None
    most = model.signature.max_batch
    every = list(buckets.all())
    unit = min(fit.sizes[0] for fit, _ in every)
    largest = most * max(fit.sizes[0] for fit, _ in every) // unit
    rows_alone, by_elements, by_bucket = CostModel(most), CostModel(largest), BucketCosts(most)
    errors: dict[str, list[float]] = {"rows alone": [], "padded elements": [], "rows by bucket": []}
    beyond = dict.fromkeys(errors, 0)
    rng = random.Random(1)
    for batch in range(batches):
        fit, dims = rng.choice(every)
        rows = min(int(rng.expovariate(0.4)) + 1, most)
        elements = max(rows * fit.sizes[0] // unit, 1)
        shapes = [(rows, *shape) for shape in dims]
        parts = [[b"" if own is None else bytes(4 * int(np.prod(own))) for _ in range(rows)] for own in fit.shapes]
        inputs = buckets.pack([(fit, 1)] * rows, parts, shapes)
        began = monotonic_ns()
        instance.run(inputs, shapes, range(len(model.signature.outputs)))
        elapsed = monotonic_ns() - began
        asked = {
            "rows alone": (rows_alone, rows),
            "padded elements": (by_elements, elements),
            "rows by bucket": (by_bucket.of(fit), rows),
        }
        if batch >= batches // 2:
            for way, (cost, size) in asked.items():
                errors[way].append(abs(cost.mean(size) - elapsed) / elapsed)
                beyond[way] += elapsed > cost.predict(size)
        rows_alone.observe(rows, elapsed)
        by_elements.observe(elements, elapsed)
        by_bucket.observe(rows, elapsed, fit)
    instance.close()
    for way, found_errors in errors.items():
        share = 100 * beyond[way] / len(found_errors)
        print(
            f"{found.name:18} by {way:16} median error {100 * statistics.median(found_errors):5.1f} %, "
            f"{share:4.1f} % took longer than the 95 % quantile"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--batches", type=int, default=600)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        head = "max_batch = 32\n"
        write(root, "encoder_buckets", encoder(), head + ENCODER_BUCKETS)
        write(root, "encoder_plain", encoder(), head)
        sides: list[tuple[str, list[Callable[[random.Random], Feeds]]]] = [
            ("encoder", [lambda rng: queries(rng, masked=True), lambda rng: queries(rng, masked=False)])
        ]
        if (TEXTLINE / "1" / "model.onnx").exists():
            model, toml = (TEXTLINE / "1" / "model.onnx").read_bytes(), (TEXTLINE / "model.toml").read_text()
            toml = toml.replace("slo_ms", "# slo_ms")
            write(root, "textline_buckets", model, toml)
            write(root, "textline_plain", model, without_buckets(toml))
            sides.append(("textline", [lines, lines]))
        if arguments.costs:
            for entry in scan(root):
                if isinstance(entry, Found) and entry.config.buckets:
                    costs(entry, arguments.batches)
            return
        for name, feeds in sides:
            compare(root, name, feeds, arguments)


if __name__ == "__main__":
    main()
