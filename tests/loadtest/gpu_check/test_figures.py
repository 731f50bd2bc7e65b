"""What figures are of."""

from gpu_check import bare, facts


def test_batches_in_flight_together_are_counted_together(monkeypatch):
    monkeypatch.setattr(bare, "per_second", lambda run, seconds: run() * seconds)
    assert bare.together([lambda: 100.0, lambda: 50.0], 2.0) == 300.0


def test_the_gpu_that_is_checked_is_the_one_that_is_named(monkeypatch):
    gpus = [{"name": name, "driver_version": "580"} for name in ("first", "second")]
    monkeypatch.setattr(facts.nvidia, "gpus", lambda: gpus)
    monkeypatch.setattr(facts.nvidia, "driver_name", lambda: None)
    assert [facts.facts(device)["gpu"] for device in range(3)] == ["first", "second", None]
