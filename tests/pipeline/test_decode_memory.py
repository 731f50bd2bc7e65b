"""Tensors in shared memory."""

import pytest
from pipeline.decoding import TWO, bind_refusal, build, message, n, view, x

from headrace.engine.shared_memory import Registered, SharedMemoryRegions
from headrace.errors import RegionNotFound, Unimplemented
from headrace.messages import InputTensor, Region, RequestedOutput


@pytest.fixture
def memory(tmp_path):
    (tmp_path / "r").write_bytes(bytes(range(64)))
    regions = SharedMemoryRegions(tmp_path)
    regions.register(Registered("r", "/r", 0, 64))
    return regions


def test_tensors_in_shared_memory_take_no_place_among_the_raw_ones(memory):
    model = view(TWO)
    first = build(message(x(1, 4, region=Region("r", 8, 16)), n(1, 3)), model, memory)
    assert list(map(bytes, first.bind([b"n" * 24], b""))) == [bytes(range(8, 24)), b"n" * 24]
    second = build(message(x(1, 4), n(1, 3, region=Region("r", 0, 24))), model, memory)
    assert list(map(bytes, second.bind([b"x" * 16], b""))) == [b"x" * 16, bytes(range(24))]
    assert not first.plain


def test_the_only_tensor_in_shared_memory(memory):
    template = build(message(x(1, 4, region=Region("r", 0, 16))), memory=memory)
    assert bytes(template.bind([], b"")[0]) == bytes(range(16))
    memory.unregister("r")
    with pytest.raises(RegionNotFound, match="Unable to find shared memory region: 'r'"):
        template.bind([], b"")


def test_too_few_and_too_many_tensors_beside_shared_memory(memory):
    template = build(message(x(1, 4, region=Region("r", 8, 16)), n(1, 3)), view(TWO), memory)
    assert bind_refusal(template) == "unable to find data for input tensor 'n' for model 'm' in request."
    assert bind_refusal(template, b"", b"") == (
        "raw_input_contents has 2 entries, expected one for each of the 1 inputs of the request to model 'm' that are "
        "not in shared memory"
    )


def test_the_wrong_number_of_bytes_in_shared_memory(memory):
    template = build(message(x(1, 4, region=Region("r", 0, 15))), memory=memory)
    assert bind_refusal(template).endswith("input byte size mismatch for input 'x' for model 'm'. Expected 16, got 15")


def test_regions_are_looked_for_when_a_look_is_first_seen(memory):
    for where in ({"region": Region("s", 0, 16)}, {}):
        outputs = () if where else (RequestedOutput("y", region=Region("s", 0, 16)),)
        with pytest.raises(RegionNotFound):
            build(message(x(1, 4, **where), outputs=outputs), memory=memory)
        with pytest.raises(Unimplemented, match="Client shared memory is disabled"):
            build(message(x(1, 4, **where), outputs=outputs))


def test_typed_contents_beside_shared_memory(memory):
    template = build(
        message(x(1, 4, region=Region("r", 0, 16)), InputTensor("n", "INT64", (1, 3), b"n" * 24)), view(TWO), memory
    )
    assert list(map(bytes, template.bind([], b""))) == [bytes(range(16)), b"n" * 24]
