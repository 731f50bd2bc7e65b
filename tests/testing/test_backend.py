import threading

import numpy as np
import pytest

from headrace.errors import ModelLoadError
from headrace.messages import Signature, TensorSpec
from headrace.testing.backend import FakeBackend, FakeModel
from headrace.testing.clock import FakeClock

ROW = np.array([1, 2], np.float32).tobytes()


def test_an_instance_computes_and_remembers():
    model = FakeModel(compute=lambda inputs: [inputs[0] * 2])
    instance = model.make_instance(0)
    (result,) = instance.run([[ROW, ROW * 2]], [(3, 2)], [0])
    assert result.tolist() == [[2, 4]] * 3
    assert [(run.rows, run.requests) for run in model.runs] == [(3, 2)]
    assert repr(instance) == "<FakeInstance 0 open, 1 runs>"


def test_texts():
    spec = TensorSpec("t", "BYTES", (-1,))
    instance = FakeModel(Signature((spec,), (spec,), 4)).make_instance(0)
    (result,) = instance.run([[b"\1\0\0\0a\0\0\0\0", b"\2\0\0\0bc\1\0\0\0d"]], [(2, 2)], [0])
    assert result.tolist() == [[b"a", b""], [b"bc", b"d"]]


def test_a_run_takes_its_latency():
    clock = FakeClock(0)
    model = FakeModel(latency_ns=lambda rows: rows * 10, spend=clock.advance)
    instance = model.make_instance(0)
    instance.run([[ROW * 4]], [(4, 2)], [0])
    assert clock() == 40
    with model.timeless():
        instance.run([[ROW]], [(1, 2)], [0])
    assert clock() == 40


def test_failures_come_in_their_order():
    model = FakeModel()
    model.failures += [None, ValueError("second")]
    instance = model.make_instance(0)
    instance.run([[ROW]], [(1, 2)], [0])
    with pytest.raises(ValueError, match="second"):
        instance.run([[ROW]], [(1, 2)], [0])
    instance.run([[ROW]], [(1, 2)], [0])
    assert len(model.runs) == 3


def test_a_held_instance_blocks_its_thread_until_released():
    instance = FakeModel().make_instance(0)
    instance.hold()
    done = threading.Event()
    thread = threading.Thread(target=lambda: (instance.run([[ROW]], [(1, 2)], [0]), done.set()))
    thread.start()
    assert instance.held
    assert not done.is_set()
    instance.release()
    thread.join(10)
    assert done.is_set()


def test_a_closed_instance_does_not_run():
    instance = FakeModel().make_instance(0)
    instance.close()
    with pytest.raises(AssertionError, match="run after close"):
        instance.run([[ROW]], [(1, 2)], [0])
    with pytest.raises(AssertionError, match="closed twice"):
        instance.close()


def test_the_backend_loads_or_does_not(tmp_path):
    backend = FakeBackend()
    assert backend.load(tmp_path, max_batch=None, threads=1, options={}).signature.max_batch == 8
    assert backend.load(tmp_path, max_batch=3, threads=1, options={"dims": [4]}).signature.inputs[0].shape == (4,)
    with pytest.raises(ModelLoadError, match="no disk"):
        backend.load(tmp_path, max_batch=None, threads=1, options={"refuse": "no disk"})
    with pytest.raises(RuntimeError, match="oops"):
        backend.load(tmp_path, max_batch=None, threads=1, options={"crash": "oops"})
    broken = backend.load(tmp_path, max_batch=None, threads=1, options={"run_error": "bad op"}).make_instance(0)
    with pytest.raises(ValueError, match="bad op"):
        broken.run([[ROW]], [(1, 2)], [0])
