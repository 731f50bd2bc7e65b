"""A quantized version of a model, from what is asked for to the directory that a server takes: one script."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.processor import this_processor
from headrace.quantize.apply import overflowing, types_of, writer
from headrace.quantize.calibration import calibrate, endless
from headrace.quantize.data import overlap, read_dataset
from headrace.quantize.errors import QuantizeError, VersionTaken
from headrace.quantize.evaluate import choose_task, output_error, prepare_evaluation, run_rows
from headrace.quantize.gate import DEFAULT_GATE, chance, coarse, measured
from headrace.quantize.lineage import lineage
from headrace.quantize.models import (
    copy_beside,
    find_source,
    free_version,
    input_specs,
    open_session,
    put_in_place,
    sha256_of,
    size_of,
    workspace,
)
from headrace.quantize.page import page
from headrace.quantize.prepare import prepare
from headrace.quantize.pruning import WHAT_IT_BRINGS
from headrace.quantize.recipes import Options, choose_recipe
from headrace.quantize.report import (
    LARGEST_ERROR,
    PAGE_FILE,
    REPORT_FILE,
    LayerError,
    OutputError,
    Report,
    SpeedPoint,
    report_json,
)
from headrace.quantize.speed import BATCHES, BUDGET_S, measure, repeated
from headrace.quantize.trials import Trials

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import onnxruntime as ort

    from headrace.clock import Clock
    from headrace.processor import Processor
    from headrace.quantize.data import Dataset, InputSpec
    from headrace.quantize.evaluate import Evaluation
    from headrace.quantize.models import Source
    from headrace.quantize.prepare import Prepared
    from headrace.quantize.recipes import Name, Recipe, Target
    from headrace.quantize.report import Metric
    from headrace.quantize.search import Found
    from headrace.quantize.trials import Trial

    Progress = Callable[[str, int, int], None]
    """What is being done, how much of it is done, of how much."""

LEAST_CALIBRATION, LEAST_EVALUATION = 8, 20
"""Rows; with fewer, nothing that is found means anything."""
CALIBRATION_ROWS = 512
SEARCH_ROWS = 16
"""Rows that the error of a single layer is measured on."""
OUTPUT_ROWS = 32
"""Rows for evaluation that the errors of the outputs are measured on."""
_HARDLY = 0.95
"""Share of the source's size."""
_FAR = 0.2
"""Relative error of an output that the gate does not look at."""
_HELD_OUT = 5
"""One row of so many is evaluated on and not calibrated with, where there are no data for evaluation."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for. See the options of `headrace quantize`.

    reduce_range: None to go by this machine's processor. calibration_rows: at most. search: whether layers may be left
    in float. speed_s: seconds for timing, 0 for none.
    """

    model: Path
    recipe: Name
    target: Target
    calibration: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()
    labels: str = ""
    metric: Metric | None = None
    output: str = ""
    gate: float = DEFAULT_GATE
    options: Options = field(default_factory=Options)
    reduce_range: bool | None = None
    calibration_rows: int = CALIBRATION_ROWS
    search: bool = True
    version: int | None = None
    speed_s: float = BUDGET_S


@dataclass(frozen=True, slots=True)
class _Data:
    calibration: Dataset | None
    evaluation: Dataset
    warnings: tuple[str, ...]


