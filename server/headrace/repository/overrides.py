"""A load in which the client brings the configuration, or the model's files: laid out as a repository of one model.

Source: Triton's model repository extension, the parameters `config` and `file:<version>/<name>` of a load.
"""

from __future__ import annotations

import errno
import json
from contextlib import suppress
from pathlib import Path, PurePosixPath
from shutil import rmtree
from tempfile import mkdtemp
from threading import Thread
from typing import TYPE_CHECKING
from weakref import finalize

from google.protobuf import json_format, text_format

from headrace.errors import InvalidRequest
from headrace.repository.configuration import PBTXT_FILE
from headrace.repository.model_config import CONFIG_FILE
from headrace.rpc import model_config_pb2 as mc
from headrace.rpc.pool import POOL

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE_PREFIX = "file:"
REMOVER = "headrace-remove"
"""Name of the threads that remove what was loaded."""
_NAMES = frozenset({errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR})
"""Errors that the names of files are to blame for, and not the server's disk."""
PLANS = frozenset({".plan", ".engine"})
"""What the tensorrt backend takes for plans, by their suffix: code that runs as the server."""


class Staging:
    """A directory for one load, which goes with the last that refers to this: what was loaded may be opened again.

    Or before, by `close`: an error of the load may refer to it for long.
    """

    def __init__(self) -> None:
        self.path = Path(mkdtemp(prefix="headrace-load-"))
        self.close = finalize(self, _remove, self.path)

    def __repr__(self) -> str:
        return f"<Staging {self.path}>"


def _remove(path: Path) -> None:
    """On a thread: whoever has dropped it last may be the event loop, and models are large."""
    with suppress(RuntimeError):  # the interpreter ends, and starts none any more
        Thread(target=rmtree, args=(path, True), name=REMOVER).start()
        return
    rmtree(path, ignore_errors=True)


def stage(root: Path, name: str, config: str, files: Mapping[str, bytes], into: Path) -> None:
    """Makes `into / name`: the model as the repository `root` has it, but for what the client brings.

    config: a ModelConfig message as JSON, which replaces the model's own. files: contents by `<version>/<name>`; they
    replace all of the model's. Raises InvalidRequest, OSError.
    """
    if not config:
        raise InvalidRequest(f"load of '{name}': parameter 'config' is needed beside '{FILE_PREFIX}' parameters")
    message = _message(name, config)
    directory = into / name
    directory.mkdir()
    if files:
        for path, content in files.items():
            _write(directory / _checked(path), content, path)
    elif (root / name).is_dir():
        for entry in (root / name).iterdir():
            if entry.name not in (CONFIG_FILE, PBTXT_FILE):
                (directory / entry.name).symlink_to(entry.resolve())
    (directory / PBTXT_FILE).write_text(text_format.MessageToString(message), encoding="utf-8")


def _write(file: Path, content: bytes, path: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    except OSError as error:
        if error.errno not in _NAMES:
            raise
        what = "the name is too long" if error.errno == errno.ENAMETOOLONG else "a file and a directory of one name"
        raise InvalidRequest(f"parameter '{FILE_PREFIX}{path[:200]}': {what}") from None


def _message(name: str, config: str) -> mc.ModelConfig:
    try:
        if not isinstance(json.loads(config), dict):
            raise json_format.ParseError("expected an object")
        message = json_format.Parse(config, mc.ModelConfig(), descriptor_pool=POOL)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"load of '{name}': parameter 'config' is not a ModelConfig in JSON: {error}") from None
    if message.HasField("model_operations"):
        raise InvalidRequest(f"load of '{name}': model_operations loads libraries, which a client may not choose")
    return message


def _checked(path: str) -> PurePosixPath:
    """A path below the model's directory that begins with a version. Raises InvalidRequest."""
    parts = PurePosixPath(path)
    if len(parts.parts) < 2 or not parts.parts[0].isdecimal() or ".." in parts.parts or "\0" in path:
        raise InvalidRequest(f"parameter '{FILE_PREFIX}{path[:200]}': expected '{FILE_PREFIX}<version>/<file>'")
    if parts.suffix in PLANS:
        raise InvalidRequest(f"parameter '{FILE_PREFIX}{path[:200]}': a plan is code, which a client may not bring")
    return parts
