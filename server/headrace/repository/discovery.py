"""What is on disk: `NAME/VERSION/<model file>`, and an optional model.toml or config.pbtxt. Opens no model file."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from headrace.errors import ConfigError
from headrace.repository.configuration import PBTXT_FILE, Configuration, read_configuration
from headrace.repository.model_config import CONFIG_FILE

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

    from headrace.repository.guard_config import GuardConfig
    from headrace.repository.model_config import ModelConfig

log = logging.getLogger(__name__)

NAME_RULE = "a model's name is letters, digits, '_', '-' and '.', beginning with a letter, a digit or '_'"
# A name travels in URLs, metric labels and log lines.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
# One spelling a version: `01` and `1` would be two directories for the same number on the wire (int64).
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
LARGEST_VERSION = 10**18 - 1
"""The largest number that `_VERSION` takes."""
_File = tuple[str, int, int, int]
"""Path, size, inode and time of the last change: one of them differs when the file was changed."""
_NOT_MODELS = {"__pycache__", "lost+found"}


class Kept(Protocol):
    """Something that files depend on."""

    def close(self) -> object:
        """It goes, and the files with it. Safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """A version to be served. `path` is its directory, the model file in it is the backend's to open.

    stamp: of the version's files, and those that the configuration names; it differs when one of them was changed.
    configuration: what `config`, how it is served, is from. keeps: what has to be there while it may be opened again.
    """

    name: str
    version: int
    path: Path
    config: ModelConfig
    stamp: Hashable = ()
    configuration: Configuration | None = None
    keeps: Kept | None = field(default=None, compare=False)

    @property
    def config_file(self) -> str:
        """The file that says how it is served; empty for defaults."""
        file = self.configuration.file if self.configuration else ""
        return str(self.path.parent / file) if file else ""


@dataclass(frozen=True, slots=True)
class Broken:
    """A model, or (where `version` is given) one version of it, that cannot be served, and why.

    expected: it has yet to be built, and its configuration says so.
    """

    name: str
    version: int | None
    reason: str
    expected: bool = False


def scan(root: Path) -> list[Found | Broken]:
    """Every version that the models' version policies select, by name and then version; broken ones with the reason.

    Raises ConfigError when `root` is not a directory that can be read.
    """
    return [found for name in names(root) for found in _model(root / name)]


def scan_model(root: Path, name: str) -> list[Found | Broken]:
    """The same of one model; empty if there is none of that name."""
    directory = root / name
    if not is_name(name) or not _is_model(directory):
        return []
    return list(_model(directory))


def is_name(name: str) -> bool:
    """Whether a model may have this name: it is part of paths."""
    return _NAME.fullmatch(name) is not None


def names(root: Path) -> list[str]:
    """The models that the repository holds, sorted. Raises ConfigError as `scan` does."""
    try:
        return sorted(entry.name for entry in root.iterdir() if _is_model(entry))
    except OSError as error:
        raise ConfigError(
            f'model_repository = "{root}": not a readable directory: {error.strerror or error}'
        ) from error


def doubt(root: Path) -> str:
    """What is odd about a repository as a whole, which may be meant so; empty if nothing is. Raises OSError."""
    if any((root / file).is_file() for file in (CONFIG_FILE, PBTXT_FILE)):
        return f"{root} has the configuration of a model: is it a model's directory, and the repository the one above?"
    if not any(_is_model(entry) for entry in root.iterdir()):
        return f"{root} holds no models: expected directories such as NAME/1 with the model file"
    return ""


def _is_model(entry: Path) -> bool:
    """Whether it is a directory, or was meant to be one: a link that leads nowhere is reported, not passed over."""
    try:
        there = entry.is_dir() or (entry.is_symlink() and not entry.exists())
    except OSError:  # a link to where the server may not look
        there = True
    return there and not entry.name.startswith(".") and entry.name not in _NOT_MODELS


