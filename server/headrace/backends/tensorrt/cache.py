"""Engines that were built before, in a directory that this server's user owns alone.

A plan is machine code: whoever can have one loaded runs what he likes as the server. So an entry is loaded only from a
directory that nobody else can write, and only if its signature is by the directory's own key (`sealed`); anything else
is logged, never handed to TensorRT, and built again. Several servers may share a directory.
"""

from __future__ import annotations

import logging
import os
import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.backends.private import PrivateDirectory, Unsafe
from headrace.backends.tensorrt import key as keys
from headrace.backends.tensorrt.sealed import Unsealed, seal, unseal
from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

log = logging.getLogger(__name__)

KEY_FILE = "key"
KEY_BYTES = 32
LOCK_FILE = "lock"
PLAN = ".plan"
TIMINGS = ".timings"


def default_directory(environ: Mapping[str, str]) -> Path:
    """`headrace/engines` in the user's cache (XDG Base Directory Specification). Raises ModelLoadError."""
    cache = environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # a relative one is to be ignored
        home = environ.get("HOME", "")
        if not os.path.isabs(home):
            raise ModelLoadError(
                "there is no home directory for built engines: set tensorrt.engine_cache in the server's settings"
            )
        cache = os.path.join(home, ".cache")
    return Path(cache) / "headrace" / "engines"


class EngineCache:
    """Plans and timing caches in a directory. limit: of them all, in bytes. Raises ModelLoadError if it is not safe."""

    def __init__(self, path: Path, limit: int) -> None:
        self._limit = limit
        try:
            self._directory = PrivateDirectory(path)
            try:
                self._key = self._read_key()
            except BaseException:
                self._directory.close()
                raise
        except Unsafe as error:
            raise ModelLoadError(f"engine cache: {error}") from error
        except OSError as error:
            raise ModelLoadError(f"engine cache {path} cannot be used: {error}") from error

    def __repr__(self) -> str:
        return f"<EngineCache {self._directory.path}>"

    def __enter__(self) -> EngineCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._directory.close()

    def plan(self, about: dict[str, Any]) -> bytes | None:
        """The plan of that description, None if it is to be built."""
        return self._load(about, PLAN)

    def timings(self, machine: dict[str, Any]) -> bytes:
        """The timing cache of a TensorRT and a GPU, empty if there is none."""
        return self._load(machine, TIMINGS) or b""

    def store_plan(self, about: dict[str, Any], plan: bytes) -> None:
        """Keeps a plan. That it cannot be kept is logged."""
        self._store(about, PLAN, plan)

    def store_timings(self, machine: dict[str, Any], timings: bytes) -> None:
        """Keeps a timing cache in the place of the one before."""
        self._store(machine, TIMINGS, timings)

    @contextmanager
    def building(self, about: dict[str, Any], label: str) -> Iterator[None]:
        """While the plan of that description is looked for and built, by one at a time. Raises ModelLoadError."""
        try:
            with self._directory.lock(
                f"{keys.name(about)}.lock", f"another that loads or builds the engine of {label}"
            ):
                yield
        except OSError as error:
            raise ModelLoadError(f"engine cache {self._directory.path} cannot be used: {error}") from error

    def _read_key(self) -> bytes:
        with self._locked():
            key = self._directory.read(KEY_FILE)
            if key is None:
                key = secrets.token_bytes(KEY_BYTES)
                self._directory.write(KEY_FILE, key)
        if len(key) != KEY_BYTES:
            raise Unsafe(
                f"{self._directory.path / KEY_FILE} has {len(key)} bytes, expected {KEY_BYTES}; without the file a new "
                "key is made, and all engines are built again"
            )
        return key

    def _locked(self) -> AbstractContextManager[None]:
        return self._directory.lock(LOCK_FILE, f"another server that uses {self._directory.path}")

    def _load(self, about: dict[str, Any], suffix: str) -> bytes | None:
        name = keys.name(about) + suffix
        try:
            content = self._directory.read(name)
            if content is None:
                return None
            payload = unseal(self._key, about | {"kind": suffix}, content)
            self._directory.touch(name)
        except (Unsafe, Unsealed, OSError) as error:
            log.warning("engine cache: %s is not used: %s", self._directory.path / name, error)
            return None
        return payload

    def _store(self, about: dict[str, Any], suffix: str, payload: bytes) -> None:
        name = keys.name(about) + suffix
        try:
            with self._locked():
                self._directory.write(name, seal(self._key, about | {"kind": suffix}, payload), payload)
                self._evict(name)
        except OSError as error:
            log.warning("engine cache: %s is not kept: %s", self._directory.path / name, error)

    def _evict(self, youngest: str) -> None:
        """Removes what was not used for longest until the rest is within the limit, and what broken writes left."""
        entries = []
        for name, status in self._directory.files().items():
            if name.endswith(".tmp"):  # of a writer that has died, for we hold the lock
                self._directory.remove(name)
            elif name.endswith((PLAN, TIMINGS)):
                entries.append((status.st_mtime_ns, status.st_size, name))
        total = sum(size for _, size, _ in entries)
        for _, size, name in sorted(entries):
            if total <= self._limit:
                return
            if name != youngest:
                self._directory.remove(name)
                total -= size
                log.info("engine cache: %s is removed, %d bytes are kept at most", name, self._limit)
