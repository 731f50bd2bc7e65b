"""What a guard's verdict is about: it stands, however often a version is loaded, while that is the same."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from headrace.guard.report import Proof
    from headrace.guard.settings import GuardSettings
    from headrace.repository.discovery import Found

_INDIFFERENT = {
    "guard", "drift", "versions", "version_labels", "built_by", "instances", "slo_ms", "priority_levels",
    "default_priority", "batching", "queue", "split_oversize", "warmup", "warmup_data", "response_cache", "cache_ttl_s",
}  # fmt: skip
"""Settings of a model that change no answer. (Of `guard`, what decides is in `GuardSettings`.)"""


class Verdict(NamedTuple):
    """A proof, and what it is about: see `subject_of`."""

    subject: str
    proof: Proof


def subject_of(found: Found, reference: int, settings: GuardSettings) -> str:
    """SHA-256 (hex) of the files of a version and of its reference, by content, and of the settings that matter.

    Files are those that are not hidden, at any depth. Blocks for as long as reading them takes. Raises ModelLoadError.
    """
    served = found.config.model_dump_json(exclude=_INDIFFERENT)
    digest = hashlib.sha256(repr((settings, reference, served)).encode())
    for directory in (found.path, found.path.parent / str(reference)):
        try:
            for name, file in _files(directory):
                with file.open("rb") as stream:
                    digest.update(repr((name, hashlib.file_digest(stream, "sha256").hexdigest())).encode())
        except OSError as error:
            raise ModelLoadError(f"{error.filename or directory} cannot be read: {error.strerror or error}") from error
        digest.update(b"/")
    return digest.hexdigest()


def _files(directory: Path, inside: str = "") -> Iterator[tuple[str, Path]]:
    for entry in sorted(directory.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files(entry, f"{inside}{entry.name}/")
        else:
            yield inside + entry.name, entry