def shown(name: str) -> str:
    """A name as it can be told: of one that is not UTF-8, the octets that are not, in hexadecimal."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _leads_nowhere(link: Path) -> str:
    return f"{link} is a link to {shown(str(link.readlink()))}, which is not there"


def _model(directory: Path) -> Iterator[Found | Broken]:
    name = directory.name
    if not is_name(name):
        yield Broken(shown(name), None, NAME_RULE)
        return
    try:
        if not directory.is_dir():
            yield from _dangling(directory)
            return
        configuration = read_configuration(directory)
        versions = _versions(directory)
    except ConfigError as error:
        yield Broken(name, None, str(error))
        return
    except OSError as error:
        yield Broken(name, None, f"{directory} cannot be read: {error.strerror or error}")
        return
    except Exception:  # that nobody foresaw; the others are to serve all the same
        log.exception("%s: reading its configuration failed unexpectedly", directory)
        yield Broken(name, None, "reading its configuration failed unexpectedly; the server's log says more")
        return
    if not versions and configuration.settings.built_by:
        yield Broken(name, None, f"not built yet; to build it, run '{configuration.settings.built_by}'", expected=True)
        return
    if not versions:
        yield Broken(
            name,
            None,
            f"no version: expected a directory such as {directory / '1'} with the model file (not built yet?)",
        )
        return
    selected = _selected(configuration.settings, sorted(versions))
    guard = configuration.settings.guard
    if guard is None:
        for version in selected:
            yield _version(name, version, directory / str(version), configuration)
    else:
        yield from _guarded(directory, configuration, guard, selected, versions)


def _dangling(directory: Path) -> list[Found | Broken]:
    """What is said of a link that leads nowhere; nothing of what was removed while others were looked at."""
    try:
        return [Broken(directory.name, None, _leads_nowhere(directory))]
    except OSError:
        return []


def _guarded(
    directory: Path, configuration: Configuration, guard: GuardConfig, selected: list[int], versions: list[int]
) -> Iterator[Found | Broken]:
    """The selected versions and the reference, without which none of them shall serve."""
    name, reference = directory.name, guard.reference
    if reference not in versions:
        there = ", ".join(map(str, sorted(versions)))
        for version in selected:
            yield Broken(name, version, f"guard.reference = {reference}: there is no such version, but {there}")
        return
    if selected == [reference]:
        yield Broken(
            name,
            reference,
            f"guard.reference = {reference} is the only version to be served: there is nothing to guard; leave [guard] "
            "out, or have `versions` choose another",
        )
        return
    path = directory / str(reference)
    stands_in = [reference] if guard.action == "fall_back" else []
    for version in sorted({*selected, *stands_in}):
        entry = _version(name, version, directory / str(version), configuration)
        if isinstance(entry, Found) and version != reference:
            trusted = _version(name, reference, path, configuration)
            if isinstance(trusted, Broken):
                entry = Broken(name, version, f"guard.reference = {reference}: {trusted.reason}")
            else:  # it is opened anew when the reference's files change
                entry = replace(entry, stamp=(entry.stamp, trusted.stamp))
        yield entry


def _versions(directory: Path) -> list[int]:
    versions = []
    for entry in directory.iterdir():
        if not _is_model(entry):
            continue
        if _VERSION.fullmatch(entry.name):
            versions.append(int(entry.name))
        elif entry.name.isdecimal():
            log.warning(
                "%s is ignored: a version is an integer from 1 to %d without leading zeros", entry, LARGEST_VERSION
            )
        else:
            log.debug("%s is ignored: not a version", entry)
    return versions


def _selected(config: ModelConfig, versions: list[int]) -> list[int]:
    """`versions`, ascending, as far as the policy serves them; versions named in the policy whether there or not."""
    if isinstance(config.versions, tuple):
        return sorted(set(config.versions))
    if config.versions == "all":
        return versions
    return versions[-int(config.versions.removeprefix("latest:")) :]


def _version(name: str, version: int, path: Path, configuration: Configuration) -> Found | Broken:
    try:
        stamp = _stamp(path)
        if stamp or configuration.settings.ensemble.steps:
            beside = _stamp_of(path.parent, configuration.named_files)
            return Found(name, version, path, configuration.settings, stamp + beside, configuration)
    except OSError as error:
        missing = Path(error.filename or path)
        if isinstance(error, FileNotFoundError) and missing.is_symlink():
            return Broken(name, version, _leads_nowhere(missing))
        if configuration.file and missing == path and isinstance(error, FileNotFoundError):
            return Broken(name, version, f"{configuration.file} asks for version {version}, but there is no {path}")
        return Broken(name, version, f"{path} cannot be read: {error.strerror or error}")
    return Broken(name, version, f"no model file in {path}")


def _stamp_of(directory: Path, names: Iterable[str]) -> tuple[_File, ...]:
    """Those of these files that are there."""
    files = [(name, directory / name) for name in names]
    return tuple((name, *_facts(file)) for name, file in files if file.exists())


def _facts(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_size, status.st_ino, status.st_mtime_ns


def _stamp(path: Path) -> tuple[_File, ...]:
    """Each file below `path` that is not hidden."""
    files: list[_File] = []
    for entry in sorted(path.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            files += [(f"{entry.name}/{name}", *facts) for name, *facts in _stamp(entry)]  # type: ignore[misc]
        else:
            files.append((entry.name, *_facts(entry)))
    return tuple(files)
