import logging

import numpy as np
import pytest

from headrace.engine import warm_buckets as module
from headrace.engine.policies import cost_model, make_buckets
from headrace.engine.warm_buckets import warm_buckets
from headrace.errors import ModelLoadError
from headrace.messages import Signature, TensorSpec
from headrace.repository.model_config import ModelConfig
from headrace.testing.backend import FakeModel
from headrace.testing.clock import FakeClock

MS = 1_000_000
SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("mask", "INT32", (-1,)), TensorSpec("t", "BYTES", (1,))),
    (TensorSpec("y", "FP32", (-1, 2)),),
    4,
)
CONFIG = {"buckets": {"n": {"sizes": [2, 4], "inputs": {"x": 1}, "masks": {"mask": 1}, "outputs": {"y": 1}}}}


def warm(compute=lambda inputs: inputs[:1], *, config=CONFIG, signature=SIGNATURE, sizes=(1, 2, 4), latency_ns=MS):
    clock = FakeClock()
    model = FakeModel(signature, compute, latency_ns=latency_ns, spend=clock.advance)
    settings = ModelConfig.model_validate(config)
    cost = cost_model(settings, signature, 0)
    buckets = make_buckets(settings, signature)
    warm_buckets("m", signature, buckets, model.make_instance(0), sizes, cost, clock)
    fits = {fit.sizes[0]: fit for fit, _ in buckets.all()}
    return [run.inputs[0].shape[:2] for run in model.runs], cost, fits, model


def test_every_bucket_runs_with_every_batch_size():
    shapes, cost, fits, model = warm(latency_ns=lambda rows: rows * MS)
    order = [(rows, size) for rows in (1, 2, 4) for size in (4, 2)]
    assert shapes == [shape for shape in order for _ in range(3)]
    assert [cost.of(fits[2]).mean(rows) for rows in (1, 2, 4)] == [MS, 2 * MS, 4 * MS]
    assert (model.runs[0].inputs[1] == 1).all()  # the mask: all of it is data


def test_it_ends_when_its_time_is_over(monkeypatch):
    monkeypatch.setattr(module, "WARM_SECONDS", 0.010)
    shapes, cost, fits, _ = warm(latency_ns=lambda rows: rows * MS)
    # two buckets of a row take 6 ms; two rows of one would take until 12
    assert shapes == [(1, 4)] * 3 + [(1, 2)] * 3
    assert cost.of(fits[4]).mean(4) == 4 * MS


def test_a_bucket_that_takes_too_long_is_the_last(monkeypatch):
    monkeypatch.setattr(module, "WARM_SECONDS", 0.002)
    shapes, cost, fits, _ = warm()
    assert shapes == [(1, 4)] * 3
    assert cost.of(fits[2]).mean(1) == MS // 2


def test_what_would_take_very_much_memory_is_left_out(monkeypatch):
    monkeypatch.setattr(module, "WARM_BYTES", 2 * (4 * 2 * 4 + 4 * 4 + 4))
    assert set(warm()[0]) == {(1, 4), (1, 2), (2, 4), (2, 2)}


def test_nothing_runs_where_nothing_is_asked_for():
    assert warm(sizes=[])[0] == []


def test_a_model_that_cannot_run_a_bucket_is_not_served():
    def fail(inputs):
        raise ValueError("no")

    with pytest.raises(ModelLoadError) as caught:
        warm(fail)
    assert str(caught.value) == "a first run on 1 rows of zeros, [4, 2] and [4] and [1] each, failed: no"


def test_outputs_of_another_size_than_model_toml_says_are_found():
    with pytest.raises(ModelLoadError, match=r"output 'y' has shape \[1, 3, 2\] where n is 4; by buckets\.n\.outputs"):
        warm(lambda inputs: [inputs[0][:, 1:]])


def test_dimensions_without_buckets_need_not_run(caplog):
    signature = Signature((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, 2)),), 4)

    def two(inputs):
        if inputs[0].shape[2] != 2:
            raise ValueError("two are needed")
        return inputs

    config = {"buckets": {"n": {"sizes": [2], "inputs": {"x": 1}, "outputs": {"y": 1}}}}
    with caplog.at_level(logging.WARNING):
        _, cost, _, _ = warm(two, signature=signature, config=config)
    assert "model m is not warmed: 1 rows of zeros, [2, 1] each, failed: two are needed" in caplog.text
    assert cost.observed == 0


def test_rows_of_text_are_empty():
    seen = []
    warm(lambda inputs: seen.append(inputs[2].tolist()) or [np.array(inputs[0])], sizes=[2])
    assert seen[0] == [[b""], [b""]]
