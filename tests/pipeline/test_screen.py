"""What several requests hold, looked at together, against a look at each element by itself."""

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.datatypes import DATATYPES
from headrace.engine.rules import input_rules
from headrace.errors import InvalidRequest, RuleBroken
from headrace.messages import InputTensor, Signature, TensorSpec
from headrace.pipeline import bytes_tensor, screen
from headrace.pipeline.rules import span
from headrace.pipeline.screen import screen_of
from headrace.repository.model_config import ModelConfig

NAN, INF = math.nan, math.inf


def make(datatype, shape, rules=None, *, batched=True, config=None):
    """The screen of requests with the input x of a whole shape. rules: as in model.toml."""
    spec = TensorSpec("x", datatype, shape[1:] if batched else shape)
    signature = Signature((spec,), (), 8 if batched else 0)
    found = input_rules(ModelConfig(**(config or {"inputs": {"x": rules or {}}})), signature)
    tensor = InputTensor("x", datatype, shape)
    return screen_of(signature.inputs, [tensor], found, "m", batched=batched)


def look(found, *raw):
    """What is wrong with requests of one input each."""
    return found([SimpleNamespace(parts=(each,)) for each in raw])


def refusal(raw, datatype, shape, rules=None, **more):
    """The message of the refusal of one request, or None."""
    found = make(datatype, shape, rules, **more)
    findings = None if found is None else look(found, raw)
    if findings is None or not findings.refused:
        return None
    error = findings.refused[0]
    kind = RuleBroken if "(rule '" in str(error) else InvalidRequest
    assert type(error) is kind
    return str(error)


def floats(*values, dtype="<f4"):
    return np.array(values, dtype).tobytes()


def texts(*values):
    return bytes_tensor.encode(np.array(values, object))


# --- what holds without rules ---


def test_numbers_without_rules_are_not_looked_at():
    for datatype in set(DATATYPES) - {"BOOL", "BYTES"}:
        assert make(datatype, (1, 2)) is None


def test_an_input_that_the_server_fills_is_not_looked_at():
    assert screen_of([TensorSpec("x", "BOOL", (2,))], [None], {}, "m", batched=True) is None


def test_a_bool_is_0_or_1():
    assert refusal(b"\0\1\1", "BOOL", (1, 3)) is None
    text = "element [1, 0] of input 'x' for model 'm' is 2, expected a BOOL: 0 or 1"
    assert refusal(memoryview(b"\0\1\2\3"), "BOOL", (2, 2)) == text
    assert refusal(b"", "BOOL", (1, 0)) is None
    findings = look(make("BOOL", (1, 2)), b"\0\1", b"\5\1", b"\1\1")
    assert list(findings.refused) == [1]
    assert not findings.broken


def test_text_has_the_elements_of_its_shape():
    two = b"\1\0\0\0a\2\0\0\0\xc3\xa4"
    assert refusal(two, "BYTES", (1, 2)) is None
    assert refusal(two, "BYTES", (2, 1)) is None
    assert refusal(two, "BYTES", (1, 3)) == "input 'x' for model 'm': BYTES tensor has 2 elements, expected 3"
    assert refusal(two[:-1], "BYTES", (1, 2)) == (
        "input 'x' for model 'm': BYTES tensor: element 1 of 2 has a length of 2 bytes, 1 are left"
    )
    assert refusal(b"\0\0\0\0", "BYTES", (), batched=False) is None
    assert refusal(b"", "BYTES", (5, 0)) is None


def test_text_is_utf8():
    text = "element [1, 0] of input 'x' for model 'm' is not UTF-8: byte 2 is 0xff"
    assert refusal(b"\1\0\0\0a\3\0\0\0ab\xff", "BYTES", (2, 1)) == text
    assert refusal(texts(b"\xff"), "BYTES", (1, 1), {"max_length": 9}).endswith("is not UTF-8: byte 0 is 0xff")


def test_halves_of_a_character_do_not_make_a_text_together():
    findings = look(make("BYTES", (1, 1)), texts(b"\xc3"), texts(b"\xa4"), texts(b"ok"))
    assert list(findings.refused) == [0, 1]


# --- numbers ---


