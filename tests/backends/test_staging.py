import numpy as np
import pytest

from headrace.backends.device import DeviceError, DeviceLost, DeviceOutOfMemory
from headrace.backends.staging import Lane
from headrace.messages import TensorSpec
from headrace.testing.device import FRESH, FakeDevice

ROW = TensorSpec("y", "FP32", (4,))


def rows(*values):
    return [np.full(4, value, np.float32).tobytes() for value in values]


def device_array(memory, nbytes):
    return memory.array[:nbytes].view(np.float32)


@pytest.fixture
def device():
    return FakeDevice()


def test_rows_of_requests_go_to_the_device_one_after_another(device):
    lane = Lane(device, [64], [64])
    lane.lay(0, rows(1, 2), 32)
    lane.upload(0, 32)
    assert set(lane.inputs[0].array) == {FRESH}  # nothing has been waited for
    lane.stream.synchronize()
    assert device_array(lane.inputs[0], 32).tolist() == [1] * 4 + [2] * 4
    assert set(lane.inputs[0].array[32:]) == {FRESH}


def test_zeros_fill_a_batch_up(device):
    lane = Lane(device, [64], [64])
    lane.lay(0, rows(9, 9, 9, 9), 64)
    lane.lay(0, rows(1), 16, padded=48)
    lane.upload(0, 48)
    lane.stream.synchronize()
    assert device_array(lane.inputs[0], 48).tolist() == [1] * 4 + [0] * 8


def test_results_come_back(device):
    lane = Lane(device, [16], [16, 64])
    device_array(lane.outputs[1], 32)[:] = range(8)
    lane.download(1, 32)
    lane.stream.synchronize()
    assert lane.result(1, ROW, (2, 4)).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("parts", "nbytes", "padded"), [(rows(1), 32, 0), (rows(1, 2), 16, 0), (rows(1), 16, 80), (rows(*range(5)), 80, 0)]
)
def test_what_does_not_fit_is_refused(device, parts, nbytes, padded):
    lane = Lane(device, [64], [])
    with pytest.raises(ValueError):  # noqa: PT011  -- a memoryview has a text of its own
        lane.lay(0, parts, nbytes, padded)


def test_two_lanes_do_not_wait_for_one_another(device):
    first, second = Lane(device, [16], [16]), Lane(device, [16], [16])
    for lane, value in ((first, 1), (second, 2)):
        lane.lay(0, rows(value), 16)
        lane.upload(0, 16)
    second.stream.synchronize()
    assert device_array(second.inputs[0], 16).tolist() == [2] * 4
    assert set(first.inputs[0].array) == {FRESH}


def test_everything_is_freed(device):
    lane = Lane(device, [16, 32], [64])
    assert device.memory_info() == ((1 << 30) - 112, 1 << 30)
    lane.close()
    assert not device.allocated
    assert not device.streams[0].open


def test_a_lane_that_finds_no_memory_leaves_none_behind():
    device = FakeDevice(memory=100)
    with pytest.raises(DeviceOutOfMemory, match="64 bytes are asked for, 36 are free"):
        Lane(device, [64], [64])
    assert not device.allocated


def test_a_lane_of_a_lost_device_can_be_closed(device):
    lane = Lane(device, [16], [16])
    device.lost = True
    with pytest.raises(DeviceLost):
        lane.upload(0, 16)
    lane.close()
    assert not device.allocated


class TestTheFakeDevice:
    """What backends are tested with has to be as strict as the real one."""

    def test_a_stream_waits_for_an_event_of_another(self, device):
        first, second = Lane(device, [16], [16]), Lane(device, [16], [16])
        first.lay(0, rows(1), 16)
        first.upload(0, 16)
        event = first.stream.record()
        second.stream.wait(event)
        second.stream.synchronize()
        assert event.reached
        assert device_array(first.inputs[0], 16).tolist() == [1] * 4

    def test_a_graph_is_done_when_it_is_launched(self, device):
        lane = Lane(device, [16], [])
        lane.lay(0, rows(1), 16)
        graph = lane.stream.capture(lambda: lane.upload(0, 16))
        lane.stream.synchronize()
        assert set(lane.inputs[0].array) == {FRESH}
        lane.lay(0, rows(7), 16)
        graph.launch(lane.stream)
        lane.stream.synchronize()
        assert device_array(lane.inputs[0], 16).tolist() == [7] * 4
        graph.close()
        with pytest.raises(DeviceError, match="closed"):
            graph.launch(lane.stream)

    def test_a_stream_that_is_captured_cannot_be_waited_for(self, device):
        stream = device.stream()
        with pytest.raises(DeviceError, match="captured"):
            stream.capture(stream.synchronize)
        stream.synchronize()  # it is not captured any more

    def test_memory_that_is_freed_cannot_be_copied(self, device):
        lane = Lane(device, [16], [])
        lane.inputs[0].close()
        with pytest.raises(DeviceError, match="freed"):
            lane.upload(0, 16)

    def test_a_copy_is_within_its_memory(self, device):
        lane = Lane(device, [16], [])
        with pytest.raises(DeviceError, match="17 bytes"):
            lane.upload(0, 17)
