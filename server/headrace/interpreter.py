"""The interpreter of a process that serves: its event loop, its memory and its garbage collector."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def keep_memory() -> None:
    """Has glibc keep freed memory for the next request (mallopt(3)).

    By default the memory of a large tensor goes back to the system and is faulted in again, page by page, for the next
    one: 150 faults for an image of 600 kB. Without effect under another allocator, and where the operator has decided.
    """
    if any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    mallopt(_M_TRIM_THRESHOLD, 256 << 20)


def settle() -> None:
    """What has been loaded stays: takes it out of the collector's sight, and makes collections rare.

    A request leaves no cycles behind; with the default threshold the collector would look at every call under way
    some hundred times a second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def unsettle() -> None:
    """Takes that back, and frees what nobody holds any more: native libraries complain of what outlives them."""
    gc.unfreeze()
    gc.collect()