def test_finite():
    assert refusal(floats(1, -2, 3e38), "FP32", (1, 3), {"finite": True}) is None
    for bad, shown in ((NAN, "nan"), (INF, "inf"), (-INF, "-inf")):
        for at in range(3):
            values = [1.0, 2.0, 3.0]
            values[at] = bad
            assert refusal(floats(*values), "FP32", (1, 3), {"finite": True}) == (
                f"element [0, {at}] of input 'x' for model 'm' is {shown}, expected a finite number (rule 'finite')"
            )


def test_a_range():
    rules = {"min": 0, "max": 16}
    assert refusal(floats(0, 16, 8), "FP32", (3, 1), rules) is None
    text = "element [1, 0] of input 'x' for model 'm' is 17.0, expected a value from 0 to 16 (rule 'range')"
    assert refusal(floats(3, 17, -1), "FP32", (3, 1), rules) == text
    assert refusal(floats(1, NAN), "FP32", (1, 2), rules) == (
        "element [0, 1] of input 'x' for model 'm' is nan, expected a value from 0 to 16 (rule 'range')"
    )
    assert refusal(floats(-5), "FP32", (1,), {"max": 0}) is None
    assert refusal(floats(100), "FP32", (1,), {"max": 0}) == (
        "element [0] of input 'x' for model 'm' is 100.0, expected a value of at most 0 (rule 'range')"
    )
    assert refusal(b"", "FP32", (0, 3), rules) is None
    assert refusal(floats(-1), "FP32", (), rules, batched=False).startswith("element [] of input 'x'")


def test_a_bound_is_rounded_as_clients_round():
    assert refusal(floats(0.1), "FP32", (1, 1), {"max": 0.1}) is None
    assert refusal(floats(0.1, dtype="<f2"), "FP16", (1, 1), {"max": 0.1}) is None
    assert refusal(floats(0.1, dtype="<f8"), "FP64", (1, 1), {"max": 0.1}) is None


def test_integers_and_halves_have_a_range_too():
    rules = {"min": -1, "max": 5.5}
    assert refusal(floats(-1, 5, dtype="<i8"), "INT64", (1, 2), rules) is None
    assert refusal(floats(-1, 6, dtype="<i8"), "INT64", (1, 2), rules) == (
        "element [0, 1] of input 'x' for model 'm' is 6, expected a value from -1 to 5 (rule 'range')"
    )
    assert refusal(b"\xc8", "UINT8", (1, 1), {"max": 5.5}) is not None
    assert refusal(floats(5, dtype="<f2"), "FP16", (1, 1), rules | {"finite": True}) is None
    assert refusal(floats(INF, dtype="<f2"), "FP16", (1, 1), rules | {"finite": True}) is not None
    assert refusal(floats(2**53 + 1, dtype="<i8"), "INT64", (1, 1), {"max": 2**53}) is not None


