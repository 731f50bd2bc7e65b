"""A directory that nobody but this server's user can read or write, and files in it.

Everything goes through the opened directory, so that nobody can put another in its place on the way. Locks are between
processes as well as between threads (flock).
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

_SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # neither through links nor waiting on a pipe


class Unsafe(Exception):
    """A directory, or a file in it, is not this user's alone. Says what it is, and what is expected."""


class PrivateDirectory:
    """Opens `path`, or makes it. Raises Unsafe, OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        try:
            self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if path.is_symlink() or not path.is_dir():
                raise Unsafe(f"{path} is a symbolic link or no directory, expected a directory") from error
            raise
        try:
            _check(f"{path}", os.fstat(self._directory), 0o700)
        except Unsafe:
            self.close()
            raise

    def close(self) -> None:
        """Lets go of it."""
        os.close(self._directory)

    def __repr__(self) -> str:
        return f"<PrivateDirectory {self.path}>"

    def read(self, name: str) -> bytes | None:
        """What a file holds, None if there is none. Raises Unsafe, OSError."""
        try:
            descriptor = os.open(name, os.O_RDONLY | _SAFELY, dir_fd=self._directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            if name in self._links():
                raise Unsafe(f"{self.path / name} is a symbolic link, expected a file") from error
            raise
        with open(descriptor, "rb") as file:
            _check(f"{self.path / name}", os.fstat(descriptor), 0o600)
            return file.read()

    def write(self, name: str, *parts: bytes) -> None:
        """Writes a file, whole or not at all. Not for two writers at once. Raises OSError.

        It is not forced to the disk: what a loss of power leaves of it is found out when it is read.
        """
        temporary = f"{name}.tmp"
        self.remove(temporary)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY
        with open(os.open(temporary, flags, 0o600, dir_fd=self._directory), "wb") as file:
            file.writelines(parts)
        os.replace(temporary, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def remove(self, name: str) -> None:
        """Removes a file, if there is one."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._directory)

    def touch(self, name: str) -> None:
        """Makes a file the youngest, if there is one."""
        with suppress(FileNotFoundError):
            os.utime(name, dir_fd=self._directory, follow_symlinks=False)

    def files(self) -> dict[str, os.stat_result]:
        """All that there is, by name."""
        found = {}
        with os.scandir(self._directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    found[entry.name] = entry.stat(follow_symlinks=False)
        return found

    def _links(self) -> set[str]:
        return {name for name, status in self.files().items() if stat.S_ISLNK(status.st_mode)}

    @contextmanager
    def lock(self, name: str, waits_for: str) -> Iterator[None]:
        """Holds the lock file of that name, which exists only meanwhile. waits_for: for the log, if it is taken."""
        descriptor = self._locked(name, waits_for)
        try:
            yield
        finally:
            self.remove(name)
            os.close(descriptor)

    def _locked(self, name: str, waits_for: str) -> int:
        while True:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | _SAFELY, 0o600, dir_fd=self._directory)
            try:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    log.info("waiting for %s", waits_for)
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                # whoever held it has removed the file: only the one that is there now locks anybody out
                with suppress(FileNotFoundError):
                    there = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
                    mine = os.fstat(descriptor)
                    if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                        return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


def _check(what: str, status: os.stat_result, mode: int) -> None:
    """Raises Unsafe unless it is the user's own, and its mode is not more than `mode`."""
    kind = stat.S_ISDIR if mode & 0o100 else stat.S_ISREG
    if not kind(status.st_mode):
        raise Unsafe(f"{what} is not what was expected, a {'directory' if mode & 0o100 else 'file'}")
    if status.st_uid != os.geteuid():
        raise Unsafe(f"{what} belongs to user {status.st_uid}, expected {os.geteuid()}, who runs the server")
    if stat.S_IMODE(status.st_mode) & ~mode:
        raise Unsafe(f"{what} has mode {stat.S_IMODE(status.st_mode):04o}, expected {mode:04o}: others can use it")
