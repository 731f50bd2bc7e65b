import gc
import os
import threading

import numpy as np
import pytest

from headrace.transport.grpc_messages import large_buffer
from headrace.transport.workers.region import Borrowed, Region, make_region
from headrace.transport.workers.slots import PAGE

SIZE = 64 * PAGE


@pytest.fixture
def both():
    """Worker's and engine's side of a region."""
    descriptor = make_region(SIZE)
    try:
        yield Region(descriptor, SIZE, large_buffer), Borrowed(descriptor, SIZE)
    finally:
        os.close(descriptor)


def pass_on(region, borrowed, octets):
    """Receives a message and hands it over; returns the engine's view."""
    buffer = region.buffer(len(octets))
    buffer[:] = octets
    return borrowed.view(region.share(buffer), len(octets))


def free(region):
    return region._slots.free_octets


def test_what_the_worker_writes_the_engine_reads(both):
    octets = bytes(range(200)) * 51
    view = pass_on(*both, octets)
    assert bytes(view) == octets
    assert view.readonly


def test_a_message_ends_at_the_end_of_a_page(both):
    region, borrowed = both
    view = pass_on(region, borrowed, bytes(PAGE + 12))
    address = np.frombuffer(view, np.uint8).ctypes.data
    assert (address + len(view)) % 64 == 0


def test_a_slot_is_free_when_neither_needs_it(both):
    region, borrowed = both
    buffer = region.buffer(10)
    view = borrowed.view(region.share(buffer), 10)
    del view
    region.let_go(borrowed.take_freed())
    assert free(region) == SIZE - PAGE
    del buffer
    assert free(region) == SIZE
    assert repr(region) == f"<Region <Slots 0 taken, {SIZE} of {SIZE} octets free>>"


def test_a_slot_that_was_never_handed_over_is_free_with_its_message(both):
    region, _ = both
    buffer = region.buffer(10)
    part = buffer[2:4]
    del buffer
    assert free(region) == SIZE - PAGE
    del part
    assert free(region) == SIZE


@pytest.mark.parametrize(
    "keep", [lambda view: view[5:7], lambda view: np.frombuffer(view[3:], np.uint8), lambda view: [memoryview(view)]]
)
def test_whatever_refers_to_the_message_keeps_the_slot(both, keep):
    region, borrowed = both
    kept = [keep(pass_on(region, borrowed, b"0123456789"))]
    assert borrowed.take_freed() == []
    kept.clear()
    assert len(borrowed.take_freed()) == 1


def test_a_slot_is_freed_from_any_thread(both):
    region, borrowed = both
    kept = [pass_on(region, borrowed, b"0123456789")]
    thread = threading.Thread(target=kept.clear)
    thread.start()
    thread.join()
    region.let_go(borrowed.take_freed())
    assert free(region) == SIZE


def test_slots_may_go_while_others_are_told(both):
    region, borrowed = both
    views = [pass_on(region, borrowed, b"0123456789") for _ in range(3)]
    views.pop()
    first = borrowed.take_freed()
    views.clear()
    assert len(first + borrowed.take_freed()) == 3


def test_a_region_that_is_full_falls_back(both):
    region, _ = both
    buffers = [region.buffer(SIZE // 4) for _ in range(5)]
    assert [region.share(buffer) >= 0 for buffer in buffers] == [True] * 4 + [False]
    buffers[4][:] = bytes(SIZE // 4)


@pytest.mark.parametrize("size", [0, SIZE])
def test_what_is_too_large_or_has_no_region_falls_back(size):
    descriptor = make_region(size)
    region = Region(descriptor, size, large_buffer)
    os.close(descriptor)
    buffer = region.buffer(size // 4 + 1)
    assert len(buffer) == size // 4 + 1
    assert region.share(buffer) == -1


@pytest.mark.parametrize("message", [b"bytes", bytearray(9), memoryview(b"view"), np.zeros(4, np.uint8).data])
def test_what_lies_elsewhere_is_not_shared(both, message):
    assert both[0].share(message) == -1


def test_a_part_of_a_message_is_not_shared(both):
    assert both[0].share(both[0].buffer(10)[1:]) == -1


def test_offsets_outside_the_region(both):
    _, borrowed = both
    for offset, size in ((SIZE, 1), (0, SIZE + 1), (SIZE - 1, 2), (1 << 63, 1)):
        with pytest.raises((ValueError, TypeError, OverflowError)):
            borrowed.view(offset, size)
    gc.collect()
    assert borrowed.take_freed() == []


def test_what_is_not_in_use_cannot_be_let_go(both):
    with pytest.raises(KeyError):
        both[0].let_go([0])
