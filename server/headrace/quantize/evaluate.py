"""How good a model is on rows: by labels, or by how far it agrees with its source. Pure, but for the runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.quantize.errors import QuantizeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnxruntime as ort

    from headrace.quantize.data import Dataset
    from headrace.quantize.report import Metric

    Array = np.ndarray[Any, Any]
    Scores = np.ndarray[Any, np.dtype[np.float64]]
    Progress = Callable[[str, int, int], None]

_OF_CLASSES = ("accuracy", "top1_agreement")


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked of which output. classes: its values are classes, not scores of classes or numbers."""

    metric: Metric
    labelled: bool
    output: str
    classes: bool


def choose_task(
    outputs: Mapping[str, Array],
    labels: Array | None,
    metric: Metric | None,
    output: str,
    every: Array | None = None,
) -> Task:
    """What is measured by these outputs of the source, [rows, ...], and labels of the same rows.

    metric: None for what fits; output: "" for the first that does. every: the labels of all rows, if these are some:
    data in the order of their classes begin with rows of one. With labels it is accuracy where they are classes of a
    score or of an integer output, else R2; without, top-1 agreement where outputs are probabilities or classes, else
    the cosine of an output and the source's, or R2 of it where a row is a single number. Raises QuantizeError if
    nothing fits.
    """
    if output and output not in outputs:
        raise QuantizeError(f"no output {output!r}, but {', '.join(outputs)}")
    if labels is None and metric == "accuracy":
        raise QuantizeError("accuracy is of labels, and there are none: give --labels, or ask for top1_agreement")
    if labels is not None and metric in ("top1_agreement", "cosine"):
        raise QuantizeError(f"{metric} is for data without labels: leave --labels out, or ask for accuracy or r2")
    wanted = {name: array for name, array in outputs.items() if not output or name == output}
    labelled = labels is not None
    for kind in (metric,) if metric else ("accuracy", "r2") if labelled else ("top1_agreement", "cosine", "r2"):
        for name, array in wanted.items():
            if labels is not None:
                all_of_them = labels if every is None else every
                of_classes = kind == "accuracy" and _fits_classes(array, labels, all_of_them)
                fits = of_classes or (kind == "r2" and _fits_numbers(array, labels))
            elif kind == "top1_agreement":
                fits = _tells_classes(array, outputs) or (metric is not None and _classes(array))
            else:
                fits = array.dtype.kind == "f" and (array[:1].size > 1 if kind == "cosine" else array.size > 0)
            if fits:
                return Task(kind, labelled, name, array.dtype.kind != "f")
    shapes = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in wanted.items())
    of = "" if labels is None else f" for labels {labels.dtype} {list(labels.shape)}"
    raise QuantizeError(f"no output fits{f' {metric}' if metric else ''}{of}: there are {shapes}")


def _fits_classes(array: Array, labels: Array, every: Array) -> bool:
    """Whether labels are among the classes that an output is of, or has scores for. every: those of all rows."""
    labels = _squeezed(labels, array)
    if not np.array_equal(every, np.floor(every)) or every.min() < 0:
        return False
    if array.dtype.kind == "f":
        return array.ndim == labels.ndim + 1 and array.shape[:-1] == labels.shape and array.shape[-1] > every.max() > 0
    return array.dtype.kind in "iub" and array.shape == labels.shape


def _fits_numbers(array: Array, labels: Array) -> bool:
    return array.dtype.kind == "f" and array.size == labels.size and array[:1].size == labels[:1].size


def _squeezed(labels: Array, array: Array) -> Array:
    """Labels without a last dimension of 1, which a column of a table has, where the output has none such."""
    one = labels.ndim > 1 and labels.shape[-1] == 1 and array.shape[: labels.ndim] != labels.shape
    return labels[..., 0] if one else labels


def _classes(array: Array) -> bool:
    return array.dtype.kind in "iub" or (array.ndim > 1 and array.shape[-1] > 1)


def _tells_classes(array: Array, outputs: Mapping[str, Array]) -> bool:
    """Whether an output is of classes by its looks: probabilities, or integers beside scores of them."""
    if array.dtype.kind == "f":
        sums = array.sum(axis=-1) if array.ndim > 1 and array.shape[-1] > 1 else None
        return sums is not None and bool(array.min() >= -1e-6) and bool(np.allclose(sums, 1, atol=1e-2))
    scores = (one for one in outputs.values() if one.dtype.kind == "f")
    return array.dtype.kind in "iu" and any(
        one.shape[:-1] == array.shape and one.shape[-1] > 1 for one in scores if one.ndim > 1
    )


