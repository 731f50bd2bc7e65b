import logging

import pytest

from headrace.backends.tensorrt import api


@pytest.fixture(scope="session")
def rtx():
    """NVIDIA's parser and builder as TensorRT-RTX has them: they need no GPU."""
    bindings = pytest.importorskip("tensorrt_rtx_bindings", reason="`make test` installs TensorRT-RTX on x86-64 Linux")
    return api.wrap(bindings)


@pytest.fixture
def logged(caplog):
    """What the backend has logged, as text."""
    caplog.set_level(logging.INFO, "headrace.backends.tensorrt")
    return lambda: [record.getMessage() for record in caplog.records]
