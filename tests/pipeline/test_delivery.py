import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from headrace.engine.shared_memory import NoSharedMemory, Registered, SharedMemoryRegions
from headrace.errors import InvalidRequest, RegionNotFound, RegionTooSmall
from headrace.messages import Region, ReplyOutput, RequestedOutput, TensorSpec
from headrace.pipeline import bytes_tensor
from headrace.pipeline.delivery import Delivery, classes, described

Y = TensorSpec("y", "FP32", (3,))


class Inner:
    def encode(self, id_field, raw, shapes, parameters=b""):
        return id_field, list(map(bytes, raw)), shapes, parameters


def delivery(*outputs, memory=None, labels=None, batched=True, specs=None):
    specs = specs or [Y] * len(outputs)
    return Delivery(outputs, specs, Inner(), memory or NoSharedMemory(), labels or {}, batched=batched)


def test_the_greatest_come_first_and_equal_ones_by_index():
    values = np.array([[0.5, 2.0, 2.0], [1.0, -1.0, np.nan]], np.float32)
    assert classes(values, 2, ()).tolist() == [[b"2.000000:1", b"2.000000:2"], [b"1.000000:0", b"-1.000000:1"]]
    assert classes(values, 9, ["a", "b"]).tolist()[1] == [b"1.000000:0:a", b"-1.000000:1:b", b"nan:2"]


def test_integers_are_written_as_such():
    assert classes(np.array([[0, 255, 7]], np.uint8), 2, ()).tolist() == [[b"255:1", b"7:2"]]


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.floats(-5, 5, width=32)),
    st.integers(1, 12),
)
def test_classes_are_those_that_sorting_gives(values, count):
    found = classes(values, count, ())
    assert found.shape == (len(values), min(count, values.shape[1]))
    for row, texts in zip(values.tolist(), found.tolist(), strict=True):
        expected = sorted(range(len(row)), key=lambda index: (-row[index], index))[:count]
        assert [int(text.split(b":")[1]) for text in texts] == expected


def test_an_output_becomes_classes():
    writer = delivery(RequestedOutput("y", classes=1), RequestedOutput("y"), labels={"y": ["a", "b", "c"]})
    raw = np.array([[0, 1, 0], [0, 0, 3]], np.float32).tobytes()
    id_field, sent, shapes, parameters = writer.encode(b"id", [raw, raw], ((2, 3), (2, 3)), b"p")
    assert (id_field, parameters) == (b"id", b"p")
    assert bytes_tensor.decode(sent[0], 2) == [b"1.000000:1:b", b"3.000000:2:c"]
    assert sent[1] == raw
    assert shapes == ((2, 1), (2, 3))
    assert writer.opening(((2, 3),)) is None


def test_the_classes_of_a_model_without_batching():
    writer = delivery(RequestedOutput("y", classes=2), batched=False)
    _, sent, shapes, _ = writer.encode(b"", [np.array([[1, 2], [4, 3]], np.float32).tobytes()], ((2, 2),))
    assert (shapes, bytes_tensor.decode(sent[0], 2)) == (((2,),), [b"4.000000:2", b"3.000000:3"])


def test_classes_of_bf16():
    writer = delivery(RequestedOutput("y", classes=1), specs=[TensorSpec("y", "BF16", (2,))])
    _, sent, _, _ = writer.encode(b"", [np.array([0x3F80, 0x4000], np.uint16).tobytes()], ((1, 2),))
    assert bytes_tensor.decode(sent[0], 1) == [b"2.000000:1"]


def test_what_has_no_order_has_no_classes():
    with pytest.raises(InvalidRequest, match="classification of output 'y' is not possible: its datatype is BYTES"):
        described(RequestedOutput("y", classes=1), TensorSpec("y", "BYTES", (3,)))
    assert described(RequestedOutput("y", classes=1), Y).spec.datatype == "BYTES"
    assert described(RequestedOutput("y", region=Region("r", 0, 12)), Y) == ReplyOutput(Y, Region("r", 0, 12))


def test_an_output_goes_to_shared_memory(tmp_path):
    (tmp_path / "r").write_bytes(bytes(32))
    memory = SharedMemoryRegions(tmp_path)
    memory.register(Registered("r", "/r", 0, 32))
    writer = delivery(RequestedOutput("y", region=Region("r", 4, 20)), memory=memory).pinned()
    assert writer.encode(b"", [b"twelve bytes"], ((1, 3),))[1:3] == ([b""], ((1, 3),))
    assert (tmp_path / "r").read_bytes() == b"\0" * 4 + b"twelve bytes" + b"\0" * 16
    with pytest.raises(RegionTooSmall) as caught:
        writer.encode(b"", [b"x" * 24], ((2, 3),))
    assert str(caught.value) == (
        "shared memory size specified with the request for output 'y' (20 bytes) should be at least 24 bytes to hold "
        "the results"
    )


def test_an_output_goes_where_its_name_led_when_it_was_asked_for(tmp_path):
    memory = SharedMemoryRegions(tmp_path)
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(bytes(12))
    memory.register(Registered("r", "/first", 0, 12))
    shared = delivery(RequestedOutput("y", region=Region("r", 0, 12)), memory=memory)
    before = shared.pinned()
    memory.unregister("r")
    with pytest.raises(RegionNotFound):
        shared.pinned()
    memory.register(Registered("r", "/second", 0, 12))
    after = shared.pinned()
    before.encode(b"", [b"of the first"], ((1, 3),))
    assert ((tmp_path / "first").read_bytes(), (tmp_path / "second").read_bytes()) == (b"of the first", bytes(12))
    after.encode(b"", [b"of the other"], ((1, 3),))
    assert ((tmp_path / "first").read_bytes(), (tmp_path / "second").read_bytes()) == (b"of the first", b"of the other")


def test_what_was_cut_off_meanwhile_is_not_written_to(tmp_path):
    (tmp_path / "r").write_bytes(bytes(12))
    memory = SharedMemoryRegions(tmp_path)
    memory.register(Registered("r", "/r", 0, 12))
    writer = delivery(RequestedOutput("y", region=Region("r", 0, 12)), memory=memory).pinned()
    (tmp_path / "r").write_bytes(b"")
    with pytest.raises(InvalidRequest, match="has shrunk to 0 bytes"):
        writer.encode(b"", [b"twelve bytes"], ((1, 3),))
