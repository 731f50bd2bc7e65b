"""What is run apart ends nothing but itself, and what it says is what was found."""

import ctypes
import os
import signal

import pytest
from kernels.apart import apart

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")


@pytest.mark.parametrize("answer", [True, False])
def test_says_what_it_found(answer):
    assert apart(lambda: answer) is answer


def test_a_fault_is_a_finding():
    assert apart(lambda: ctypes.memset(8, 0, 1) is None)


def test_writes_nothing_here():
    value = bytearray(b"as it was")
    assert apart(lambda: value.clear() is None)
    assert value == b"as it was"


def test_what_raises_fails():
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        apart(lambda: 1 / 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGALRM])
def test_what_is_ended_fails(number):
    with pytest.raises(AssertionError, match=f"ended with {-number}"):
        apart(lambda: os.kill(os.getpid(), number))
