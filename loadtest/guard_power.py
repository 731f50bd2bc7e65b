"""How soon a guard acts on versions that are bad, and that it does not act on good ones.

    python loadtest/guard_power.py                 # everything, some ten minutes
    python loadtest/guard_power.py --quick         # a tenth of the runs

Two parts. Agreement as coins of a known probability, from the beginning or after a long good past; and INT8 versions of
a perceptron on scikit-learn's digits, beside the FP32 one: well calibrated, with ranges that are too narrow, and well
calibrated but met by images that are brighter than those that it was calibrated on. Counted are requests that were
compared: at a share of 1 %, a hundred times as many are served. Settings are the guard's defaults.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import headrace  # noqa: F401 - before ONNX Runtime, which is told there not to report to its makers

# isort: split
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from headrace.guard.comparison import compare
from headrace.guard.evidence import Evidence
from headrace.guard.record import Record
from headrace.guard.settings import GuardSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Pixels = NDArray[np.float32]

SETTINGS = GuardSettings("probabilities", "classes")
GROUP = 16
"""Requests that are compared together, as a busy server's are."""
NARROW = (0.02, 0.4)
"""Of their pixels' values, what the images for bad calibrations are left."""
BRIGHTER = (2.0, 6.0)
"""How much brighter those images are that a well calibrated version is not prepared for."""


# --- coins ------------------------------------------------------------------------------------------------------------


def until_proof(random: np.random.Generator, past: int, agreement: float, most: int) -> int | None:
    """Requests of this agreement until the guard acts, after `past` of 0.999; None: it did not within `most`.

    0 or less: it has acted before.
    """
    evidence = Evidence(SETTINGS)
    for start in range(-past, most, GROUP):
        events = (random.random(GROUP) < (0.999 if start < 0 else agreement)).astype(float)
        if evidence.add(events.tolist(), (1 - events).tolist()) is not None:
            return start + GROUP
    return None


def coins(random: np.random.Generator, runs: int, past: int, agreement: float, most: int) -> dict[str, object]:
    """So many runs of that."""
    return {"agreement": agreement, "past": past} | summary(
        [until_proof(random, past, agreement, most) for _ in range(runs)], most
    )


def summary(found: list[int | None], most: int) -> dict[str, object]:
    """Of requests until the guard acted, in several runs."""
    acted = sorted(one for one in found if one is not None)
    known = acted + [most * 2] * (len(found) - len(acted))
    told: dict[str, object] = {"runs": len(found), "acted": len(acted), "within": most}
    if len(acted) > len(found) // 2:
        told |= {"median": known[len(found) // 2], "in_90_percent": known[int(len(found) * 0.9)]}
    return told


# --- digits -----------------------------------------------------------------------------------------------------------


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, pixels: Pixels) -> None:
        self._batches: Iterator[Pixels] = iter(np.array_split(pixels, 20))

    def get_next(self) -> dict[str, Pixels] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"pixels": batch}


@dataclass(frozen=True)
class Digits:
    """The files of versions, and held-out images FP32 [N,64], 0 to 16. narrow: by what is left of pixels' values."""

    fp32: Path
    int8: Path
    narrow: dict[float, Path]
    held_out: Pixels


def digits(directory: Path) -> Digits:
    """Trains the FP32 version and quantizes it, well and badly. The same each time, on the same machine."""
    pixels, labels = load_digits(return_X_y=True)
    train, held_out, known, _ = train_test_split(
        pixels.astype(np.float32), labels, test_size=0.5, stratify=labels, random_state=0
    )
    made = MLPClassifier((64, 64), random_state=0, max_iter=400).fit(train / 16, known)
    fp32 = directory / "fp32.onnx"
    fp32.write_bytes(_onnx(made))
    prepared = directory / "prepared.onnx"
    quant_pre_process(fp32, prepared)
    narrow = {left: directory / f"narrow-{left:g}.onnx" for left in NARROW}
    found = Digits(fp32, directory / "int8.onnx", narrow, held_out)
    for left, file in {1.0: found.int8, **narrow}.items():
        quantize_static(
            prepared, file, _Images(train * np.float32(left)), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=["Gemm", "MatMul"],
        )  # fmt: skip
    return found


