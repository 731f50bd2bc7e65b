import dataclasses

import pytest

from headrace.telemetry.statistics import Duration, Statistics


def test_a_fresh_model_has_zeros_everywhere():
    statistics = Statistics()
    assert {getattr(statistics, field.name) for field in dataclasses.fields(Statistics)[3:-1]} == {Duration(0, 0)}
    assert (statistics.last_inference_ms, statistics.inference_count, statistics.execution_count) == (0, 0, 0)
    assert statistics.batches == []


def test_statistics_are_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Statistics().inference_count = 1
    assert Statistics().batches is not Statistics().batches