def test_bfloat16_is_read_as_the_number_that_it_is():
    def bf16(*values):
        return (np.array(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()

    assert refusal(bf16(1, -2.5), "BF16", (1, 2), {"min": -2.5, "max": [1, 2]}) is None
    assert "is -3.0, expected a value from -2.5 to 2" in refusal(
        bf16(1, -3), "BF16", (1, 2), {"min": -2.5, "max": [1, 2]}
    )
    assert "is nan, expected a finite" in refusal(bf16(NAN, 1), "BF16", (1, 2), {"finite": True})
    clip = {"min": -2, "max": 2, "fill": 0.5, "finite": True, "policy": {"range": "clip", "finite": "clip"}}
    findings = look(make("BF16", (1, 4), clip), bf16(9, -9, NAN, 1.5))
    assert findings.replaced == {0: {0: bf16(2, -2, 0.5, 1.5)}}


def test_each_feature_has_a_range_of_its_own():
    rules = {"min": [0, -10, 5], "max": 10, "names": ["age", "debt", "rooms"]}
    assert refusal(floats(0, -10, 5, 10, 10, 10), "FP32", (2, 3), rules) is None
    assert refusal(floats(0, -10, 5, 10, 10, 4), "FP32", (2, 3), rules) == (
        "element [1, 2] (rooms) of input 'x' for model 'm' is 4.0, expected a value from 5 to 10 (rule 'range')"
    )
    assert "element [2, 0, 1] (debt)" in refusal(floats(*[5] * 7, 11, 5), "FP32", (3, 1, 3), rules | {"min": 0})


def test_only_some_values_are_allowed():
    assert refusal(floats(0, 2, 5, dtype="<i4"), "INT32", (1, 3), {"values": [5, 0, 2]}) is None
    assert refusal(floats(0, 9, 5, dtype="<i4"), "INT32", (1, 3), {"values": [5, 0, 2]}) == (
        "element [0, 1] of input 'x' for model 'm' is 9, expected one of 0, 2, 5 (rule 'values')"
    )
    assert refusal(floats(0.1, NAN), "FP32", (1, 2), {"values": [0.1]}) is not None
    assert refusal(floats(-0.0), "FP32", (1, 1), {"values": [0]}) is None
    assert "one of 0, 1, 2, 3, 4, 5, 6, 7, ..." in refusal(b"\x63", "UINT8", (1, 1), {"values": list(range(20))})


def test_a_share_of_a_row_may_be_missing():
    rules = {"max_missing": 0.5, "finite": True, "min": 0}
    assert refusal(floats(NAN, 1, NAN, 2), "FP32", (1, 4), rules) is None
    assert refusal(floats(NAN, 1, NAN, 2, NAN, NAN, 3, NAN), "FP32", (2, 4), rules) == (
        "element [1, 0] of input 'x' for model 'm' is missing (NaN), as are 3 of the 4 elements of its row in all, "
        "expected at most 0.5 of them (rule 'missing')"
    )
    assert "rule 'finite'" in refusal(floats(NAN, INF), "FP32", (1, 2), rules)
    assert "rule 'range'" in refusal(floats(NAN, -1), "FP32", (1, 2), rules)
    assert "rule 'missing'" in refusal(floats(NAN, 1), "FP32", (1, 2), {"max_missing": 0})
    thirds = {"max_missing": 1 / 3}
    assert refusal(floats(NAN, 1, 1), "FP32", (1, 3), thirds) is None
    assert refusal(floats(NAN, 1, 1), "FP32", (3,), thirds, batched=False) is None


def test_what_is_clipped_goes_to_the_nearest_bound_or_is_filled():
    rules = {"finite": True, "min": 0, "max": 9, "fill": 4, "policy": {"finite": "clip", "range": "clip"}}
    findings = look(make("FP32", (1, 6), rules), floats(1, 2, 3, 4, 5, 9), floats(-1, 10, NAN, INF, -INF, 3))
    assert findings.replaced == {1: {0: floats(0, 9, 4, 9, 0, 3)}}
    assert findings.broken == {("x", "finite", "clip"): 1, ("x", "range", "clip"): 1}
    assert not findings.refused
    unbounded = {"finite": True, "fill": [1, 2], "policy": {"finite": "clip"}}
    findings = look(make("FP32", (1, 2), unbounded), floats(-INF, NAN))
    assert findings.replaced == {0: {0: floats(1, 2)}}
    integers = {"min": 3, "policy": {"range": "clip"}}
    assert look(make("UINT8", (1, 2), integers), b"\1\7").replaced == {0: {0: b"\3\7"}}


def test_what_may_be_missing_is_filled_and_breaks_no_rule():
    rules = {"max_missing": 0.25, "finite": True, "fill": 7, "policy": {"finite": "clip"}}
    findings = look(make("FP32", (1, 4), rules), floats(NAN, 1, 1, 1), floats(NAN, NAN, 1, 1), floats(INF, NAN, 1, 1))
    assert findings.broken == {("x", "missing", "reject"): 1, ("x", "finite", "clip"): 1}
    assert list(findings.refused) == [1]
    assert findings.replaced == {0: {0: floats(7, 1, 1, 1)}, 2: {0: floats(7, 7, 1, 1)}}


def test_a_text_whose_length_is_refused_is_not_matched_and_one_whose_length_is_counted_is():
    rules = {"min_length": 1, "max_length": 3, "pattern": "[a-z]+"}
    for bad in ("", "AAAA"):
        assert look(make("BYTES", (1, 1), rules), texts(bad)).broken == {("x", "length", "reject"): 1}
        findings = look(make("BYTES", (1, 1), rules | {"policy": {"length": "count"}}), texts(bad))
        assert findings.broken == {("x", "length", "count"): 1, ("x", "pattern", "reject"): 1}
        assert "(rule 'pattern')" in str(findings.refused[0])


def test_what_is_counted_is_left_as_it_is():
    rules = {"finite": True, "max": 9, "policy": {"finite": "count"}}
    findings = look(make("FP32", (1, 2), rules), floats(NAN, 1), floats(1, INF), floats(1, 1), floats(10, 1))
    assert findings.broken == {("x", "finite", "count"): 2, ("x", "range", "reject"): 2}
    assert list(findings.refused) == [1, 3]
    assert not findings.replaced


def test_large_inputs_are_looked_at_one_by_one(monkeypatch):
    monkeypatch.setattr(screen, "JOINED_BYTES", 8)
    for rules in ({"max": 9}, {"max": [9, 9]}):
        found = make("FP32", (1, 2), rules)
        assert look(found, floats(1, 1), floats(2, 9)) is None
        findings = look(found, floats(1, 1), floats(1, 10), floats(1, 2))
        assert list(findings.refused) == [1]
        assert "element [0, 1] of" in str(findings.refused[1])
    assert list(look(make("BOOL", (1, 8)), bytes(8), b"\2" * 8).refused) == [1]
    found = make("UINT8", (1, 8), {"min": 2, "max": 9, "policy": {"range": "clip"}})
    assert look(found, b"\2" * 8, b"\1" * 8, b"\2\12" * 4).replaced == {1: {0: b"\2" * 8}, 2: {0: b"\2\11" * 4}}


@pytest.mark.parametrize("rules", [{"max": 9}, {"max": [9, 8]}, {"values": [1, 2]}])
def test_octets_may_lie_anywhere(rules):
    found = make("FP32", (1, 2), rules)
    good, bad = floats(1, 2), floats(1, 10)
    for kind in (bytes, bytearray, memoryview, lambda octets: memoryview(bytearray(octets))):
        assert look(found, kind(good)) is None
        assert look(found, kind(good), memoryview(good)) is None
        assert list(look(found, kind(bad)).refused) == [0]
        assert list(look(found, good, kind(bad)).refused) == [1]


def test_bounds_of_few_features_in_a_long_row():
    values = np.tile(np.array([1, 2, 3], "<f4"), 5003)
    found = make("FP32", (1, 5003, 3), {"min": [1, 2, 3], "max": [1, 2, 3]})
    assert look(found, values.tobytes(), values.tobytes()) is None
    values[4999 * 3 + 1] = 3
    assert "element [0, 4999, 1] of" in str(look(found, values.tobytes()).refused[0])


@pytest.mark.parametrize("rules", [{"min": 0, "max": 2}, {"min": [0, 1], "max": 2}, {"values": [0, 1, 2]}])
def test_what_is_at_a_bound_costs_no_second_look(rules):
    assert look(make("FP32", (1, 2), rules), floats(0, 1), floats(2, 2)) is None


number_rules = st.fixed_dictionaries(
    {},
    optional={
        "finite": st.just(True),
        "min": st.one_of(st.integers(-3, 0), st.lists(st.integers(-3, 0), min_size=3, max_size=3)),
        "max": st.one_of(st.integers(1, 3), st.lists(st.integers(1, 3), min_size=3, max_size=3)),
        "values": st.lists(st.integers(-4, 4), min_size=1, max_size=6),
        "max_missing": st.sampled_from([0.0, 1 / 3, 0.5, 2 / 3, 1.0]),
        "fill": st.just(1),
    },
)
KEYS = {"finite": ("finite",), "range": ("min", "max"), "values": ("values",), "missing": ("max_missing",)}


@st.composite
def cases(draw):
    rules = draw(number_rules)
    policy = {}
    for rule, keys in KEYS.items():
        if any(key in rules for key in keys):
            choices = ["reject", "count"]
            if rule == "finite" and "fill" in rules:
                choices.append("clip")
            if rule == "range" and ("finite" in rules or "max_missing" in rules):
                choices.append("clip")
            policy[rule] = draw(st.sampled_from(choices))
    if policy.get("finite") != "clip":
        rules.pop("fill", None)
    rows = draw(st.integers(1, 3))
    value = st.sampled_from([NAN, INF, -INF, -0.0, *(float(number) for number in range(-4, 5))])
    request = st.lists(value, min_size=rows * 3, max_size=rows * 3)
    good = draw(st.booleans())
    if good:
        request = st.lists(st.sampled_from([0.0, 1.0]), min_size=rows * 3, max_size=rows * 3)
    return rules | {"policy": policy}, rows, draw(st.lists(request, min_size=1, max_size=4))


def expected(rules, rows, values):
    """(rules that are broken, first bad element by rejecting rule, values after clipping if any) of one request."""
    low, high = (
        bound if isinstance(bound, list) else [bound] * 3 for bound in (rules.get("min", -INF), rules.get("max", INF))
    )
    policy = rules["policy"]
    missing_said, finite = "max_missing" in rules, "finite" in rules
    fills = finite and policy["finite"] == "clip"
    bad = {rule: [] for rule in ("missing", "finite", "range", "values")}
    for at, value in enumerate(values):
        row = values[at // 3 * 3 : at // 3 * 3 + 3]
        nan = math.isnan(value)
        if nan and missing_said and sum(map(math.isnan, row)) > 3 * rules["max_missing"] + 1e-6:
            bad["missing"].append(at)
        if finite and (math.isinf(value) or (nan and not missing_said)):
            bad["finite"].append(at)
        if (nan and (finite or missing_said)) or (math.isinf(value) and fills):
            continue
        if ("min" in rules or "max" in rules) and not low[at % 3] <= value <= high[at % 3]:
            bad["range"].append(at)
        if "values" in rules and value not in rules["values"]:
            bad["values"].append(at)
    broken = [rule for rule, places in bad.items() if places]
    rejecting = next((rule for rule in broken if policy[rule] == "reject"), None)
    clipped = None
    if any(policy[rule] == "clip" for rule in broken) or (fills and missing_said and any(map(math.isnan, values))):
        clipped = list(values)
        for at, value in enumerate(values):
            bottom, top = low[at % 3], high[at % 3]
            if fills:
                if math.isinf(value):
                    value = top if value > 0 else bottom
                if not math.isfinite(value):
                    value = rules["fill"]
            if policy.get("range") == "clip" and not math.isnan(value):
                value = min(max(value, bottom), top)
            clipped[at] = value
    return broken, rejecting and (rejecting, bad[rejecting][0]), clipped


@settings(max_examples=400)
@given(cases())
def test_a_look_at_all_together_agrees_with_a_look_at_each_element(case):
    rules, rows, requests = case
    found = make("FP32", (rows, 3), rules)
    by_hand = [expected(rules, rows, values) for values in requests]
    counts = Counter(("x", rule, rules["policy"][rule]) for broken, _, _ in by_hand for rule in broken)
    findings = None if found is None else look(found, *(floats(*values) for values in requests))
    if findings is None:
        assert not counts
        return
    assert findings.broken == counts
    assert sorted(findings.refused) == [at for at, (_, rejecting, _) in enumerate(by_hand) if rejecting]
    for at, (_, rejecting, clipped) in enumerate(by_hand):
        if rejecting:
            rule, element = rejecting
            text = str(findings.refused[at])
            assert text.startswith(f"element {[element // 3, element % 3]} of input 'x' for model 'm' is ")
            assert text.endswith(f"(rule '{rule}')")
        elif clipped is not None:
            np.testing.assert_array_equal(np.frombuffer(findings.replaced[at][0], "<f4"), np.array(clipped, "<f4"))
        else:
            assert at not in findings.replaced


# --- texts and images ---


def test_texts_have_lengths_in_characters():
    rules = {"min_length": 1, "max_length": 3}
    assert refusal(texts("a", "äöü"), "BYTES", (1, 2), rules) is None
    assert refusal(texts("a", "abcd"), "BYTES", (1, 2), rules) == (
        "element [0, 1] of input 'x' for model 'm' has 4 characters, expected a length from 1 to 3 (rule 'length')"
    )
    assert refusal(texts(""), "BYTES", (1, 1), rules).endswith(
        "has 0 characters, expected a length from 1 to 3 (rule 'length')"
    )
    assert refusal(texts(""), "BYTES", (1, 1), {"min_length": 1}).endswith(
        "expected a length of at least 1 (rule 'length')"
    )


def test_a_pattern_matches_the_whole_text():
    rules = {"pattern": "[a-z]+|[0-9]{2}"}
    assert refusal(texts("abc", "42"), "BYTES", (1, 2), rules) is None
    for bad in ("abc1", "1abc", "", "abc\n", "4"):
        assert refusal(texts("ok", bad), "BYTES", (1, 2), rules) == (
            f"element [0, 1] of input 'x' for model 'm' is {bad!r}, expected all of it to match '[a-z]+|[0-9]{{2}}' "
            "(rule 'pattern')"
        )
    assert "'aaaaa" in refusal(texts("a" * 100 + "!"), "BYTES", (1, 1), rules)
    assert len(refusal(texts("a" * 100_000 + "!"), "BYTES", (1, 1), rules)) < 300


def test_only_some_texts_are_allowed():
    rules = {"values": ["red", "grün"]}
    assert refusal(texts("grün", "red"), "BYTES", (2, 1), rules) is None
    assert refusal(texts("red", "blue"), "BYTES", (2, 1), rules) == (
        "element [1, 0] of input 'x' for model 'm' is 'blue', expected one of 'grün', 'red' (rule 'values')"
    )


alphabet = st.text("abä\0", max_size=4)


@given(
    st.lists(st.lists(alphabet, min_size=2, max_size=2), min_size=1, max_size=4),
    st.fixed_dictionaries(
        {},
        optional={
            "min_length": st.integers(0, 2),
            "max_length": st.integers(2, 3),
            "pattern": st.just("[^b]*"),
            "values": st.just(["", "a", "ab", "ä\0a"]),
        },
    ),
    st.sampled_from(["reject", "count"]),
)
def test_texts_together_agree_with_each_by_itself(requests, rules, policy):
    given_rules = [
        rule
        for rule, keys in {
            "length": ("min_length", "max_length"),
            "pattern": ("pattern",),
            "values": ("values",),
        }.items()
        if any(rules.get(key) not in (None, 0) for key in keys)
    ]
    found = make("BYTES", (2, 1), rules | {"policy": dict.fromkeys(given_rules, policy)})

    def wrong_length(text):
        return not rules.get("min_length", 0) <= len(text) <= rules.get("max_length", 99)

    bad = {
        "length": wrong_length,
        # what is refused for its length is not matched
        "pattern": lambda text: "pattern" in rules and "b" in text and not (policy == "reject" and wrong_length(text)),
        "values": lambda text: "values" in rules and text not in rules["values"],
    }
    counts = Counter(
        ("x", rule, policy) for request in requests for rule, is_bad in bad.items() if any(map(is_bad, request))
    )
    findings = look(found, *(texts(*request) for request in requests))
    assert (findings.broken if findings is not None else Counter()) == counts
    if policy == "reject" and counts:
        refused = [at for at, request in enumerate(requests) if any(any(map(f, request)) for f in bad.values())]
        assert sorted(findings.refused) == refused


@pytest.mark.parametrize(("layout", "dims"), [("NHWC", (-1, -1, 3)), ("NCHW", (3, -1, -1))])
def test_images_have_sizes(layout, dims):
    def screen_for(height, width, policy="reject"):
        shape = (2, height, width, 3) if layout == "NHWC" else (2, 3, height, width)
        rules = {"format": layout, "dims": dims, "min_height": 8, "max_width": 64, "policy": {"size": policy}}
        signature = Signature((TensorSpec("x", "UINT8", dims),), (), 8)
        found = input_rules(ModelConfig(inputs={"x": rules}), signature)
        return screen_of(signature.inputs, [InputTensor("x", "UINT8", shape)], found, "m", batched=True)

    assert screen_for(8, 64) is None
    findings = look(screen_for(7, 64), b"")
    assert str(findings.refused[0]) == (
        "input 'x' for model 'm' has images of 7 x 64 pixels (height x width), expected a height of at least 8 "
        "(rule 'size')"
    )
    findings = look(screen_for(9, 65, "count"), b"", b"")
    assert (findings.refused, findings.broken) == ({}, {("x", "size", "count"): 2})


def test_the_repr_says_which_inputs_are_looked_at():
    assert repr(make("BOOL", (1, 2))) == "<Screen of inputs [0]>"


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0, 1e6, "from 0 to 1e+06"),
        (1234567, None, "of at least 1234567"),
        (None, np.float32(0.1), "of at most 0.1"),
        (np.int64(-(2**63)), np.int64(2**63 - 2), "from -9223372036854775808 to 9223372036854775806"),
        (np.float32(-1e30), np.uint64(2**64 - 1), "from -1e+30 to 18446744073709551615"),
        (None, np.float32(16777216.0), "of at most 1.6777216e+07"),
    ],
)
def test_bounds_are_told_exactly(low, high, text):
    assert span(low, high) == text