def _onnx(made: MLPClassifier) -> bytes:
    nodes, constants, last = [helper.make_node("Mul", ["pixels", "scale"], ["x0"])], [("scale", np.array(1 / 16))], "x0"
    for layer, (weights, bias) in enumerate(zip(made.coefs_, made.intercepts_, strict=True), 1):
        constants += [(f"w{layer}", weights), (f"b{layer}", bias)]
        nodes.append(helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], [f"s{layer}"]))
        end = layer == len(made.coefs_)
        last = "probabilities" if end else f"x{layer}"
        nodes.append(helper.make_node("Softmax" if end else "Relu", [f"s{layer}"], [last]))
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return bytes(model.SerializeToString())


def answers(file: Path, pixels: Pixels) -> NDArray[Any]:
    """The probabilities [N,10] that a version gives."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"pixels": pixels})[0])


def acts_after(
    random: np.random.Generator, found: NDArray[Any], expected: NDArray[Any], most: int, past: Record | None = None
) -> int | None:
    """Requests of one row until the guard acts, each drawn at random of these; None: it did not within `most`."""
    record = past or Record(SETTINGS)
    for start in range(0, most, GROUP):
        rows = random.integers(len(found), size=GROUP)
        if record.add(compare(SETTINGS, found[rows], expected[rows]), [1] * GROUP) is not None:
            return start + GROUP
    return None


def demonstration(
    made: Digits, random: np.random.Generator, runs: int, most: int, past: int
) -> Iterator[dict[str, object]]:
    """The versions of the digits. past: requests that go well before the images become brighter."""
    expected, well = answers(made.fp32, made.held_out), answers(made.int8, made.held_out)
    found = [acts_after(random, well, expected, most) for _ in range(10 * runs)]
    yield {"version": "well calibrated", "agreement": agreement(well, expected)} | summary(found, most)
    for left, file in made.narrow.items():
        ill = answers(file, made.held_out)
        found = [acts_after(random, ill, expected, most) for _ in range(runs)]
        told = {"version": f"calibrated on {left:g} of the pixels' values", "agreement": agreement(ill, expected)}
        yield told | summary(found, most)
    for brighter in BRIGHTER:
        images = made.held_out * np.float32(brighter)
        shifted, wanted = answers(made.int8, images), answers(made.fp32, images)
        found, early = [], 0
        for _ in range(runs):
            record = Record(SETTINGS)
            early += acts_after(random, well, expected, past, record) is not None
            found.append(acts_after(random, shifted, wanted, most, record))
        told = {"version": f"well calibrated, {brighter:g} times as bright after {past} requests"}
        told |= {"agreement": agreement(shifted, wanted), "acted_before": early}
        yield told | summary(found, most)


def agreement(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The share of rows with the same class."""
    return float((found.argmax(1) == expected.argmax(1)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs")
    parser.add_argument("--only", choices=["coins", "digits"], help="one of the two")
    parser.add_argument("--seed", type=int, default=1, help="of the data (default: %(default)s)")
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    part = 10 if arguments.quick else 1
    begun = time.monotonic()
    if arguments.only != "digits":
        for agreement in (0.99, 0.992, 0.995, 0.999):
            print(json.dumps(coins(random, 1000 // part, 0, agreement, 10_000)), flush=True)
        for past in (0, 1_024, 10_240):
            for agreement in (0.1, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98):
                print(json.dumps(coins(random, 100 // part, past, agreement, 10_000)), flush=True)
    if arguments.only != "coins":
        with tempfile.TemporaryDirectory() as directory:
            for line in demonstration(digits(Path(directory)), random, 100 // part, 5_000, 5_000):
                print(json.dumps(line), flush=True)
    print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
