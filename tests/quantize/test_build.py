import os
from dataclasses import replace
from itertools import count

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from quantize.conftest import CLASSES, WIDTH, model_of, normal, perceptron, tensor, weight

from headrace.quantize import trials
from headrace.quantize.build import Request, build
from headrace.quantize.errors import QuantizeError
from headrace.quantize.models import find_source, sha256_of, workspace
from headrace.quantize.page import page
from headrace.quantize.recipes import Options
from headrace.quantize.report import SpeedPoint, read_report
from headrace.repository.discovery import Found, scan

NOW = 1_800_000_000_000


def quiet(*_):
    pass


@pytest.fixture
def source(repository):
    return repository(perceptron(softmax=True))


@pytest.fixture
def request_of(source, rows):
    """What is asked for: INT8 for the processor, calibrated and measured by labels that the source is right about."""
    x = normal(200, WIDTH, seed=2)
    session = ort.InferenceSession(source / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    labels = session.run(None, {"x": x})[0].argmax(axis=1)
    calibration = rows("calibration", x=normal(100, WIDTH, seed=3))
    evaluation = rows("evaluation", x=x, labels=labels)
    return Request(
        source, "int8", "cpu", (calibration,), (evaluation,), labels="labels", gate=0.9, speed_s=0, search=False
    )


def made(request, progress=quiet):
    clock = count(step=100_000).__next__  # every look at it takes 0.1 ms
    return build(request, progress, clock, NOW)


def entries(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_version_that_keeps_the_gate_is_written_with_all_that_is_said_of_it(source, request_of):
    (source / "1" / "schema.toml").write_text("")
    (source / "1" / "drift.json").write_text("{}")
    (source / "1" / "model.plan").write_text("of another file")
    report, directory = made(request_of)
    assert directory == source / "2"
    assert entries(directory) == ["drift.json", "model.onnx", "quantization.html", "quantization.json", "schema.toml"]
    assert entries(source) == ["1", "2"]
    assert read_report((directory / "quantization.json").read_bytes()) == report
    assert (directory / "quantization.html").read_text() == page(report)
    assert (report.version, report.source_version, report.passed) == (2, 1, True)
    assert (report.measure.metric, report.measure.labelled, report.measure.source) == ("accuracy", True, 1.0)
    assert report.result_bytes == (directory / "model.onnx").stat().st_size < report.source_bytes
    assert any("model.plan" in warning for warning in report.warnings)
    assert [found.version for found in scan(source.parent) if isinstance(found, Found)] == [2]
    left = (directory.stat().st_mode, (source / "1").stat().st_mode)
    assert left[0] == left[1]


def test_the_lineage_is_that_of_the_files(source, request_of):
    report, directory = made(request_of)
    lineage = report.lineage
    assert lineage.source_sha256 == sha256_of([source / "1" / "model.onnx"])
    assert lineage.result_sha256 == sha256_of([directory / "model.onnx"])
    assert (lineage.calibration_rows, lineage.evaluation_rows) == (100, 200)
    assert lineage.created == "2027-01-15T08:00:00Z"
    assert lineage.tools["onnx"] == onnx.__version__
    again, _ = made(request_of)
    assert again.lineage == lineage  # the same octets of the same source, data and tools
    other, _ = made(replace(request_of, evaluation=request_of.calibration, labels=""))
    assert other.lineage.evaluation_sha256 != lineage.evaluation_sha256


def test_the_next_time_it_starts_from_the_version_in_float(source, request_of):
    made(request_of)
    report, directory = made(request_of)
    assert (report.source_version, directory.name) == (1, "3")
    with pytest.raises(QuantizeError, match="quantized already"):
        made(replace(request_of, model=source / "3"))


def test_a_version_below_the_gate_is_not_written(source, request_of, monkeypatch):
    worse = trials.measured

    def measured(metric, labelled, output, base, result):
        return worse(metric, labelled, output, base, result * (0.5 if result is not base else 1))

    monkeypatch.setattr(trials, "measured", measured)
    report, directory = made(replace(request_of, search=True))
    assert directory is None
    assert (report.passed, report.version) == (False, 0)
    assert entries(source) == ["1"]
    assert [kept for kept, _ in report.tries] == [0, 1, 2]


def test_sensitive_layers_are_left_in_float_until_the_gate_holds(repository, rows):
    """A layer whose input has one value a thousand times as large as the others, of which 8 bits leave nothing."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="plain"),
        helper.make_node("Mul", ["h", "far"], ["f"]),
        helper.make_node("MatMul", ["f", "b"], ["y"], name="sensitive"),
    ]
    far = np.ones(16, np.float32)
    far[0] = 3000
    inner = numpy_helper.to_array(weight("b", 16, CLASSES)).copy()
    inner[0] = 0  # the one is not even used
    weights = [weight("a", WIDTH, 16), numpy_helper.from_array(inner, "b"), numpy_helper.from_array(far, "far")]
    source = repository(model_of(nodes, [tensor("x", "n", WIDTH)], [tensor("y", "n", CLASSES)], weights))
    data = rows(x=normal(200, WIDTH))
    request = Request(source, "int8", "cpu", (data,), gate=0.99, speed_s=0)
    report, directory = made(request)
    assert directory is not None
    assert [layer.name for layer in report.layers if layer.kept_float] == ["sensitive"]
    errors = {layer.name: layer.error for layer in report.layers}
    assert errors["sensitive"] > 10 * errors["plain"] > 0
    assert [name for name, _ in report.excluded] == ["sensitive"]
    assert report.tries[0][1] < 0.99 <= report.tries[-1][1]
    assert any("have chosen how many layers stay in float" in warning for warning in report.warnings)
    refused, nothing = made(replace(request, search=False))
    assert (refused.passed, nothing, refused.layers) == (False, None, ())


def test_without_data_for_evaluation_some_rows_are_held_out(source, rows, request_of):
    report, _ = made(replace(request_of, evaluation=(), labels=""))
    assert (report.lineage.calibration_rows, report.lineage.evaluation_rows) == (80, 20)
    assert not report.measure.labelled
    assert report.measure.metric == "top1_agreement"
    said = " ".join(report.warnings)
    assert "every 5th row" in said
    assert "no accuracy" in said


def test_rows_that_were_calibrated_with_are_told(request_of):
    report, _ = made(replace(request_of, evaluation=request_of.calibration, labels=""))
    assert any("100 of 100 rows for evaluation" in warning for warning in report.warnings)


def test_speed_is_that_of_source_and_result_by_batch_size(request_of):
    report, _ = made(replace(request_of, speed_s=0.01))
    assert report.speed[0].batch == 1
    assert all(point.ratio > 0 for point in report.speed)


def test_weights_of_large_models_lie_beside(repository, request_of):
    source = repository(
        perceptron(softmax=True), "external", save_as_external_data=True, location="w", size_threshold=0
    )
    report, directory = made(replace(request_of, model=source))
    assert entries(directory) == ["model.onnx", "model.onnx.data", "quantization.html", "quantization.json"]
    assert report.source_bytes == sum(path.stat().st_size for path in (source / "1").iterdir())
    assert len({path.stat().st_mode for path in (*directory.iterdir(), source / "1" / "model.onnx")}) == 1
    session = ort.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": normal(3, WIDTH)})[0].shape == (3, CLASSES)


@pytest.mark.parametrize("rows_of_a_batch", [4, None])
def test_models_of_a_fixed_batch_or_none(repository, rows, rows_of_a_batch):
    shape = [rows_of_a_batch] if rows_of_a_batch else []
    node = helper.make_node("MatMul", ["x", "a"], ["y"])
    inputs, outputs = [tensor("x", *shape, WIDTH)], [tensor("y", *shape, CLASSES)]
    source = repository(model_of([node], inputs, outputs, [weight("a", WIDTH, CLASSES)]))
    report, _ = made(Request(source, "int8", "cpu", (rows(x=normal(203, WIDTH)),), speed_s=0.01))
    assert report.measure.rows == 40
    assert [point.batch for point in report.speed] == [rows_of_a_batch or 1]


@pytest.mark.parametrize("stage", ["prepare", "calibrate", "layers", "try"])
def test_whoever_stops_it_finds_the_repository_as_it_was(source, request_of, stage):
    def progress(what, done, of):
        if what == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(replace(request_of, search=True), progress)
    assert entries(source) == ["1"]


def test_a_version_that_somebody_else_writes_meanwhile_is_not_replaced(source, request_of):
    def progress_of(version):
        return lambda *_: (source / str(version)).mkdir(exist_ok=True)

    with pytest.raises(QuantizeError, match="is there already"):
        made(replace(request_of, version=2), progress_of(2))
    assert entries(source) == ["1", "2"]
    report, directory = made(request_of, progress_of(3))
    assert (report.version, directory) == (4, source / "4")
    assert read_report((directory / "quantization.json").read_bytes()) == report
    assert (directory / "quantization.html").read_text() == page(report)
    assert [entries(source / name) for name in "23"] == [[], []]


def test_what_a_killed_process_has_left_is_removed_and_what_another_works_in_is_not(source, request_of):
    left = source / ".quantize-left"
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    with workspace(find_source(source)) as used:
        made(request_of)
        assert entries(source) == [used.name, "1", "2"]
    assert entries(source) == ["1", "2"]


def test_versions_that_no_server_takes_are_refused_and_not_counted_from(source, request_of):
    (source / "99999999999999999999").mkdir()
    with pytest.raises(QuantizeError, match="expected 1 to 999999999999999999, which servers take"):
        made(replace(request_of, version=10**18))
    assert made(request_of)[1] == source / "2"
    _, last = made(replace(request_of, version=10**18 - 1))
    assert [found.path for found in scan(source.parent)] == [last]
    with pytest.raises(QuantizeError, match="999999999999999999 is there, and servers take no larger one"):
        made(request_of)


def test_a_repository_that_cannot_be_written_to(source, request_of, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr("headrace.quantize.models.tempfile.mkdtemp", refuse)
    with pytest.raises(QuantizeError, match="cannot be written to: Permission denied"):
        made(request_of)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"calibration": ()}, "needs data to calibrate with"),
        ({"calibration": (), "evaluation": (), "recipe": "fp16"}, "needs data to be measured on"),
        ({"version": 1}, "is there already"),
        ({"version": 0}, "expected 1 to"),
        ({"recipe": "int8-dynamic", "target": "portable"}, "cpu alone"),
        ({"output": "z"}, "no output 'z', but y"),
        ({"labels": "z"}, "no array 'z', but x, labels"),
    ],
)
def test_what_cannot_be_done_is_said(source, request_of, changes, said):
    with pytest.raises(QuantizeError, match=said):
        made(replace(request_of, **changes))
    assert entries(source) == ["1"]


@pytest.mark.parametrize(
    ("calibration", "evaluation", "said"),
    [(7, 200, "7 rows to calibrate with"), (100, 19, "19 rows to evaluate on"), (60, None, "12 rows to evaluate on")],
)
def test_too_few_rows(request_of, rows, calibration, evaluation, said):
    given = {"calibration": (rows("c", x=normal(calibration, WIDTH)),), "labels": ""}
    given["evaluation"] = () if evaluation is None else (rows("e", x=normal(evaluation, WIDTH)),)
    with pytest.raises(QuantizeError, match=said):
        made(replace(request_of, **given))


@pytest.mark.parametrize("path", ["none", "empty", "loose"])
def test_what_is_no_model(tmp_path, request_of, path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "loose").mkdir()
    onnx.save(perceptron(), tmp_path / "loose" / "model.onnx")
    with pytest.raises(QuantizeError, match=r"expected a model's|no model\.onnx here|is no version"):
        made(replace(request_of, model=tmp_path / path))


def test_pruning_says_what_it_alone_costs(request_of):
    request = replace(request_of, gate=0.01, options=Options(prune=True))
    report, _ = made(request)
    assert report.options["prune"] == "2:4"
    said = " ".join(report.warnings)
    assert "50% of the weights of 2 layers 0" in said  # the last is too narrow for tensor cores
    assert "only TensorRT gains" in said
    assert report.measure.relative < made(request_of)[0].measure.relative


def test_layers_at_what_is_not_finite_stay_in_float(repository, rows):
    """As where a mask of minus infinity is added."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="plain"),
        helper.make_node("Add", ["h", "mask"], ["m"], name="mask"),
        helper.make_node("Softmax", ["m"], ["s"]),
        helper.make_node("MatMul", ["m", "zero"], ["unused"], name="endless"),
        helper.make_node("MatMul", ["s", "b"], ["y"], name="behind"),
    ]
    mask = np.zeros(16, np.float32)
    mask[3] = -np.inf
    weights = [
        weight("a", WIDTH, 16), weight("b", 16, CLASSES), numpy_helper.from_array(mask, "mask"), weight("zero", 16, 2),
    ]  # fmt: skip
    model = model_of(nodes, [tensor("x", "n", WIDTH)], [tensor("y", "n", CLASSES), tensor("unused", "n", 2)], weights)
    request = Request(repository(model), "int8", "cpu", (rows(x=normal(200, WIDTH)),), output="y", speed_s=0)
    report, directory = made(request)
    assert directory is not None
    assert [name.partition("/")[0] for name, _ in report.excluded] == ["plain", "endless"]  # the mask became its bias
    assert all("not finite" in reason for _, reason in report.excluded)
    assert [layer.name for layer in report.layers] == ["behind"]


def test_a_layer_that_the_tool_fails_at_stays_in_float(source, request_of, monkeypatch):
    from onnxruntime.quantization import QDQQuantizer

    quantize = QDQQuantizer.quantize_model

    def fail(self):
        if "MatMul" in {node.op_type for node in self.model.nodes() if node.name not in self.nodes_to_exclude}:
            raise ValueError("no luck")
        return quantize(self)

    monkeypatch.setattr(QDQQuantizer, "quantize_model", fail)
    report, directory = made(replace(request_of, search=True))
    assert directory is not None
    (name, reason), *_ = report.excluded
    assert "MatMul" in name
    assert "it cannot be quantized: int8: no luck" in reason
    with pytest.raises(QuantizeError, match="does not run: int8: no luck"):
        made(request_of)


def test_a_row_may_be_all_that_a_run_takes(repository, rows):
    """Of some inputs the batch is not the first dimension, and one is a scalar."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Squeeze", ["state", "first"], ["s"]),
        helper.make_node("Add", ["h", "s"], ["sum"]),
        helper.make_node("Mul", ["sum", "rate"], ["y"]),
    ]
    inputs = [tensor("x", "n", WIDTH), tensor("state", 1, "n", CLASSES), tensor("rate")]
    weights = [weight("a", WIDTH, CLASSES), numpy_helper.from_array(np.array([0]), "first")]
    source = repository(model_of(nodes, inputs, [tensor("y", "n", CLASSES)], weights))
    data = rows(
        x=normal(120, 1, WIDTH), state=normal(120, 1, 1, CLASSES), rate=np.linspace(1, 2, 120, dtype=np.float32)
    )
    report, directory = made(Request(source, "int8", "cpu", (data,), speed_s=0.01))
    assert directory is not None
    assert report.measure.rows == 24


def test_every_output_is_looked_at_though_the_gate_is_for_one(repository, rows):
    """Of the other output, one value is a thousand times as large as those that matter, and 8 bits leave nothing."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["y"]),
        helper.make_node("Mul", ["x", "far"], ["f"]),
        helper.make_node("MatMul", ["f", "b"], ["other"]),
    ]
    far = np.ones(WIDTH, np.float32)
    far[0] = 3000
    inner = numpy_helper.to_array(weight("b", WIDTH, 16)).copy()
    inner[0] = 0
    weights = [weight("a", WIDTH, CLASSES), numpy_helper.from_array(inner, "b"), numpy_helper.from_array(far, "far")]
    outputs = [tensor("y", "n", CLASSES), tensor("other", "n", 16)]
    source = repository(model_of(nodes, [tensor("x", "n", WIDTH)], outputs, weights))
    report, _ = made(Request(source, "int8", "cpu", (rows(x=normal(200, WIDTH)),), gate=0.9, speed_s=0))
    errors = {one.name: one.error for one in report.outputs}
    assert errors["y"] < 0.1 < 0.5 < errors["other"]
    warned = [one for one in report.warnings if "the gate is for y alone" in one]
    assert len(warned) == 1
    assert warned[0].startswith("output other moves by")
    assert f"<th>other</th><td>{errors['other']:.3g}</td>" in page(report)


