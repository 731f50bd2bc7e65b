"""The check of a GPU that is lost under load, with backends in the place of the GPU's."""

from pathlib import Path

import numpy as np
import pytest

from gpu_check import serving
from gpu_check.checks import fallback
from gpu_check.context import ROOT, Context
from gpu_check.faulting import FATAL, FaultingBackend
from gpu_check.registry import Failed
from headrace.testing.device import FakeDevice


def test_a_number_breaks_the_gpu_and_all_others_come_back():
    broken = []
    model = FaultingBackend(lambda index: FakeDevice(), broken.append).load(
        Path("none"), max_batch=None, threads=0, options={"device": 0}
    )
    instance = model.make_instance(0)
    for number in (1.0, FATAL):
        x = np.array([[number]], np.float32)
        (y,) = instance.run([[x.tobytes()]], [(1, 1)], [0])
        assert y == number
        assert len(broken) == (number == FATAL)


@pytest.fixture
def losing(monkeypatch, tmp_path):
    """The check of a lost GPU, with backends of this folder in the place of the GPU's and of the one that breaks it."""
    folders = (ROOT / "server", ROOT / "loadtest", Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, folders)))
    monkeypatch.setenv("BROKEN", str(tmp_path / "broken"))
    monkeypatch.setattr(fallback, "LOST", "losing:LosingBackend")
    monkeypatch.setattr(fallback, "FAULTING", "losing:BreakingBackend")


def test_a_gpu_is_lost_under_load(losing, models, tmp_path):
    figures = fallback.fallback_lost_device(Context(tmp_path, models, seconds=0.3, cpu=True))
    assert figures["serving"] == [fallback.INSTEAD]
    assert figures["headrace_instances_lost_total"] >= 1
    assert figures["headrace_rerun_requests_total"] >= 1
    assert figures["nv_inference_request_failure"] == 0
    assert figures["rows_per_second_during"] > 0


def test_a_gpu_that_is_not_lost_fails(losing, models, tmp_path, monkeypatch):
    monkeypatch.setattr(fallback, "FAULTING", "losing:HarmlessBackend")
    with pytest.raises(Failed, match=r"expected instances lost.*losing:LosingBackend"):
        fallback.fallback_lost_device(Context(tmp_path, models, seconds=0.3, cpu=True))


def test_a_server_that_does_not_end_well_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ":".join(str(ROOT / source) for source in ("server", "loadtest")))
    monkeypatch.setattr(serving, "STOP_SECONDS", 0)
    (tmp_path / "repository").mkdir()
    with pytest.raises(Failed, match="asked to stop, the server ended with -9"):  # noqa: SIM117
        with serving.serving(tmp_path / "repository", tmp_path) as server:
            assert server.log.exists()
