import os

import numpy as np
import onnx

from headrace.quantize.build import Request, build
from headrace.testing.clock import FakeClock
from speed_models.store import TINY
from speed_models.store import build as speed_model


def test_nothing_is_left_where_the_command_is_run(tmp_path, monkeypatch):
    """ONNX Runtime's inference of shapes does not get through this model, and writes down how far it came."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert" / "1").mkdir(parents=True)
    onnx.save(speed_model("bert-fp32", TINY), tmp_path / "bert" / "1" / "model.onnx")
    np.savez("data.npz", **TINY.feeds("bert-fp32", 128))
    request = Request(
        tmp_path.relative_to(tmp_path) / "bert", "int8", "cpu", calibration=("data.npz",), gate=1e-6, search=False,
        speed_s=0,
    )  # fmt: skip
    _, directory = build(request, lambda *_: None, FakeClock(), 0)
    assert os.getcwd() == str(tmp_path)
    assert sorted(os.listdir()) == ["bert", "data.npz"]
    assert sorted(os.listdir("bert")) == ["1", "2"]
    assert directory.name == "2"