def build(request: Request, progress: Progress, clock: Clock, now_ms: int) -> tuple[Report, Path | None]:
    """Makes, judges and, where the gate holds, writes a version; returns the report, and the version's directory.

    Raises QuantizeError for anything that cannot be used. Whatever happens, what is in the repository is whole.
    """
    recipe = choose_recipe(request.recipe, request.target)
    source = find_source(request.model)
    version = free_version(source, request.version)
    session = open_session(source.file)
    data = _read(request, recipe, input_specs(session))
    processor = this_processor()
    options = _options(request, processor)
    known = _known(session, data.evaluation, request)
    with workspace(source) as directory:
        progress("prepare", 0, 1)
        prepared = prepare(source, recipe, directory, sparse=options.prune)
        progress("prepare", 1, 1)
        trials = _trials(prepared, recipe, options, data, directory, progress)
        errors = _layer_errors(prepared, trials, session, data, request)
        found = trials.until(known, errors, request.gate)
        result = found.outcome
        if result.measure is None:
            raise QuantizeError(f"what was made does not run: {result.problem}")
        speed, untimed = _speed([source.file, result.files[0]], data.evaluation, request.speed_s, clock, progress)
        outputs = _outputs(session, result, data.evaluation.spread(OUTPUT_ROWS))
        finished = result.files[0].parent
        others = copy_beside(source, finished)
        report = Report(
            model=source.model,
            version=version if found.passed else 0,
            source_version=source.version,
            recipe=recipe.name,
            target=recipe.target,
            options=options.of(recipe),
            gate=request.gate,
            passed=found.passed,
            measure=result.measure,
            source_bytes=size_of(source.files),
            result_bytes=size_of(result.files),
            speed=speed,
            layers=_measured_layers(prepared, found, errors),
            excluded=_excluded(prepared, trials.fixed, found, errors),
            tries=found.tries,
            lineage=lineage(
                sha256_of(source.files), sha256_of(result.files), data.calibration, data.evaluation, processor, now_ms
            ),
            warnings=(
                *_warnings(recipe, processor, request, known, found),
                *_unseen(outputs, known.task.output),
                *_no_gain(size_of(source.files), size_of(result.files), speed),
                *data.warnings,
                *prepared.warnings,
                *_sparsity(prepared, found, known),
                *untimed,
                *([f"not copied to the new version: {', '.join(others)}"] if others else []),
            ),
            outputs=outputs,
        )
        return _written(report, finished, source, request.version is not None) if found.passed else (report, None)


def _options(request: Request, processor: Processor) -> Options:
    """Those asked for, with what this processor needs where that was left open."""
    reduce = processor.reduce_range if request.reduce_range is None else request.reduce_range
    return replace(request.options, reduce_range=reduce)


def _written(report: Report, finished: Path, source: Source, chosen: bool) -> tuple[Report, Path]:
    """The version, in its place. chosen: whether it has to have that number, or takes the next that is free."""
    while True:
        (finished / REPORT_FILE).write_bytes(report_json(report))
        (finished / PAGE_FILE).write_text(page(report), encoding="utf-8")
        try:
            return report, put_in_place(finished, source, report.version)
        except VersionTaken:
            if chosen:
                raise
            report = replace(report, version=max(report.version + 1, free_version(source, None)))


def _read(request: Request, recipe: Recipe, specs: Sequence[InputSpec]) -> _Data:
    """Rows to calibrate with and rows to evaluate on, which are not the same ones. Raises QuantizeError."""
    if recipe.calibrated and not request.calibration:
        raise QuantizeError(f"{recipe.name} needs data to calibrate with: give --calibration")
    if not request.calibration and not request.evaluation:
        raise QuantizeError(f"{recipe.name} needs data to be measured on: give --evaluate")
    warnings = []
    calibration = evaluation = None
    labels = request.labels
    if request.calibration:
        own = "" if request.evaluation else labels
        calibration = read_dataset("--calibration", request.calibration, specs, own, wanted=bool(own))
    if request.evaluation:
        evaluation = read_dataset("--evaluate", request.evaluation, specs, labels, wanted=bool(labels))
    elif calibration is not None and not recipe.calibrated:
        calibration, evaluation = None, calibration
    elif calibration is not None:
        rows = np.arange(calibration.rows)
        held = rows % _HELD_OUT == _HELD_OUT - 1
        evaluation = calibration.taken(rows[held])
        calibration = calibration.taken(rows[~held])
        warnings.append(f"no --evaluate: every {_HELD_OUT}th row of --calibration was measured on, not calibrated with")
    assert evaluation is not None
    if recipe.calibrated and calibration is not None and calibration.rows < LEAST_CALIBRATION:
        raise QuantizeError(f"{calibration.rows} rows to calibrate with, expected at least {LEAST_CALIBRATION}")
    if evaluation.rows < LEAST_EVALUATION:
        raise QuantizeError(f"{evaluation.rows} rows to evaluate on, expected at least {LEAST_EVALUATION}")
    if calibration is not None:
        calibration = replace(calibration.spread(request.calibration_rows), labels=None)
        if seen := overlap(evaluation, calibration):
            warnings.append(f"{seen} of {evaluation.rows} rows for evaluation are among those for calibration as well")
    return _Data(calibration, evaluation, tuple(warnings))


