import logging

import pytest
from backends.tensorrt import networks
from backends.tensorrt.fake import FakeTensorRt

from headrace.backends.tensorrt import api, policy
from headrace.backends.tensorrt.backend import TensorRtBackend
from headrace.config import TensorRtSettings
from headrace.testing.device import FakeDevice


@pytest.fixture
def logged(caplog):
    """What the backend has logged, as text."""
    caplog.set_level(logging.INFO, "headrace.backends.tensorrt")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def devices():
    return [FakeDevice(index) for index in range(2)]


@pytest.fixture
def trt():
    """TensorRT in the host's memory."""
    return FakeTensorRt()


@pytest.fixture
def settings(tmp_path):
    """Says what the operator has decided; by default engines are cached in `tmp_path`."""

    def settings(**values):
        policy.use(TensorRtSettings(**{"engine_cache": str(tmp_path / "engines")} | values))

    before = policy.settings()
    settings()
    yield settings
    policy.use(before)


@pytest.fixture
def load(trt, devices, settings, tmp_path):
    """Loads a version of a model: a network, or the content of a file. Others are left as they were."""
    found = api.wrap(trt)

    def load(made=None, max_batch=None, version="1", name="model.onnx", external=False, **options):
        path = tmp_path / "m" / version
        path.mkdir(parents=True, exist_ok=True)
        if isinstance(made, bytes):
            (path / name).write_bytes(made)
        elif made is not None:
            networks.save(made, path / name, external)
        backend = TensorRtBackend(lambda: found, devices.__getitem__, {}, iter(range(10**6)).__next__)
        return backend.load(path, max_batch=max_batch, threads=0, options=options)

    return load
