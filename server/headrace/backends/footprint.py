"""What models take of a device's memory, and whether another one fits.

A load is refused before it takes anything: on a device that is full, those fail that already serve. What a model may
still take later on, up to a limit of its own, is left for it. What it has taken is measured while nothing else loads.
"""

from __future__ import annotations

from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.backends.device import Device


def label_of(device: Device) -> str:
    """A device as metrics and messages name it, such as `cuda:0`."""
    return f"{device.kind}:{device.index}"


class Share:
    """What one executor takes of a device, in bytes. expected: until it is settled. allowed: from then on, 0: no limit.

    taken: what was measured.
    """

    __slots__ = ("_promised", "allowed", "taken")

    def __init__(self, expected: int, allowed: int) -> None:
        self.allowed = allowed
        self.taken = 0
        self._promised = max(expected, allowed)

    def __repr__(self) -> str:
        return f"<Share {self.taken} of {self._promised} bytes>"

    @property
    def outstanding(self) -> int:
        """What it may still take."""
        return max(self._promised - self.taken, 0)

    def settle(self) -> None:
        """It has been loaded: what was expected and not taken is no more left for it."""
        self._promised = self.allowed


class Ledger:
    """Who has what of one device. For all threads."""

    def __init__(self) -> None:
        self._loading = Lock()
        self._shares: set[Share] = set()

    def __repr__(self) -> str:
        return f"<Ledger {len(self._shares)} shares>"

    @contextmanager
    def measured(self, device: Device, share: Share) -> Iterator[None]:
        """One load at a time: what is missing of the device's memory at the end of the block is the share's."""
        with self._loading:
            device.use()
            before, _ = device.memory_info()
            yield
            after, _ = device.memory_info()
            share.taken += max(before - after, 0)

    def admit(self, device: Device, what: str, needed: int, headroom: int, *, allowed: int = 0) -> Share:
        """A share for what needs so many bytes.

        headroom: bytes that must be left. allowed: what it may take later on, if that is more. what: for the error.
        Raises ModelLoadError with the figures where it does not fit.
        """
        with self._loading:
            free, total = device.memory_info()
            promised = sum(share.outstanding for share in self._shares)
            wanted = max(needed, allowed)
            if wanted + headroom > free - promised:
                raise ModelLoadError(
                    f"{what} does not fit on {label_of(device)} ({device.name}): expected to take {mib(wanted)}, and "
                    f"{mib(headroom)} must stay free; of {mib(total)}, {mib(free)} are free, of which {mib(promised)} "
                    f"are promised to models that are loaded"
                )
            share = Share(needed, allowed)
            self._shares.add(share)
            return share

    def release(self, share: Share) -> None:
        """It has given back what it had."""
        with self._loading:
            self._shares.discard(share)


_ledgers: dict[str, Ledger] = {}
_ledgers_lock = Lock()


def ledger_of(device: Device) -> Ledger:
    """The ledger of a device, one for the process."""
    with _ledgers_lock:
        return _ledgers.setdefault(device.uuid, Ledger())


def mib(nbytes: int) -> str:
    """Bytes for people."""
    return f"{nbytes / (1 << 20):,.0f} MiB"
