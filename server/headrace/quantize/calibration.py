"""The ranges of a model's tensors, of rows that are like those it will be asked about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.quantize.errors import QuantizeError
from headrace.quantize.packages import hushed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from headrace.quantize.data import Dataset
    from headrace.quantize.prepare import Prepared
    from headrace.quantize.recipes import Options

    Ranges = Any
    """ONNX Runtime's TensorsData."""
    Feed = dict[str, np.ndarray[Any, Any]]
    Progress = Callable[[str, int, int], None]


class _Once:
    """A CalibrationDataReader of a single run: what is kept of a run is then folded before the next."""

    def __init__(self, feed: Feed) -> None:
        self._feed: Feed | None = feed

    def get_next(self) -> Feed | None:
        feed, self._feed = self._feed, None
        return feed


def calibrate(
    prepared: Prepared, data: Dataset, options: Options, types: list[str], directory: Path, progress: Progress
) -> Ranges:
    """Least and greatest value of each tensor at nodes of these types.

    By the extremes that were seen (minmax), by the least loss of information (entropy), or by leaving out the rarest
    values (percentile). Raises QuantizeError where a run fails.
    """
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    try:
        with hushed():
            calibrator = create_calibrator(
                prepared.file,
                types,
                augmented_model_path=str(directory / "augmented.onnx"),
                calibrate_method=methods[options.method],
                use_external_data_format=prepared.external,
                extra_options={"percentile": options.percentile} if options.method == "percentile" else {},
            )
            of = data.runs()
            for at, (_, feed) in enumerate(data.feeds()):
                progress("calibrate", at, of)
                calibrator.collect_data(_Once(feed))
            ranges = calibrator.compute_data()
        progress("calibrate", of, of)
    except Exception as error:  # ONNX Runtime's have no common base, its tool's are plain ones
        raise QuantizeError(f"calibration fails: {' '.join(str(error).split())}") from None
    return ranges


def endless(prepared: Prepared, ranges: Ranges) -> dict[str, str]:
    """Layers at a tensor that is not finite on the data, which no 8 bits hold; its range is taken out of `ranges`."""
    gone = {name for name, found in ranges.items() if not np.isfinite(np.asarray(found.range_value, np.float64)).all()}
    for name in gone:
        del ranges.data[name]
    layers = set(prepared.layer_names)
    found = {}
    for node in prepared.model.graph.node:
        met = [name for name in (*node.input, *node.output) if name in gone]
        if node.name in layers and met:
            found[node.name] = f"{met[0]} is not finite on these data"
    return found


def largest(ranges: Ranges) -> dict[str, float]:
    """The largest absolute value of each tensor that is finite."""
    found = {name: float(np.max(np.abs(one.range_value))) for name, one in ranges.items()}
    return {name: value for name, value in found.items() if np.isfinite(value)}
