import logging
import struct

import numpy as np
import pytest

from headrace.datatypes import DATATYPES
from headrace.engine.opening import open_model
from headrace.engine.warmup import read_samples, run_samples, zeros
from headrace.errors import ModelLoadError
from headrace.messages import Signature, TensorSpec
from headrace.pipeline import bytes_tensor
from headrace.repository.discovery import Found
from headrace.repository.model_config import ModelConfig
from headrace.testing.backend import FakeBackend, FakeModel
from headrace.testing.clock import FakeClock

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 2)), TensorSpec("s", "BYTES", (2,))), (), 8)


@pytest.fixture
def read(tmp_path):
    """The samples of these warm-up requests, with these files at hand."""

    def read(*data, signature=SIGNATURE, **files):
        (tmp_path / "warmup").mkdir(exist_ok=True)
        for name, content in files.items():
            (tmp_path / "warmup" / name).write_bytes(content)
        return read_samples(ModelConfig(warmup_data=data), signature, tmp_path)

    return read


def test_zeros_have_1_for_what_may_be_of_any_size():
    row = zeros(SIGNATURE)
    assert (row.dims, row.parts, row.certain) == (((1, 2), (2,)), (bytes(8), bytes(8)), False)
    assert bytes_tensor.decode(row.parts[1], 2) == [b"", b""]
    assert zeros(Signature((TensorSpec("x", "FP32", (2,)),), (), 0)).certain


def test_zeros_of_a_dimension_that_is_0_are_none():
    row = zeros(Signature((TensorSpec("past", "FP32", (4, 0, 2)), TensorSpec("x", "FP32", (2,))), (), 8))
    assert (row.dims, row.parts, row.certain) == (((4, 0, 2), (2,)), (b"", bytes(8)), True)


def test_a_sample_from_files(read):
    x = np.array([[1, 2], [3, 4]], np.float32).tobytes()
    s = b"".join(struct.pack("<I", len(text)) + text for text in (b"a", b"bcd"))
    inputs = {"x": {"dims": (2, 2), "datatype": "FP32", "file": "x"}, "s": {"file": "s"}}
    (sample,) = read({"name": "real", "rows": 3, "runs": 2, "inputs": inputs}, x=x, s=s)
    assert (sample.dims, sample.parts, sample.rows, sample.runs) == (((2, 2), (2,)), (x, s), 3, 2)
    assert sample.certain
    assert sample.shapes(SIGNATURE, 3) == [(3, 2, 2), (3, 2)]


@pytest.mark.parametrize("datatype", DATATYPES)
def test_random_values_are_small_and_the_same_each_time(read, datatype):
    signature = Signature((TensorSpec("x", datatype, (64,)),), (), 8)
    first, second = (read({"inputs": {"x": {"fill": "random"}}}, signature=signature)[0] for _ in range(2))
    assert first.parts == second.parts
    if datatype == "BYTES":  # as in Triton
        assert first.parts == zeros(signature).parts
        return
    values = np.frombuffer(first.parts[0], DATATYPES[datatype].numpy)
    if datatype == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    assert len(values) == 64
    assert values.min() >= 0
    assert 0 < values.max() <= 1
    assert len(set(values.tolist())) > 1


def test_inputs_that_are_not_given_are_zeros(read):
    (sample,) = read({"inputs": {"x": {"dims": (3, 2)}}})
    assert sample.parts == (bytes(24), bytes(8))


