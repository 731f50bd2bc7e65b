import pytest
from engine.controlling import Repository

from headrace.testing.backend import FakeBackend


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Of models that nothing has loaded yet, and that run as quickly as no test says otherwise."""
    monkeypatch.setattr(FakeBackend, "loaded", [])
    monkeypatch.setattr(FakeBackend, "latency_ns", 5000)
    monkeypatch.setattr(FakeBackend, "spend", None)
    return Repository(tmp_path)
