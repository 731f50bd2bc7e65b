import contextlib
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError, InvalidRequest, MessageTooLarge
from headrace.transport.rest.json_text import JsonLimits, dump, dump_numbers, parse

LIMITS = JsonLimits(depth=5, elements=100)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


def nested(depth, brackets="[]"):
    opening, closing = brackets
    inside = '"k":' if brackets == "{}" else ""
    return (
        (opening + inside).join([""] * depth).encode() + (opening + closing).encode() + (closing * (depth - 1)).encode()
    )


@given(VALUES)
def test_what_json_says(value):
    text = json.dumps(value).encode()
    limits = JsonLimits(1000, 10_000)
    assert repr(parse(text, limits)) == repr(json.loads(text))  # repr: NaN is not equal to itself
    assert repr(parse(memoryview(text), limits)) == repr(json.loads(text))


@given(st.binary() | st.text().map(str.encode) | VALUES.map(lambda value: json.dumps(value).encode()[:-1]))
def test_whatever_comes_only_errors_of_ours_go(text):
    with contextlib.suppress(HeadraceError):
        parse(text, LIMITS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "the request is not valid JSON: "),
        (b"[1,]", "the request is not valid JSON: "),
        (b'"\xff"', "the request is not valid JSON: "),
        (b"[NaN", "the request is not valid JSON: "),
        (b"[Infinit]", "the request is not valid JSON: "),
        (nested(2000), "the request has 2000 elements of JSON, at most 100 are taken"),
    ],
)
def test_what_is_wrong(text, says):
    with pytest.raises(HeadraceError) as caught:
        parse(text, LIMITS)
    assert str(caught.value).startswith(says)


def test_numbers_that_json_does_not_have():
    nan, inf, low = parse(b"[NaN, Infinity, -Infinity]", LIMITS)
    assert math.isnan(nan)
    assert (inf, low) == (math.inf, -math.inf)


@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_depth(brackets):
    parse(nested(5, brackets), LIMITS)
    with pytest.raises(InvalidRequest, match="the reply has more than 5 JSON arrays and objects inside one another"):
        parse(nested(6, brackets), LIMITS, "the reply")


def test_brackets_in_strings_and_beside_one_another_are_no_depth():
    assert parse(b'["[[[[[[[[[["]', LIMITS) == ["[" * 10]
    assert parse(b'["[[[{{{","]]]]]]","[[[[{{{"]', LIMITS) == ["[[[{{{", "]]]]]]", "[[[[{{{"]
    assert parse(b"[" + b",".join([b"[[]]"] * 20) + b"]", LIMITS) == [[[]]] * 20


def test_a_parser_gives_up_before_its_stack_ends():
    deep = JsonLimits(10**6, 10**6)
    for inside in (b"", b"NaN"):
        with pytest.raises(InvalidRequest, match="not valid JSON"):
            parse(b"[" * 100_000 + inside + b"]" * 100_000, deep)


def test_elements():
    parse(b"[" + b",".join([b"1"] * 99) + b"]", LIMITS)
    with pytest.raises(MessageTooLarge, match="the request has 101 elements of JSON, at most 100 are taken"):
        parse(b"[" + b",".join([b"1"] * 101) + b"]", LIMITS)
    with pytest.raises(MessageTooLarge):
        parse(b"{" + b",".join(b'"%d":[]' % n for n in range(51)) + b"}", LIMITS)


def test_dump():
    assert dump({"a": [1, True, None, "ä"]}) == '{"a":[1,true,null,"ä"]}'.encode()


@given(st.lists(st.floats(width=32), min_size=1))
def test_floats_come_back_as_they_were(values):
    array = np.array(values, np.float32)
    back = np.array(json.loads(dump_numbers(array)), np.float32)
    np.testing.assert_array_equal(back, array)


def test_arrays():
    assert dump_numbers(np.array([True, False])) == b"[true,false]"
    assert dump_numbers(np.array([0, 2**64 - 1], np.uint64)) == b"[0,18446744073709551615]"
    assert dump_numbers(np.array([], np.float32)) == b"[]"
    assert dump_numbers(np.array([0.1, np.nan, -np.inf], np.float16)) == b"[0.0999755859375,NaN,-Infinity]"
