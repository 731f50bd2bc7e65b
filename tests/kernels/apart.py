"""What may write anywhere, in a process of its own."""

import faulthandler
import gc
import os
import resource
import signal
import traceback
from collections.abc import Callable

FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
SECONDS = 60
_NO, _YES, _RAISED = range(3)


def apart(asked: Callable[[], bool]) -> bool:
    """What `asked` says in a copy of this process, whose memory ends with it; true also where that faults.

    Fails with what `asked` raises, and if the copy does not end by itself or in a fault.
    """
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(asked, tell)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        raised = pipe.read().decode(errors="replace")  # to its end, which is that of the copy
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status != _RAISED, raised
    assert status in (_NO, _YES) or -status in FAULTS, f"ended with {status}"
    return status != _NO


def _answer(asked: Callable[[], bool], tell: int) -> None:
    """In the copy, which has one thread and ends here: nothing of the others' may be finalized, or flushed."""
    status = _RAISED
    try:
        gc.disable()
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        status = _YES if asked() else _NO
    except BaseException:
        os.write(tell, traceback.format_exc().encode()[-4096:])
    finally:
        os._exit(status)
