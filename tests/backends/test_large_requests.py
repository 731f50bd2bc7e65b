"""Large requests, which ONNX Runtime on the CPU may run one by one where they lie."""

from itertools import pairwise

import numpy as np
import onnxruntime
import pytest
from e2e.onnx_models import info, model
from onnx import helper

from headrace.backends.onnxruntime import cpu


@pytest.fixture
def instance(tmp_path, monkeypatch):
    """Of a model of the difference of two inputs, FP32 [N, columns]."""

    def instance(columns):
        monkeypatch.setattr(cpu, "IN_PLACE_BYTES", 8)
        ports = [info(name, "FP32", "N", columns) for name in ("a", "b", "difference")]
        nodes = [helper.make_node("Sub", ["a", "b"], ["difference"])]
        (tmp_path / "model.onnx").write_bytes(model(nodes, ports[:2], ports[2:]))
        return cpu.OnnxRuntimeBackend().load(tmp_path, max_batch=8, threads=1, options={}).make_instance(0)

    return instance


def parts_of(array, sizes):
    """The rows as requests of these sizes, at odd addresses as they come off the wire."""
    return [memoryview(b"x" + array[a:b].tobytes())[1:] for a, b in pairwise(np.cumsum([0, *sizes]))]


def differs(run, sizes, columns):
    """Whether what `run` makes of random numbers, in requests of these sizes, is not their difference."""
    a, b = np.random.default_rng(0).random((2, sum(sizes), columns), np.float32)
    (found,) = run([parts_of(a, sizes), parts_of(b, sizes)], [a.shape, b.shape], [0])
    return not np.array_equal(found, a - b)


def test_rows_run_together_after_as_many_of_one_request_were_run_by_themselves(instance):
    made = instance(2)
    for _ in range(2):
        assert not differs(made._run_joined, (1, 1), 2)
        assert not differs(made._run_each, (2, 1), 2)


def test_copies_last_until_they_have_been_read(instance, monkeypatch):
    """A binding of ONNX Runtime 1.22 does not keep what it is given, of which it reads the memory."""
    monkeypatch.setattr(
        onnxruntime.IOBinding,
        "bind_ortvalue_input",
        lambda binding, name, value: binding._iobinding.bind_ortvalue_input(name, value._ortvalue),
    )
    columns = 60_000
    assert not differs(instance(columns)._run_each, (1, 2), columns)