def _known(session: ort.InferenceSession, data: Dataset, request: Request) -> Evaluation:
    """What is to be measured, and what the source reaches of it. Raises QuantizeError."""
    first = data.taken(np.arange(min(data.rows, max(32, data.step))))
    outputs = run_rows(session, first, [one.name for one in session.get_outputs()], lambda _, rows: rows)
    whole = {name: array for name, array in outputs.items() if len(array) == first.rows and array.dtype.kind in "fiub"}
    if not whole:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())
        raise QuantizeError(f"no output has a row of numbers for each of the inputs: {shapes} for {first.rows} rows")
    sampled = None if first.labels is None or data.labels is None else first.labels
    task = choose_task(whole, sampled, request.metric, request.output, data.labels)
    known = prepare_evaluation(session, data, task)
    measured(known.task.metric, known.task.labelled, known.task.output, known.source, known.source)
    return known


def _trials(
    prepared: Prepared, recipe: Recipe, options: Options, data: _Data, directory: Path, progress: Progress
) -> Trials:
    """What makes models of the recipe, and knows the nodes that stay in float whatever is tried."""
    ranges: Any = None
    fixed: dict[str, str] = {}
    if recipe.calibrated:
        assert data.calibration is not None
        types = types_of(recipe, convolutional=prepared.convolutional)
        ranges = calibrate(prepared, data.calibration, options, types, directory, progress)
        fixed = endless(prepared, ranges)
    elif recipe.name == "fp16":
        rows = data.calibration or data.evaluation
        ranges = calibrate(prepared, rows, replace(options, method="minmax"), [], directory, progress)
        fixed = overflowing(prepared, ranges)
    write = writer(prepared, recipe, options, ranges, directory)
    return Trials(write, directory, prepared.external, progress, fixed)


def _layer_errors(
    prepared: Prepared, trials: Trials, session: ort.InferenceSession, data: _Data, request: Request
) -> dict[str, float]:
    """By layer; none where none is asked for. Raises QuantizeError where all layers have to stay in float."""
    layers = [layer for layer in prepared.layers if layer.name not in trials.fixed]
    errors: dict[str, float] = {}
    if request.search and layers:
        sample = (data.calibration or data.evaluation).spread(SEARCH_ROWS)
        errors = trials.layer_errors(session, sample, layers)
    if all(layer.name in trials.fixed for layer in prepared.layers):  # some are found only by trying
        reasons = "; ".join(f"{name}: {why}" for name, why in list(trials.fixed.items())[:3])
        raise QuantizeError(f"nothing is left to quantize: {reasons}")
    return errors


def _speed(
    files: Sequence[Path], data: Dataset, budget_s: float, clock: Clock, progress: Progress
) -> tuple[tuple[SpeedPoint, ...], tuple[str, ...]]:
    """Rows a second of source and result, and what is to be said of it."""
    if not budget_s:
        return (), ()

    def feeds(batch: int) -> dict[str, Any]:
        if data.single:
            return {name: data.one(rows, 0) for name, rows in data.inputs.items()}
        return dict(repeated(data.inputs, batch))

    batches = (1,) if data.single else (data.step,) if data.step else BATCHES
    timed = measure(files, feeds, clock, batches, budget_s, progress)
    points = []
    for one in timed.batches:
        before, after = one.sides
        points.append(
            SpeedPoint(one.batch, before.rows_per_second, after.rows_per_second, after.ratio, after.low, after.high)
        )
    return tuple(points), tuple(f"not timed with {batch} rows: {why}" for batch, why in timed.left_out)


