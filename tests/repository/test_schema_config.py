"""Rules as text, and rules made of data."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.datatypes import DATATYPES
from headrace.engine.rules import input_rules
from headrace.errors import ConfigError
from headrace.messages import InputTensor, Signature, TensorSpec
from headrace.pipeline import bytes_tensor
from headrace.pipeline.screen import screen_of
from headrace.repository.model_config import ModelConfig, load_model_config
from headrace.repository.schema_builder import infer_schema
from headrace.repository.schema_config import SCHEMA_FORMAT, InputRules, Schema, read_schema, schema_text

BOUND = "expected a finite number, or a list with a number for each feature"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min = 'a'", 'inputs.x.min = "a" (in {file}): ' + BOUND),
        ("max = []", "inputs.x.max = [] (in {file}): " + BOUND),
        ("min = [1, 5]\nmax = [2, 4]", "inputs.x: min = 5 of feature 1 is above max = 4 (in {file})"),
        ("min = [1, 5]\nmax = [2, 4, 6]", "inputs.x: min has 2 values and max 3, expected one for each feature"),
        ("min = [1, 5]\nmax = 4", "inputs.x: min = 5 of feature 1 is above max = 4 (in {file})"),
        ("min = [nan, 1]", "inputs.x.min = [NaN, 1] (in {file}): " + BOUND),
        ("mini = 1\n", "unknown key 'inputs.x.mini' (in {file}); did you mean 'min'?"),
        ("foo = 1\n", "unknown key 'inputs.x.foo' (in {file}); known: datatype, dims, fill, finite, format, max, "),
        ("min = inf", "inputs.x.min = Infinity"),
        ("max_missing = 1.5", "inputs.x.max_missing = 1.5 (in {file}): expected a number from 0 to 1"),
        ("min_width = 9\nmax_width = 8", "inputs.x: min_width = 9 is above max_width = 8 (in {file})"),
        ("values = [1, 'a']", "inputs.x: values has numbers and texts, expected one kind (in {file})"),
        ("values = []", "expected a list of numbers or of texts that is not empty"),
        ("policy.values = 'clip'", 'inputs.x: policy.values = "clip" has no meaning; range and finite can be clipped'),
        ("policy.range = 'drop'", 'inputs.x.policy.range = "drop" (in {file}): expected'),
        ("policy.ranges = 'count'", "ranges"),
        ("names = ['a', 'b', 'a']", "inputs.x: names has 'a' twice (in {file})"),
    ],
)
def test_rules_that_are_none(tmp_path, text, message):
    file = tmp_path / "model.toml"
    file.write_text(f"[inputs.x]\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load_model_config(file)
    assert message.format(file=file) in str(caught.value)
    assert "\n" not in str(caught.value)


numbers = st.one_of(st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False))
bounds = st.one_of(numbers, st.lists(st.one_of(numbers, st.just(-np.inf)), min_size=1, max_size=4))
given_rules = st.fixed_dictionaries(
    {},
    optional={
        "finite": st.booleans(),
        "min": bounds,
        "values": st.one_of(st.lists(numbers, min_size=1), st.lists(st.text(), min_size=1)),
        "max_missing": st.floats(0, 1),
        "fill": bounds,
        "max_height": st.integers(1, 100),
        "max_length": st.integers(0, 100),
        "pattern": st.text(),
        "names": st.lists(st.text(), max_size=3, unique=True),
        "policy": st.dictionaries(
            st.sampled_from(["missing", "finite", "range"]), st.sampled_from(["reject", "count"])
        ),
    },
).map(InputRules.model_validate)


@given(st.dictionaries(st.text(), given_rules, max_size=3), st.text())
def test_a_schema_is_read_as_it_was_written(tmp_path_factory, inputs, source):
    schema = Schema(format=SCHEMA_FORMAT, source=source, inputs=inputs)
    directory = tmp_path_factory.mktemp("version")
    (directory / "schema.toml").write_text(schema_text(schema), encoding="utf-8")
    assert read_schema(directory) == schema


def test_no_schema(tmp_path):
    assert read_schema(tmp_path) is None


# --- from data ---


def infer(datatype, shape, *chunks, names=()):
    schema = infer_schema([(TensorSpec("x", datatype, shape), names, chunks)], "train.npy")
    assert schema.source == "train.npy"
    return schema.inputs.get("x")


def test_ranges_of_features_have_a_margin():
    rows = np.array([[0.0, -1, 7], [10, 1, 7]], np.float32)
    found = infer("FP32", (3,), rows[:1], rows[1:], names=("age", "debt", "rooms"))
    assert (found.min, found.max) == ((-1, -1.2, 7), (11, 1.2, 7))
    assert (found.finite, found.names) == (True, ("age", "debt", "rooms"))
    assert found.policy == {"finite": "count", "range": "count"}


def test_what_was_missing_may_be():
    found = infer("FP32", (4,), np.array([[np.nan, 1, 2, 3], [0, 1, 2, 3]], np.float32))
    assert (found.max_missing, found.finite, found.policy["missing"]) == (0.25, True, "count")
    assert not infer("FP32", (2,), np.array([[np.inf, 1]], np.float32)).finite
    nothing = infer("FP32", (2,), np.array([[np.nan, 1]], np.float32))
    assert (nothing.min, nothing.max) == ((-np.inf, 1), (np.inf, 1))


def test_few_values_are_rules_and_many_are_a_range():
    many = np.arange(1000).reshape(-1, 1)
    assert infer("INT32", (1,), many % 3).values == (0, 1, 2)
    found = infer("INT32", (1,), many)
    assert (found.min, found.max, found.values) == (-100, 1099, None)
    assert infer("INT64", (1,), np.array([[1.0], [np.nan], [3.0]])).max == 4
    assert infer("UINT8", (5, 5), np.arange(250, dtype=np.uint8).reshape(10, 5, 5)) is None  # nothing but the datatype
    few = infer("INT32", (1,), np.array([[5], [7]]))
    assert (few.values, few.min, few.max) == (None, 4, 8)


def test_texts():
    many = np.array([[f"{number:0>5}".encode()] for number in range(100)], object)
    found = infer("BYTES", (1,), many)
    assert (found.min_length, found.max_length, found.policy) == (5, 5, {"length": "count"})
    assert infer("BYTES", (1,), np.array([["ä"], ["b"]] * 50, object)).values == ("b", "ä")


def test_the_column_of_a_text_gives_it_no_name():
    """Rules for texts have none: the model would not be served with them."""
    texts = np.array([[b"some"], [b"text"]] * 50, object)
    rules = infer_schema([(TensorSpec("x", "BYTES", (1,)), ("said",), [texts])]).inputs["x"]
    assert rules.names == ()
    signature = Signature((TensorSpec("x", "BYTES", (1,)),), (), 8)
    assert input_rules(ModelConfig(inputs={"x": rules.model_dump(exclude_unset=True)}), signature)


def test_sizes_of_images():
    shapes = [(20, 30), (40, 10)]
    found = infer("UINT8", (-1, -1, 3), *(np.zeros((2, *size, 3), np.uint8) for size in shapes))
    assert (found.min_height, found.max_height, found.min_width, found.max_width) == (18, 44, 9, 33)
    assert infer("BOOL", (2,), np.zeros((5, 2), bool)) is None
    assert infer("FP32", (2,)) is None


@given(
    st.sampled_from(["FP16", "FP32", "FP64", "INT8", "UINT16", "INT64", "BYTES"]),
    st.sampled_from([(2,), (2, 1), (1, 2)]),
    st.data(),
)
def test_no_row_of_the_data_breaks_the_schema_made_of_it(datatype, shape, data):
    dtype = DATATYPES[datatype].numpy
    if datatype == "BYTES":
        value = st.text(max_size=5).map(str.encode)
    elif dtype.kind == "f":
        value = st.floats(width=8 * dtype.itemsize)
    else:
        value = st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    listed = data.draw(st.lists(st.lists(value, min_size=2, max_size=2), min_size=1, max_size=6))
    rows = np.array(listed, dtype).reshape(-1, *shape)
    spec = TensorSpec("x", datatype, shape)
    schema = infer_schema([(spec, (), [rows])])
    rules = input_rules(ModelConfig(), Signature((spec,), (), 8), schema)
    tensor = InputTensor("x", datatype, rows.shape)
    screen = screen_of([spec], [tensor], rules, "m", batched=True)
    raw = bytes_tensor.encode(rows) if datatype == "BYTES" else rows.tobytes()
    findings = None if screen is None else screen([SimpleNamespace(parts=(raw,))])
    assert findings is None or not findings.broken
