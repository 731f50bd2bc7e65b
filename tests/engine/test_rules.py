"""What model.toml and schema.toml say of inputs, held against the model."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from headrace.engine.rules import input_rules, version_rules
from headrace.errors import ModelLoadError
from headrace.messages import InputTensor, Signature, TensorSpec
from headrace.pipeline.screen import screen_of
from headrace.repository.discovery import Found
from headrace.repository.model_config import ModelConfig
from headrace.repository.schema_builder import infer_schema
from headrace.repository.schema_config import SCHEMA_FORMAT, Schema

INPUTS = (
    TensorSpec("x", "FP32", (3,)),
    TensorSpec("n", "UINT8", (3,)),
    TensorSpec("text", "BYTES", (1,)),
    TensorSpec("flag", "BOOL", (1,)),
    TensorSpec("half", "FP16", (1,)),
    TensorSpec("image", "UINT8", (-1, -1, 3)),
    TensorSpec("first", "FP32", (1, -1, -1)),
    TensorSpec("scalar", "FP32", ()),
    TensorSpec("id", "INT64", (1,)),
)
SIGNATURE = Signature(INPUTS, (), 8)


def rules(schema=None, **inputs):
    said = None if schema is None else Schema(format=SCHEMA_FORMAT, inputs=schema)
    return input_rules(ModelConfig(inputs=inputs), SIGNATURE, said)


def test_what_says_nothing_of_values_is_no_rule():
    assert rules(x={"dims": [3], "policy": {}}, n={}) == {}
    assert rules(schema={}) == {}


def test_bounds_are_of_the_datatype():
    found = rules(x={"min": 0.1}, n={"min": -0.5, "max": [1.5, 255, 2]})
    low, high = found["x"].numbers.low, found["x"].numbers.high
    assert (low.dtype, low[()], high[()]) == (np.float32, np.float32(0.1), np.inf)
    assert found["n"].numbers.low.tolist() == [0, 0, 0]
    assert found["n"].numbers.high.tolist() == [1, 255, 2]
    assert found["n"].numbers.high.dtype == np.uint8
    found = rules(x={"min": [-math.inf, 0, 1]}, n={"max": [math.inf, 0, 1]})
    assert found["x"].numbers.low.tolist() == [-math.inf, 0, 1]
    assert found["n"].numbers.high.tolist() == [255, 0, 1]


def test_a_bound_beyond_floating_point_bounds_and_infinity_is_beyond_it():
    found = rules(x={"min": -1e300, "max": 1e300}, half={"max": 1e6})
    greatest = np.finfo(np.float32).max
    assert (found["x"].numbers.low[()], found["x"].numbers.high[()]) == (-greatest, greatest)
    assert found["half"].numbers.high[()] == 65504


def test_a_rule_of_the_configuration_is_whole_and_comes_before_the_schemas():
    schema = {
        "x": {"min": -1.0, "max": 1.0, "finite": True, "policy": {"range": "count", "finite": "count"}},
        "n": {"max": 9},
        "text": {"min_length": 1, "max_length": 3, "policy": {"length": "count"}},
    }
    found = rules(schema, x={"max": [2, 2, 3], "policy": {"finite": "reject"}}, text={"max_length": 5})
    x = found["x"]
    assert (x.numbers.low.tolist(), x.numbers.high.tolist()) == ([-math.inf] * 3, [2, 2, 3])
    assert x.numbers.finite  # is the schema's alone, under the policy that model.toml says
    assert (x.policy("range"), x.policy("finite"), x.policy("missing")) == ("reject", "reject", "reject")
    assert found["n"].numbers.high[()] == 9
    assert (found["text"].texts.min_length, found["text"].texts.max_length) == (0, 5)
    assert found["text"].policy("length") == "reject"


def test_fill_goes_with_the_rule_that_it_is_of():
    schema = {"x": {"finite": True, "fill": 0, "policy": {"finite": "clip"}}}
    found = rules(schema, x={"finite": True})["x"]
    assert (found.numbers.fill, found.policy("finite")) == (None, "reject")


NAN = math.nan


@pytest.mark.parametrize(
    ("own", "values"),
    [
        ({"min": 0, "max": 5}, [NAN, 1, 1]),
        ({"min": 0, "max": 5}, [1, -1, 1]),
        ({"values": [0, 1]}, [NAN, 1, 1]),
        ({"values": [0, 1]}, [1, 2, 1]),
        ({"finite": True}, [NAN, 1, 1]),
        ({"finite": True}, [math.inf, 1, 1]),
        ({"max_missing": 0.1}, [NAN, 1, 1]),
        ({"finite": True, "fill": 0, "min": 0, "policy": {"finite": "clip"}}, [-1, 1, 1]),
    ],
)
def test_a_schema_that_counts_switches_off_nothing_that_the_configuration_refuses(own, values):
    """As `headrace drift fit --schema` makes one of data with gaps."""
    data = np.array([[-9, -9, -9], [9, 9, NAN]], "<f4")
    spec = INPUTS[0]
    schema = infer_schema([(spec, (), [data])])
    assert set(schema.inputs["x"].policy.values()) == {"count"}
    tensor = InputTensor("x", "FP32", (1, 3))
    for given in (None, schema):
        found = input_rules(ModelConfig(inputs={"x": own}), Signature((spec,), (), 8), given)
        screen = screen_of([spec], [tensor], found, "m", batched=True)
        findings = screen([SimpleNamespace(parts=(np.array(values, "<f4").tobytes(),))])
        assert list(findings.refused) == [0], given


def test_data_that_keep_what_the_configuration_says_are_still_served_beside_a_schema():
    schema = {"x": {"max_missing": 0.4, "finite": True, "policy": {"missing": "count", "finite": "count"}}}
    spec = INPUTS[0]
    own = {"min": 0, "max_missing": 0.5}
    said = Schema(format=SCHEMA_FORMAT, inputs=schema)
    found = input_rules(ModelConfig(inputs={"x": own}), Signature((spec,), (), 8), said)
    screen = screen_of([spec], [InputTensor("x", "FP32", (1, 3))], found, "m", batched=True)
    findings = screen([SimpleNamespace(parts=(np.array([NAN, 1, 1], "<f4").tobytes(),))])
    assert findings is None or (not findings.refused and not findings.broken)


def test_which_dimensions_are_an_images_sides():
    found = rules(image={"min_height": 2}, first={"max_width": 3})
    assert (found["image"].size.channels_first, found["first"].size.channels_first) == (False, True)
    config = ModelConfig(
        inputs={"image": {"dims": [3, -1, -1], "format": "NCHW", "min_height": 2}},
        preprocess={"image": {"kind": "image"}},
    )
    assert not input_rules(config, SIGNATURE)["image"].size.channels_first  # clients send [height, width, channels]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": {"min": [1, 2]}}, "inputs.x: min has 2 features, the input has [3]"),
        ({"scalar": {"max": [1.0]}}, "inputs.scalar: max has 1 features, the input has []"),
        ({"x": {"names": ["a"]}}, "inputs.x: names has 1 features, the input has [3]"),
        ({"image": {"names": ["a"]}}, "inputs.image: names has 1 features, the input has [-1, -1, 3]"),
        ({"n": {"min": 256}}, "inputs.n: min = 256 is beyond UINT8, expected from 0 to 255"),
        ({"n": {"min": 0.2, "max": 0.8}}, "inputs.n: no UINT8 is from min to max"),
        ({"half": {"max": 10**400}}, "inputs.half: int too large to convert to float"),
        ({"n": {"min": [math.inf, 0, 0]}}, "inputs.n: min = inf is beyond all of UINT8"),
        ({"n": {"max": -1}}, "inputs.n: max = -1 is beyond UINT8, expected from 0 to 255"),
        ({"half": {"min": 1e6}}, "inputs.half: min = 1e+06 is beyond all of FP16"),
        ({"n": {"values": [1, 256]}}, "inputs.n: values: 256 is no UINT8"),
        ({"n": {"values": [0.5]}}, "inputs.n: values: 0.5 is no UINT8"),
        ({"x": {"values": ["a"]}}, "inputs.x: values is for numbers, the input is FP32 [3]"),
        ({"text": {"values": [1]}}, "inputs.text: values is for texts, the input is BYTES [1]"),
        ({"text": {"min": 0}}, "inputs.text: min is for numbers, the input is BYTES [1]"),
        ({"flag": {"finite": True}}, "inputs.flag: finite is for floating point, the input is BOOL [1]"),
        ({"flag": {"values": [1]}}, "inputs.flag: values is for numbers, the input is BOOL [1]"),
        ({"x": {"pattern": "a"}}, "inputs.x: pattern is for BYTES, the input is FP32 [3]"),
        ({"x": {"min_height": 1}}, "inputs.x: min_height is for images: three dimensions, with format or of 1, 3 or 4 "
                                   "channels, last or first, the input is FP32 [3]"),
        ({"text": {"pattern": "(?=a)"}}, "inputs.text: pattern = '(?=a)': look-around, including look-ahead and "
                                         "look-behind, is not supported"),
        ({"text": {"pattern": "a)|(b"}}, "inputs.text: pattern = 'a)|(b': unopened group"),
        ({"text": {"pattern": "(a{1000}){1000}"}}, "inputs.text: pattern = '(a{1000}){1000}': Compiled regex exceeds "
                                                   "size limit of 10485760 bytes."),
        ({"x": {"policy": {"range": "count"}}}, 'inputs.x: policy.range = "count", but there is no min or max'),
        ({"x": {"finite": True, "policy": {"finite": "clip"}}},
         'inputs.x: policy.finite = "clip" needs fill: NaN has no nearest bound'),
        ({"x": {"min": 0, "policy": {"range": "clip"}}},
         'inputs.x: policy.range = "clip" needs finite or max_missing: NaN has no nearest bound'),
        ({"x": {"max": 1, "fill": [0, 2, 0]}}, "inputs.x: fill is outside of min and max"),
        ({"n": {"fill": 0.5}}, "inputs.n: fill: 0.5 is no UINT8"),
        ({"n": {"fill": 1}}, 'inputs.n: fill has no use without policy.finite = "clip"'),
        ({"x": {"finite": True, "max": 1, "fill": 0, "policy": {"range": "clip"}}},
         'inputs.x: fill has no use without policy.finite = "clip"'),
        ({"n": {"finite": True}}, "inputs.n: finite is for floating point, the input is UINT8 [3]"),
        ({"n": {"max_missing": 0}}, "inputs.n: max_missing is for floating point, the input is UINT8 [3]"),
        ({"text": {"finite": True}}, "inputs.text: finite is for floating point, the input is BYTES [1]"),
        ({"n": {"max": 256}}, "inputs.n: max = 256 is beyond UINT8, expected from 0 to 255"),
        ({"n": {"min": [-math.inf, 0, -1]}}, "inputs.n: min = -1 is beyond UINT8, expected from 0 to 255"),
        ({"id": {"max": 2**63}}, "inputs.id: max = 9223372036854775808 is beyond INT64, expected from "
                                 "-9223372036854775808 to 9223372036854775807"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_for_the_input_keeps_it_from_serving(inputs, message):
    with pytest.raises(ModelLoadError) as caught:
        rules(**inputs)
    assert str(caught.value) == f"model.toml: {message}"


def test_a_schema_for_other_inputs_or_against_the_configuration():
    with pytest.raises(ModelLoadError, match=r"schema.toml: rules for \['y'\], but the inputs of the model are \['x'"):
        rules({"y": {"finite": True}})
    with pytest.raises(ModelLoadError, match=r"model.toml and schema.toml: inputs.x: policy.range = \"clip\" needs"):
        rules({"x": {"min": 5}}, x={"policy": {"range": "clip"}})


def test_a_schema_that_does_not_fit_is_named_alone():
    with pytest.raises(ModelLoadError, match=r"^schema.toml: inputs.x: pattern is for BYTES, the input is FP32"):
        rules({"x": {"pattern": "a"}}, x={"dims": [3]})


def test_a_schema_that_is_none_keeps_its_version_from_serving(tmp_path):
    found = Found("m", 1, tmp_path, ModelConfig())
    assert version_rules(found, SIGNATURE) == {}
    (tmp_path / "schema.toml").write_text('format = "headrace schema 1"\n[inputs.x]\nmaxx = 1\n')
    with pytest.raises(ModelLoadError, match=r"unknown key 'inputs.x.maxx'.*did you mean 'max'"):
        version_rules(found, SIGNATURE)
    (tmp_path / "schema.toml").write_text('format = "headrace schema 2"\n')
    with pytest.raises(ModelLoadError, match=r'format = "headrace schema 2".*expected "headrace schema 1"'):
        version_rules(found, SIGNATURE)
    (tmp_path / "schema.toml").write_text("[inputs.x]\nmax = 1\n")
    with pytest.raises(ModelLoadError) as caught:
        version_rules(found, SIGNATURE)
    assert str(caught.value) == f'format is missing (in {tmp_path / "schema.toml"}): expected "headrace schema 1"'
    (tmp_path / "schema.toml").write_text('format = "headrace schema 1"\n[inputs.x]\npattern = "a"\n')
    with pytest.raises(ModelLoadError) as caught:
        version_rules(found, SIGNATURE)
    assert str(caught.value).startswith(f"{tmp_path / 'schema.toml'}: inputs.x: pattern is for BYTES")
