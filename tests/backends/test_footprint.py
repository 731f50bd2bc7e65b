import threading

import pytest

from headrace.backends.footprint import Ledger, label_of, ledger_of
from headrace.errors import ModelLoadError
from headrace.testing.device import FakeDevice

MIB = 1 << 20


@pytest.fixture
def device():
    return FakeDevice(memory=100 * MIB)


@pytest.fixture
def ledger():
    return Ledger()


def test_a_load_that_does_not_fit_is_refused_with_the_figures(device, ledger):
    device.allocate(30 * MIB)
    with pytest.raises(ModelLoadError) as refused:
        ledger.admit(device, "a session of m", 61 * MIB, 10 * MIB)
    assert str(refused.value) == (
        "a session of m does not fit on cpu:0 (Fake): expected to take 61 MiB, and 10 MiB must stay free; of 100 MiB, "
        "70 MiB are free, of which 0 MiB are promised to models that are loaded"
    )
    ledger.admit(device, "a session of m", 60 * MIB, 10 * MIB)


def test_what_a_model_may_still_take_is_left_for_it(device, ledger):
    share = ledger.admit(device, "one", 10 * MIB, 0, allowed=60 * MIB)
    with ledger.measured(device, share):
        device.allocate(20 * MIB)
    assert (share.taken, share.outstanding) == (20 * MIB, 40 * MIB)
    with pytest.raises(ModelLoadError, match="80 MiB are free, of which 40 MiB are promised"):
        ledger.admit(device, "another", 41 * MIB, 0)
    another = ledger.admit(device, "another", 40 * MIB, 0)
    with pytest.raises(ModelLoadError, match="of which 80 MiB are promised"):  # the other one is being loaded
        ledger.admit(device, "a third", 1, 0)
    for each in (share, another):
        each.settle()
    assert (share.outstanding, another.outstanding) == (40 * MIB, 0)  # without a limit nothing is promised
    ledger.release(share)
    ledger.admit(device, "a third", 80 * MIB, 0)


def test_measurements_add_up_and_never_go_below_zero(device, ledger):
    share = ledger.admit(device, "one", 0, 0)
    held = device.allocate(5 * MIB)
    for _ in range(2):
        with ledger.measured(device, share):
            device.allocate(MIB)
    with ledger.measured(device, share):
        held.close()
    assert share.taken == 2 * MIB


def test_a_load_that_fails_lets_the_next_one_measure(device, ledger):
    share = ledger.admit(device, "one", 0, 0)
    with pytest.raises(ZeroDivisionError), ledger.measured(device, share):
        device.allocate(MIB // 0)
    with ledger.measured(device, share):
        device.allocate(2 * MIB)
    assert share.taken == 2 * MIB


def test_one_load_at_a_time(device, ledger):
    share = ledger.admit(device, "one", 0, 0)
    order = []

    def other():
        with ledger.measured(device, ledger.admit(device, "other", 0, 0)):
            order.append("other")

    thread = threading.Thread(target=other)
    with ledger.measured(device, share):
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_a_ledger_for_each_device():
    devices = FakeDevice(0), FakeDevice(1)
    assert ledger_of(devices[0]) is ledger_of(devices[0])
    assert ledger_of(devices[0]) is not ledger_of(devices[1])
    assert [label_of(device) for device in devices] == ["cpu:0", "cpu:1"]
