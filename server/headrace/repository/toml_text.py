"""Settings as TOML text, which the standard library only reads."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.repository.model_config import ModelConfig

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def settings_text(config: ModelConfig) -> str:
    """A model.toml with all that is not at its default."""
    return toml_text(config.model_dump(exclude_defaults=True))


def toml_text(values: Mapping[str, Any]) -> str:
    """A document with these values: tables, lists, text, numbers and booleans; lists of tables hold nothing else."""
    return "\n".join(_table((), values)).strip() + "\n" if values else ""


def _table(path: tuple[str, ...], values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        if not _holds_tables(value):
            yield f"{_key(key)} = {_value(value)}"
    for key, value in values.items():
        below = (*path, key)
        name = ".".join(map(_key, below))
        if isinstance(value, dict):
            if not value or not all(map(_holds_tables, value.values())):
                yield from ("", f"[{name}]")
            yield from _table(below, value)
        elif _holds_tables(value):
            for one in value:
                yield from ("", f"[[{name}]]", *_table(below, one))


def _holds_tables(value: object) -> bool:
    """Whether it is a table, or a list of them."""
    return isinstance(value, dict) or (isinstance(value, list | tuple) and bool(value) and isinstance(value[0], dict))


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _value(key)


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    # JSON's escapes are among TOML's, but it may leave this one control character as it is
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
