"""The system shared memory regions that clients register, so that tensors need not travel in messages.

Source: Triton's system shared memory extension. A key is a POSIX name, `/name`, as shm_open(3) takes it.
"""

from __future__ import annotations

import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import InvalidRequest, RegionExists, RegionNotFound, Unimplemented

if TYPE_CHECKING:
    from headrace.messages import Buffer, Place, Region

DIRECTORY = Path("/dev/shm")
"""Where Linux keeps POSIX shared memory (shm_overview(7))."""

MAX_REGIONS = 10_000
"""Regions at a time: each costs a mapping, of which a process may have 65,530 (proc(5), max_map_count)."""

_KEY = re.compile(r"/?[^/\0]{1,254}")


@dataclass(frozen=True, slots=True)
class Registered:
    """A region as it was registered. key: its POSIX name. offset, byte_size: which part of it is the region."""

    name: str
    key: str
    offset: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class _Mapped:
    registered: Registered
    mapped: mmap.mmap
    memory: memoryview

    def part(self, region: Region) -> memoryview:
        """The bytes of a part of it. Raises InvalidRequest: see `SharedMemoryRegions.view`."""
        registered = self.registered
        if region.offset > registered.byte_size:
            raise InvalidRequest(
                f"Invalid offset for shared memory region: '{region.name}'. It has {registered.byte_size} bytes, "
                f"got offset {region.offset}"
            )
        if region.size > registered.byte_size - region.offset:
            raise InvalidRequest(
                f"Invalid offset + byte size for shared memory region: '{region.name}'. It has "
                f"{registered.byte_size} bytes, got {region.size} from offset {region.offset}"
            )
        left = self.mapped.size()
        if left < registered.offset + region.offset + region.size:
            raise InvalidRequest(
                f"shared memory region '{region.name}' has shrunk to {left} bytes since it was registered"
            )
        return self.memory[region.offset : region.offset + region.size]


@dataclass(frozen=True, slots=True)
class _Place:
    """A `messages.Place`."""

    mapped: _Mapped
    region: Region

    def write(self, data: Buffer) -> None:
        """See `messages.Place`."""
        self.mapped.part(self.region)[: len(data)] = data


class SharedMemoryRegions:
    """A `messages.SharedMemory` of regions that are registered by name. Lives on the event loop."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._directory = directory
        self._regions: dict[str, _Mapped] = {}

    def __repr__(self) -> str:
        return f"<SharedMemoryRegions {len(self._regions)} registered>"

    def view(self, region: Region) -> memoryview:
        """The bytes of a part of a region, writable. They stay mapped while the view lives.

        Raises RegionNotFound, and InvalidRequest for what reaches beyond the region, or beyond what its owner has left
        of it since: touching that would end the process (SIGBUS, mmap(2)).
        """
        return self._mapped(region).part(region)

    def pin(self, region: Region) -> _Place:
        """Where an output shall go: what the region's name means now. Raises as `view`."""
        mapped = self._mapped(region)
        mapped.part(region)
        return _Place(mapped, region)

    def _mapped(self, region: Region) -> _Mapped:
        found = self._regions.get(region.name)
        if found is None:
            raise RegionNotFound(f"Unable to find shared memory region: '{region.name}'")
        return found

    def register(self, region: Registered) -> None:
        """Maps a region. Raises RegionExists, and InvalidRequest for a key that cannot be opened or is too small."""
        if region.name in self._regions:
            raise RegionExists(f"shared memory region '{region.name}' already in manager")
        if not region.name:
            raise InvalidRequest("a shared memory region needs a name")
        if len(self._regions) >= MAX_REGIONS:
            raise InvalidRequest(f"{MAX_REGIONS} shared memory regions are registered, at most as many may be")
        if region.byte_size < 1:
            raise InvalidRequest(f"shared memory region '{region.name}' has a size of {region.byte_size} bytes")
        self._regions[region.name] = self._map(region)

    def unregister(self, name: str) -> None:
        """Forgets a region, or with an empty name all. One that is not known is none too few: nothing happens.

        A request under way keeps what it uses mapped until it is done.
        """
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def status(self, name: str) -> list[Registered]:
        """The region of that name, or with an empty name all. Raises RegionNotFound."""
        if not name:
            return [mapped.registered for mapped in self._regions.values()]
        if name not in self._regions:
            raise RegionNotFound(f"Unable to find shared memory region: '{name}'")
        return [self._regions[name].registered]

    def _map(self, region: Registered) -> _Mapped:
        if not _KEY.fullmatch(region.key) or region.key.strip("/") in (".", ".."):
            raise InvalidRequest(
                f"Unable to open shared memory region: '{region.name}'. Its key is '{region.key[:80]}', expected a "
                "POSIX shared memory name such as '/name'"
            )
        path = self._directory / region.key.removeprefix("/")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidRequest(
                f"Unable to open shared memory region: '{region.name}', key '{region.key}': {error.strerror}"
            ) from None
        try:
            size = os.fstat(descriptor).st_size
            if region.offset + region.byte_size > size:
                raise InvalidRequest(
                    f"failed to register shared memory region '{region.name}': invalid args. Key '{region.key}' has "
                    f"{size} bytes, got {region.byte_size} from offset {region.offset}"
                )
            start = region.offset - region.offset % mmap.ALLOCATIONGRANULARITY  # of a mapping: whole pages
            mapped = mmap.mmap(descriptor, region.offset - start + region.byte_size, offset=start)
        except (OSError, ValueError, OverflowError) as error:
            raise InvalidRequest(
                f"Unable to map shared memory region: '{region.name}', key '{region.key}': {error}"
            ) from None
        finally:
            os.close(descriptor)
        return _Mapped(region, mapped, memoryview(mapped)[region.offset - start :])


class NoSharedMemory:
    """A `messages.SharedMemory` for a server that has it switched off."""

    def view(self, region: Region) -> memoryview:
        """Raises Unimplemented."""
        raise disabled()

    def pin(self, region: Region) -> Place:
        """Raises Unimplemented."""
        raise disabled()


def disabled() -> Unimplemented:
    """The error of every use of shared memory where it is switched off."""
    return Unimplemented("Client shared memory is disabled. Start the server with '--allow-client-shm true' to enable.")
