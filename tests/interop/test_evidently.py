"""Evidently opens the tables of a report, and finds what was found. `tests/interop/setup evidently` installs it."""

import numpy as np
import pytest
from drift.conftest import monitor_of, reference_of
from interop.peers import CLIENTS, PEERS, report

from headrace.drift import export
from headrace.drift import report as reports

PYTHON = PEERS / "interop/evidently/bin/python"

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason=f"{PYTHON} not there: run tests/interop/setup evidently, a gigabyte"
)


def test_the_tables_of_a_report(tmp_path):
    random = np.random.default_rng(5)
    monitor = monitor_of(reference_of(random.normal(size=(5000, 4))))
    monitor.count(0, {"inputs.x": random.normal(size=(3000, 4)) + np.array([0, 0, 0, 0.5])}, 3000)
    found = reports.report(monitor, 0)
    paths = [tmp_path / name for name in ("reference.csv", "window.csv")]
    for path, text in zip(paths, export.tables(found), strict=True):
        path.write_text(text)
    seen = report(PYTHON, "-W", "ignore", CLIENTS / "evidently_client.py", *paths)
    assert seen["drifted"] == 1
    ours = {f"{one.direction}.{one.tensor}.{one.feature}": one.wasserstein for one in found.features}
    assert max(seen["columns"], key=seen["columns"].get) == max(ours, key=ours.get) == "inputs.x.3"
    # its distance is Wasserstein's in standard deviations, too, of rows that were drawn from our bins
    assert seen["columns"] == {name: pytest.approx(distance, abs=0.05) for name, distance in ours.items()}