def test_a_result_that_is_larger_and_slower_is_told(repository, rows, monkeypatch):
    node = helper.make_node("MatMul", ["x", "a"], ["y"])
    source = repository(model_of([node], [tensor("x", "n", 4)], [tensor("y", "n", 3)], [weight("a", 4, 3)]))
    request = Request(source, "int8", "cpu", (rows(x=normal(200, 4)),), gate=0.5, speed_s=0.01)
    points = (SpeedPoint(1, 100.0, 75.0, 0.75, 0.7, 0.8), SpeedPoint(2, 100.0, 110.0, 1.1, 1.0, 1.2))
    said = {}
    for count_of in (1, 2):
        monkeypatch.setattr("headrace.quantize.build._speed", lambda *_, upto=count_of: (points[:upto], ()))
        said[count_of] = " ".join(made(request)[0].warnings)
    assert "larger than the source (" in said[1]
    assert "no quicker than the source on this processor at any batch size, at best 0.75 times" in said[1]
    assert "no quicker" not in said[2]


@pytest.mark.parametrize("recipe", ["int8", "fp16"])
def test_an_input_with_a_value_of_its_own_becomes_a_constant_and_is_told(source, request_of, recipe):
    model = onnx.load(source / "1" / "model.onnx")
    model.graph.input.append(tensor("a", WIDTH, 48))
    onnx.save(model, source / "1" / "model.onnx")
    report, directory = made(replace(request_of, recipe=recipe))
    assert [one.name for one in onnx.load(directory / "model.onnx").graph.input] == ["x"]
    assert "inputs with a value of their own are constants in the result, and no inputs: a" in report.warnings