def run_rows(
    session: ort.InferenceSession, data: Dataset, names: list[str], reduce: Callable[[str, Array], Array]
) -> dict[str, Array]:
    """Outputs of all rows, [rows, ...], each run's after `reduce`. Raises QuantizeError if a run fails."""
    parts: dict[str, list[Array]] = {name: [] for name in names}
    for part, feeds in data.feeds():
        try:
            got = session.run(names, feeds)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise QuantizeError(f"a run of rows {part.start} to {part.stop - 1} fails: {_line(error)}") from None
        for name, array in zip(names, got, strict=True):
            if not isinstance(array, np.ndarray):
                raise QuantizeError(f"output {name} is no tensor: a model with ZipMap, say, cannot be measured")
            rows = array[None] if data.single else array
            if len(rows) != part.stop - part.start and len(names) == 1:
                raise QuantizeError(f"output {name} has {len(rows)} rows for {part.stop - part.start} of the inputs")
            parts[name].append(reduce(name, rows))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A task on rows whose answers are known: labels, or what the source said. source: its scores, FP64 [rows]."""

    task: Task
    data: Dataset
    truth: Array
    source: Scores

    def scores(self, session: ort.InferenceSession) -> Scores:
        """Of a model on the same rows; all 0 where any of its outputs is no number. Raises QuantizeError."""
        answers = _answers(session, self.data, self.task)
        if _broken(answers, self.task):
            return np.zeros(len(self.source))
        return _scores(self.task, self.truth, answers)


def prepare_evaluation(session: ort.InferenceSession, data: Dataset, task: Task) -> Evaluation:
    """Runs the source. Raises QuantizeError for outputs that nothing can be held against."""
    answers = _answers(session, data, task)
    if _broken(answers, task):
        raise QuantizeError(
            f"the source's own output {task.output} is not finite on some rows: nothing can be held against"
        )
    truth = answers if data.labels is None else _squeezed(data.labels, answers).reshape(answers.shape)
    if task.metric == "r2" and not np.any(truth != truth[:1]):
        raise QuantizeError(f"R2 needs different values; {'labels' if task.labelled else task.output} are all the same")
    return Evaluation(task, data, truth, _scores(task, truth, answers))


def _answers(session: ort.InferenceSession, data: Dataset, task: Task) -> Array:
    """Classes, -1 for scores with NaN; or FP64 numbers."""

    def reduce(_: str, rows: Array) -> Array:
        if task.metric not in _OF_CLASSES:
            return rows.astype(np.float64)
        if task.classes:
            return rows.astype(np.int64)
        return np.where(np.isnan(rows).any(axis=-1), -1, rows.argmax(axis=-1))

    return run_rows(session, data, [task.output], reduce)[task.output]


def _broken(answers: Array, task: Task) -> bool:
    if task.metric in _OF_CLASSES:
        return not task.classes and bool((answers < 0).any())
    return not np.isfinite(answers).all()


def _scores(task: Task, truth: Array, answers: Array) -> Scores:
    """FP64 [rows], whose mean is the metric.

    R2 is 1 - sum |y - f|^2 / sum |y - mean(y)|^2 over rows and elements; a row's part of it, 1 - |y - f|^2 over the
    mean of the latter.
    """
    rows = len(answers)
    if task.metric in _OF_CLASSES:
        found: Scores = (answers == truth).reshape(rows, -1).mean(axis=1)
        return found
    answers, truth = answers.reshape(rows, -1), truth.reshape(rows, -1).astype(np.float64)
    if task.metric == "r2":
        spread = np.square(truth - truth.mean(axis=0)).sum(axis=1).mean()
        left: Scores = 1 - np.square(truth - answers).sum(axis=1) / spread
        return left
    norms = np.linalg.norm(answers, axis=1) * np.linalg.norm(truth, axis=1)
    products = (answers * truth).sum(axis=1)
    cosine: Scores = np.where(norms > 0, products / np.where(norms > 0, norms, 1), np.all(answers == truth, axis=1))
    return cosine


def output_error(source: Mapping[str, Array], result: Mapping[str, Array]) -> float:
    """How far outputs are from the source's: the relative L2 error, or the share of integers that differ; the largest.

    Floats decide where there are some. inf for what is no number.
    """
    floats = [name for name, array in source.items() if array.dtype.kind == "f"]
    worst = 0.0
    for name in floats or list(source):
        expected, got = source[name], result[name]
        if expected.shape != got.shape:
            return float("inf")
        if name not in floats:
            worst = max(worst, float(np.mean(expected != got)) if got.size else 0.0)
            continue
        expected, got = expected.astype(np.float64), got.astype(np.float64)
        if not np.isfinite(got[np.isfinite(expected)]).all():
            return float("inf")
        usable = np.isfinite(expected) & np.isfinite(got)
        error, size = np.linalg.norm(got[usable] - expected[usable]), np.linalg.norm(expected[usable])
        worst = max(worst, float(error / size) if size else float(error > 0))
    return worst