def _measured_layers(prepared: Prepared, found: Found[Trial], errors: Mapping[str, float]) -> tuple[LayerError, ...]:
    return tuple(
        LayerError(layer.name, layer.op_type, errors[layer.name], layer.name in found.kept)
        for layer in prepared.layers
        if layer.name in errors
    )


def _excluded(
    prepared: Prepared, fixed: Mapping[str, str], found: Found[Trial], errors: Mapping[str, float]
) -> tuple[tuple[str, str], ...]:
    kept = [(name, f"{_moved(errors[name])}; left in float so that the gate holds") for name in found.kept]
    return (*kept, *fixed.items(), *prepared.left)


def _moved(error: float) -> str:
    if error >= LARGEST_ERROR:
        return "quantized alone, it makes an output no number"
    return f"quantized alone, it moves the outputs by {error:.3g}"


def _warnings(
    recipe: Recipe, processor: Processor, request: Request, known: Evaluation, found: Found[Trial]
) -> list[str]:
    said = [recipe.warning]
    if recipe.target == "cpu" and recipe.name.startswith("int8"):
        said.append(processor.warning)
    if not known.task.labelled:
        said.append("no labels: what was measured is agreement with the source, no accuracy")
    if known.task.metric == "accuracy" and found.outcome.measure:
        _, counts = np.unique(known.truth, return_counts=True)
        said.append(chance(found.outcome.measure, float(counts.max() / counts.sum())))
    said.append(coarse(known.task.metric, float(known.source.mean()), known.data.rows, request.gate))
    if found.passed and found.kept:
        said.append(
            f"the rows for evaluation have chosen how many layers stay in float ({len(found.tries)} tries): "
            "on other rows the measure may be a little worse"
        )
    return [one for one in said if one]


def _outputs(source: ort.InferenceSession, result: Trial, rows: Dataset) -> tuple[OutputError, ...]:
    names = [one.name for one in source.get_outputs()]
    before, after = (
        run_rows(session, rows, names, lambda _, array: array) for session in (source, open_session(result.files[0]))
    )
    errors = {name: output_error({name: before[name]}, {name: after[name]}) for name in names}
    return tuple(OutputError(name, min(error, LARGEST_ERROR)) for name, error in errors.items())


def _unseen(outputs: Sequence[OutputError], measured: str) -> list[str]:
    """Outputs that are far from the source's, and that the gate does not look at."""
    return [
        f"output {one.name} moves by {one.error:.0%} of its size, and the gate is for {measured} alone; "
        f"--output {one.name} measures that one"
        for one in outputs
        if one.name != measured and one.error > _FAR
    ]


def _no_gain(source_bytes: int, result_bytes: int, speed: Sequence[SpeedPoint]) -> list[str]:
    """Sizes and speeds that are no better than the source's."""
    said = []
    share = result_bytes / source_bytes
    if share >= _HARDLY:
        said.append(
            f"{'larger' if share > 1 else 'hardly smaller'} than the source ({share:.0%}): what was quantized is a "
            "small part of it, beside what converts"
        )
    if speed and all(point.ratio <= 1 for point in speed):
        best = max(point.ratio for point in speed)
        said.append(f"no quicker than the source on this processor at any batch size, at best {best:.2f} times")
    return said


def _sparsity(prepared: Prepared, found: Found[Trial], known: Evaluation) -> list[str]:
    """What pruning did, and what it alone costs."""
    if not prepared.sparse:
        return []
    pruned = prepared.pruned(prepared.copy(prepared.layer_names), found.kept)
    scores = known.scores(open_session(prepared.file))
    alone = measured(known.task.metric, known.task.labelled, known.task.output, known.source, scores).relative
    chosen = set(prepared.layer_names) - set(found.kept)
    skipped = "".join(f"; not pruned: {name}: {reason}" for name, reason in pruned.skipped if name in chosen)
    return [
        f"2:4 pruning made {pruned.zeroed_share:.0%} of the weights of {len(pruned.layers)} layers 0; in float, with "
        f"all layers pruned, the model reaches {alone:.4f} of the source{skipped}",
        WHAT_IT_BRINGS,
    ]
