"""The protocol-buffer text format of `config.pbtxt`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import text_format

from headrace.errors import ConfigError
from headrace.rpc import model_config_pb2 as mc
from headrace.rpc.pool import POOL

if TYPE_CHECKING:
    from pathlib import Path


def read_pbtxt(path: Path) -> mc.ModelConfig:
    """The message in the file `path`. Raises ConfigError with file, line and column."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}") from error
    try:
        return text_format.Parse(text, mc.ModelConfig(), descriptor_pool=POOL)
    except text_format.ParseError as error:
        line, column = error.GetLine(), error.GetColumn()
        what = str(error).removeprefix(f"{line}:{column} : ")
        raise ConfigError(f"{path}:{line}:{column}: {what}") from error
