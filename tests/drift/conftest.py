import numpy as np
import pytest

from headrace.drift.alarms import AlarmSettings
from headrace.drift.fit import Source, fit_reference
from headrace.drift.monitor import Monitor
from headrace.drift.watch import watch_of
from headrace.messages import TensorSpec

SALT = bytes(range(16))
WINDOW_MS = 60_000


def spec(shape=(3,), datatype="FP32", name="x", labels=()):
    return TensorSpec(name, datatype, shape, labels)


def watch(shape=(3,), datatype="FP32", name="x", labels=(), **options):
    return watch_of(spec(shape, datatype, name, labels), **options)


def source(rows, name="data", names=()):
    return Source(name, lambda: iter([rows]), len(rows), names)


def reference_of(rows, **options):
    """A reference for rows of a tensor `x`."""
    datatype = options.pop("datatype", "FP32")
    shape = options.pop("shape", rows.shape[1:])
    return fit_reference([(watch(shape, datatype, **options), source(rows))], SALT, "data", 0)


def monitor_of(reference, **settings):
    alarms = AlarmSettings(**({"window_ms": WINDOW_MS, "keep": 4, "quiet_days": 1} | settings))
    watches = [plan.watch for plan, _ in reference.tensors.values()]
    return Monitor("m", "1", watches, alarms, SALT, reference)


@pytest.fixture
def random():
    return np.random.default_rng(7)
