"""For all tests."""

import gc
from types import ModuleType

import pytest
from hypothesis import settings

from headrace.backends.tensorrt import api

# an example may take as long as it takes, for the machine may be busy with something else
settings.register_profile("headrace", deadline=None)
settings.load_profile("headrace")


@pytest.fixture(scope="session")
def rtx():
    """NVIDIA's parser and builder as TensorRT-RTX has them: they need no GPU."""
    bindings = pytest.importorskip("tensorrt_rtx_bindings", reason="`make test` installs TensorRT-RTX on x86-64 Linux")
    return api.wrap(bindings)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Keeps the thousands of tests and their modules, which live to the end, out of the sight of the garbage collector.

    Else each full collection, and there are many, looks through them all: a third of a second.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Buries tritonclient's HTTP clients where they lived: in a thread of a later test they could not be closed.

    Only among what has come since the module began, for a test makes little and the thousands before it have left much.
    """
    if not any(_origin(value).startswith("tritonclient.http") for value in vars(item.module).values()):
        return (yield)
    if _Frozen.module is not item.module:
        _Frozen.module = item.module
        gc.collect()
        gc.freeze()
    result = yield
    gc.collect()
    return result


class _Frozen:
    """The last module with such clients: what was there before it is out of the garbage collector's sight."""

    module = None


def _origin(value):
    """The name of a module, or of that which anything else is from."""
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return name if isinstance(name, str) else ""
