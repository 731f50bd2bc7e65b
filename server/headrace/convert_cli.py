"""`headrace models convert`: from Triton's config.pbtxt to model.toml."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import ConfigError
from headrace.tensor_text import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.repository.configuration import Configuration

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DESCRIPTION = """\
Prints the model.toml that says what a Triton model's config.pbtxt says, or writes it next to that file. What has no
effect here stands in it as a comment. What cannot be served is an error, and the other models are converted. Where
there is a model.toml, it is what is served, and config.pbtxt is not read.
"""

_EPILOG = """\
examples:
  headrace models convert /srv/models/resnet
  headrace models convert /srv/models --write
"""


def add_command(commands: Subparsers) -> None:
    """Adds `convert` to the subcommands of a parser."""
    convert = commands.add_parser(
        "convert",
        help="write model.toml from Triton's config.pbtxt",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    convert.add_argument("directory", metavar="DIR", type=Path, help="a model's directory, or a repository of them")
    convert.add_argument("--write", action="store_true", help="write model.toml; one that is there stays as it is")
    convert.set_defaults(command=_convert, parser=convert)


def _convert(arguments: argparse.Namespace) -> int:
    from headrace.repository.configuration import read_triton_configuration
    from headrace.repository.model_config import CONFIG_FILE

    failed = False
    for directory in _models(arguments.directory):
        target = directory / CONFIG_FILE
        try:
            text = _text(read_triton_configuration(directory))
            if not arguments.write:
                print(f"# {target}\n{text}")
            else:
                _write(target, text)
                print(f"{target}: written")
        except (ConfigError, OSError) as error:
            failed = True
            for line in str(error).splitlines():
                print(f"headrace: {line}", file=sys.stderr)
    return int(failed)


def _models(directory: Path) -> Iterator[Path]:
    """The directory itself, or those in it that have a config.pbtxt. Raises UsageError if there is none."""
    from headrace.repository.configuration import PBTXT_FILE

    directory = Path(os.path.abspath(directory))  # a model is called as its directory, though that may be a link
    if (directory / PBTXT_FILE).exists():
        yield directory
        return
    found = sorted(path.parent for path in directory.glob(f"*/{PBTXT_FILE}"))
    if not found:
        raise UsageError(f"{directory}: no {PBTXT_FILE} here or in a directory below")
    yield from found


def _text(configuration: Configuration) -> str:
    from headrace.repository.toml_text import settings_text

    comments = [f"# {' '.join(warning.split())}\n" for warning in configuration.warnings]
    return "".join(comments) + settings_text(configuration.settings)


def _write(path: Path, text: str) -> None:
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise ConfigError(f"{path}: is there already, and stays as it is") from None
    try:
        with file:
            file.write(text)
    except BaseException:
        path.unlink()  # part of it would be served in the place of config.pbtxt
        raise
