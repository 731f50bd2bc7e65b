"""Models that are made to be looked at: one layer in integers at a time, and all but the most sensitive ones."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.quantize.errors import QuantizeError
from headrace.quantize.evaluate import output_error, run_rows
from headrace.quantize.gate import measured
from headrace.quantize.models import MODEL_FILE, open_session
from headrace.quantize.prepare import save
from headrace.quantize.report import LARGEST_ERROR
from headrace.quantize.search import Found, search

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import onnxruntime as ort

    from headrace.quantize.apply import Write
    from headrace.quantize.data import Dataset
    from headrace.quantize.evaluate import Evaluation
    from headrace.quantize.prepare import Layer
    from headrace.quantize.report import Measure

    Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Trial:
    """A model that was made, in a directory of its own. measure: None for one that does not run, and why."""

    files: list[Path]
    measure: Measure | None
    problem: str = ""

    @property
    def value(self) -> float:
        """What the gate is for."""
        return self.measure.relative if self.measure else -LARGEST_ERROR


@dataclass(frozen=True, slots=True)
class Trials:
    """What makes and judges them. write: the model with these nodes in float.

    fixed: nodes that stay in float in all of them, and why; it grows by layers that cannot be quantized.
    external: whether weights lie in a file of their own.
    """

    write: Write
    directory: Path
    external: bool
    progress: Progress
    fixed: dict[str, str] = field(default_factory=dict)

    def layer_errors(self, session: ort.InferenceSession, sample: Dataset, layers: Sequence[Layer]) -> dict[str, float]:
        """The error at the source's outputs where one layer alone is quantized, for each that can be."""
        names = [one.name for one in session.get_outputs()]
        expected = run_rows(session, sample, names, lambda _, rows: rows)
        place = self.directory / "layer"
        before = tuple(self.fixed)
        errors = {}
        for at, layer in enumerate(layers):
            self.progress("layers", at, len(layers))
            others = [one.name for one in layers if one != layer]
            place.mkdir()
            try:
                file, *_ = save(self.write([*before, *others]), place / MODEL_FILE, external=self.external)
                got = run_rows(open_session(file), sample, names, lambda _, rows: rows)
                errors[layer.name] = min(output_error(expected, got), LARGEST_ERROR)
            except QuantizeError as error:
                self.fixed[layer.name] = f"it cannot be quantized: {error}"
            shutil.rmtree(place)
        self.progress("layers", len(layers), len(layers))
        return errors

    def until(self, known: Evaluation, errors: Mapping[str, float], gate: float) -> Found[Trial]:
        """Leaves the layers with the largest errors in float until the gate holds. See `search`."""
        order = sorted(errors, key=lambda name: -errors[name])
        tried = 0

        def attempt(kept: tuple[str, ...]) -> Trial:
            nonlocal tried
            self.progress("try", tried, tried + 1)
            tried += 1
            return self.attempt(known, kept)

        found = search(order, attempt, lambda trial: trial.value, gate)
        self.progress("try", tried, tried)
        return found

    def attempt(self, known: Evaluation, kept: tuple[str, ...]) -> Trial:
        """One with these layers in float."""
        place = self.directory / f"try-{len(kept)}"
        place.mkdir()
        files: list[Path] = []
        try:
            files = save(self.write([*self.fixed, *kept]), place / MODEL_FILE, external=self.external)
            scores = known.scores(open_session(files[0]))
        except QuantizeError as error:
            return Trial(files, None, str(error))
        task = known.task
        return Trial(files, measured(task.metric, task.labelled, task.output, known.source, scores))
