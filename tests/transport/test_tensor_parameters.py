import pytest

from headrace.errors import InvalidRequest
from headrace.messages import Region
from headrace.transport.tensor_parameters import classes_of, region_of

WHAT = "input 'x'"


def refusal(function, parameters):
    with pytest.raises(InvalidRequest) as caught:
        function(parameters, WHAT)
    return str(caught.value)


def test_a_region():
    assert region_of({}, WHAT) is None
    assert region_of({"other": 1}, WHAT) is None
    given = {"shared_memory_region": "r", "shared_memory_byte_size": 7}
    assert region_of(given, WHAT) == Region("r", 0, 7)
    assert region_of(given | {"shared_memory_offset": 3}, WHAT) == Region("r", 3, 7)


def test_half_a_region():
    assert refusal(region_of, {"shared_memory_region": "r"}) == (
        "input 'x' has the parameter 'shared_memory_region' without 'shared_memory_byte_size', expected both"
    )
    assert "'shared_memory_byte_size' without 'shared_memory_region'" in refusal(
        region_of, {"shared_memory_byte_size": 1}
    )
    assert "'shared_memory_offset' without 'shared_memory_region'" in refusal(region_of, {"shared_memory_offset": 1})


@pytest.mark.parametrize("value", [-1, True, "1", 1.0, 1 << 63])
def test_a_size_that_is_none(value):
    for key in ("shared_memory_byte_size", "shared_memory_offset"):
        given = {"shared_memory_region": "r", "shared_memory_byte_size": 7} | {key: value}
        assert refusal(region_of, given) == f"input 'x': parameter '{key}' is {value!r}, expected a number of bytes"


@pytest.mark.parametrize("name", ["", 1, True])
def test_a_name_that_is_none(name):
    given = {"shared_memory_region": name, "shared_memory_byte_size": 7}
    assert "expected the name of a region" in refusal(region_of, given)


def test_classes():
    assert classes_of({}, WHAT) == 0
    assert classes_of({"classification": 3}, WHAT) == 3
    for value in (0, -1, True, "3", 1.5):
        assert "expected an integer above 0" in refusal(classes_of, {"classification": value})
    both = {"classification": 3, "shared_memory_region": "r"}
    assert refusal(classes_of, both) == "input 'x': 'classification' and shared memory exclude each other"