def test_more_bytes_than_a_row_takes_are_left(read, caplog):
    with caplog.at_level(logging.WARNING):
        (sample,) = read({"inputs": {"x": {"dims": (1, 2), "file": "x"}}}, x=bytes(range(12)))
    assert sample.parts[0] == bytes(range(8))
    assert "has 12 bytes, of which the first 8 are used" in caplog.text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"inputs": {"q": {}}}, "warm-up request '0' has inputs ['q'], but those of the model are ['x', 's']"),
        ({"rows": 9}, "warm-up request '0' has 9 rows, a batch of the model at most 8"),
        ({}, "warm-up request '0', input 'x': dims must be given, the model's [-1, 2] may be of any size"),
        ({"inputs": {"x": {"dims": (2,)}}}, "warm-up request '0', input 'x': dims [2], the model expects [-1, 2]"),
        ({"inputs": {"x": {"dims": (2, 3)}}}, "warm-up request '0', input 'x': dims [2, 3], the model expects"),
        (
            {"name": "w", "inputs": {"x": {"dims": (1, 2), "datatype": "INT8"}}},
            "warm-up request 'w', input 'x': datatype INT8, the model expects FP32",
        ),
        ({"inputs": {"x": {"dims": (1, 2), "file": "absent"}}}, "warm-up request '0', input 'x': /"),
        ({"inputs": {"x": {"dims": (1, 2), "file": "short"}}}, "warm-up request '0', input 'x': /"),
        ({"inputs": {"x": {"dims": (1, 2)}, "s": {"file": "short"}}}, "warm-up request '0', input 's': /"),
    ],
)
def test_what_is_no_request_of_the_model(read, data, message):
    with pytest.raises(ModelLoadError) as raised:
        read(data, short=b"1234567")
    assert str(raised.value).startswith(message)


def test_what_files_lack(read):
    for name, what in (("absent", "cannot be read: No such file"), ("short", "has 7 bytes, expected 8")):
        with pytest.raises(ModelLoadError, match=what):
            read({"inputs": {"x": {"dims": (1, 2), "file": name}}}, short=b"1234567")


def test_without_batching_a_request_is_one_row(read):
    signature = Signature((TensorSpec("x", "FP32", (2,)),), (), 0)
    (sample,) = read({}, signature=signature)
    assert sample.shapes(signature, 1) == [(2,)]
    with pytest.raises(ModelLoadError, match="has 2 rows, a batch of the model at most 1"):
        read({"rows": 2}, signature=signature)


def test_samples_run_as_often_as_they_say(read):
    signature = Signature((TensorSpec("x", "FP32", (2,)),), (TensorSpec("y", "FP32", (2,)),), 8)
    model = FakeModel(signature)
    row = np.array([5, 6], np.float32)
    samples = read(
        {"rows": 3, "runs": 2, "inputs": {"x": {"file": "x"}}}, {"name": "w"}, signature=signature, x=row.tobytes()
    )
    run_samples(samples, signature, None, model.make_instance(0), "m")
    assert [run.inputs[0].tolist() for run in model.runs] == [[row.tolist()] * 3] * 2 + [[[0, 0]]]
    model.failures.append(ValueError("no"))
    with pytest.raises(ModelLoadError, match=r"^warm-up request '0' failed: no$"):
        run_samples(samples, signature, None, model.make_instance(1), "m")


@pytest.fixture
def opened(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeBackend, "loaded", [])

    def opened(**config):
        config = ModelConfig(backend="headrace.testing.backend:FakeBackend", **config)
        (tmp_path / "m" / "1").mkdir(parents=True, exist_ok=True)
        return open_model(Found("m", 1, tmp_path / "m" / "1", config), FakeClock(), 0)[0]

    return opened


def test_each_instance_runs_the_samples_and_then_all_sizes_of_the_first_ones_row(opened, tmp_path):
    (tmp_path / "m" / "warmup").mkdir(parents=True)
    (tmp_path / "m" / "warmup" / "x").write_bytes(np.array([5, 6], np.float32).tobytes())
    data = ({"rows": 2, "inputs": {"x": {"file": "x"}}}, {"rows": 4})
    opened(instances=2, max_batch=4, warmup=(1, 3), warmup_data=data)
    for instance in FakeBackend.loaded[0].instances:
        assert [run.rows for run in instance.runs] == [2, 4, 1, 1, 1, 3, 3, 3]
        assert instance.runs[-1].inputs[0].tolist() == [[5, 6]] * 3


def test_samples_alone(opened):
    opened(warmup=False, warmup_data=({"rows": 2},))
    assert [run.rows for run in FakeBackend.loaded[0].runs] == [2]


def test_a_sample_that_fails_keeps_the_model_from_serving(opened):
    with pytest.raises(ModelLoadError, match="warm-up request 'w' failed: bad"):
        opened(warmup_data=({"name": "w"},), backend_options={"run_error": "bad"})
    assert [instance.closed for instance in FakeBackend.loaded[0].instances] == [True]
