"""Values for a pydantic model from TOML, environment and flags, checked with errors that say where each was set.

`build` merges sources, later ones winning, and raises one ConfigError that lists everything that is wrong: the key,
the value, what is allowed, where it was set, and the nearest known key for a typo. What is allowed is read from the
model's JSON schema, so nothing about a setting is written down twice.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from headrace.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from pydantic.fields import FieldInfo

KeyPath = tuple[str, ...]
Schema = dict[str, Any]
M = TypeVar("M", bound=BaseModel)


_MOST_KNOWN = 24
"""Names that a hint lists: as many as the largest table has, an input's."""


@dataclass(slots=True)
class Source:
    """Values from one place: a nested mapping, where each leaf was set, and what could not even be read."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def set(self, path: KeyPath, value: object, origin: str) -> None:
        """Puts one leaf into the tree."""
        node = self.values
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
        self.origins[path] = origin

    def set_text(self, setting: Setting, text: str, origin: str) -> None:
        """Puts one leaf that was given as text, as environment variables and flags are."""
        try:
            self.set(setting.path, setting.parse(text), origin)
        except ValidationError:
            self.problems.append(_wrong(".".join(setting.path), text, describe(setting.schema), f" ({origin})"))


@dataclass(frozen=True, slots=True)
class Setting:
    """One leaf of a settings tree."""

    path: KeyPath
    field: FieldInfo
    schema: Schema

    @property
    def flag(self) -> str:
        """Its flag, such as `--http2-keepalive-s`."""
        return "--" + "-".join(self.path).replace("_", "-")

    def variable(self, prefix: str) -> str:
        """Its environment variable, such as `HEADRACE_HTTP2__KEEPALIVE_S`."""
        return prefix + "__".join(self.path).upper()

    def parse(self, text: str) -> object:
        """The value that `text` spells. Raises pydantic's ValidationError."""
        kind: Any = Annotated[self.field.annotation, self.field]
        return TypeAdapter(kind).validate_strings(text)


def leaves(model: type[BaseModel]) -> list[Setting]:
    """Every setting of a tree of models, in the order of declaration."""
    root = model.model_json_schema()

    def walk(model: type[BaseModel], node: Schema, path: KeyPath) -> Iterator[Setting]:
        for name, info in model.model_fields.items():
            child = _resolve(root, node["properties"][name])
            if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                yield from walk(info.annotation, child, (*path, name))
            else:
                yield Setting((*path, name), info, child)

    return list(walk(model, root, ()))


def read_toml(path: Path) -> Source:
    """The values of a TOML file. Raises ConfigError when it cannot be read or is not TOML."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # editors of Windows begin with a byte order mark
            values = tomllib.loads(file.read(), parse_float=_number)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # the latter, and a number too long, are not TOMLDecodeError
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return Source(values, {(): f"in {path}"})


def _number(text: str) -> float:
    """A float; NaN as one object, which is found equal to itself where values are compared within others."""
    number = float(text)
    return math.nan if math.isnan(number) else number


# Kubernetes puts a variable for each port of each service of the namespace into every pod. A service called
# `headrace` or `headrace-grpc` makes names that look like settings; its values are addresses and not meant for us.
_SERVICE_LINK_NAME = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")


def read_environment(
    model: type[BaseModel], environ: Mapping[str, str], prefix: str, ignore: Iterable[str] = ()
) -> Source:
    """The settings among the variables of an environment: those whose names start with `prefix`, but for `ignore`."""
    known = {setting.variable(prefix): setting for setting in leaves(model)}
    source = Source()
    for name, text in environ.items():
        if not name.startswith(prefix) or name in ignore:
            continue
        if _SERVICE_LINK_NAME.fullmatch(name) or (name.endswith("_PORT") and _SERVICE_LINK_VALUE.match(text)):
            continue
        if name in known:
            source.set_text(known[name], text, f"from environment variable {name}")
        else:
            source.problems.append(f"unknown environment variable {name}{nearest(name, known)}")
    return source


def add_flags(parser: argparse.ArgumentParser, model: type[BaseModel]) -> None:
    """Adds one flag for each setting of `model`, nested ones in a group each. `read_flags` reads them back."""
    groups: dict[KeyPath, argparse._ActionsContainer] = {}
    for setting in leaves(model):
        parent = setting.path[:-1]
        if parent not in groups:
            groups[parent] = parser.add_argument_group(".".join(parent) or "settings")
        groups[parent].add_argument(
            setting.flag,
            dest=".".join(setting.path),
            default=argparse.SUPPRESS,
            metavar=_metavar(setting.schema),
            help=f"{setting.field.description} (default: {shown_default(setting)})".replace("%", "%%"),
        )


def read_flags(model: type[BaseModel], arguments: Mapping[str, object]) -> Source:
    """The settings among parsed arguments (`vars(namespace)`): those that were given on the command line."""
    source = Source()
    for setting in leaves(model):
        text = arguments.get(".".join(setting.path))
        if text is not None:
            source.set_text(setting, str(text), f"from flag {setting.flag}")
    return source


def build(model: type[M], sources: Sequence[Source]) -> M:
    """The model from all sources, the last one strongest. Raises ConfigError with a line for each problem."""
    merged = Source()
    for source in sources:
        _merge(merged.values, source.values)
        merged.origins |= source.origins
        merged.problems += source.problems
    result = None
    try:
        result = model.model_validate(merged.values)
    except ValidationError as error:
        merged.problems += _explain(model.model_json_schema(), error, merged)
    if result is None or merged.problems:
        raise ConfigError("\n".join(dict.fromkeys(merged.problems)))
    return result


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint to append to an error: `; did you mean 'x'?`, or else what is known, if that is little."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1) or [k for k in known if k.rpartition(".")[2] == name]
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= _MOST_KNOWN else ""


def describe(schema: Schema) -> str:
    """What a JSON schema allows, in words: `an integer from 0 to 65535`."""
    if "allowed" in schema:  # words that a field brings itself, by json_schema_extra
        return str(schema["allowed"])
    if "$ref" in schema:
        return "a table"
    if "discriminator" in schema:
        chosen = schema["discriminator"]
        return f"a table with {chosen['propertyName']} = {' or '.join(map(json.dumps, chosen['mapping']))}"
    if "anyOf" in schema:
        options = [describe(option) for option in schema["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(options))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum") or [schema["const"]]
        return ("one of " if len(values) > 1 else "") + ", ".join(json.dumps(value) for value in values)
    if schema.get("format") == "path":
        return "a path"
    match schema.get("type"):
        case "integer":
            return "an integer" + _bounds(schema)
        case "number":
            return "a number" + _bounds(schema)
        case "boolean":
            return "true or false"
        case "array":
            some = " that is not empty" if schema.get("minItems") else ""
            return f"a list{some} (each {describe(schema.get('items', {}))})"
        case "object":
            return "a table"
        case "string":
            return "text" if not schema.get("minLength") else "text that is not empty"
        case _:
            return "a value"


def _bounds(schema: Schema) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    parts = [
        f"{word} {bound}"
        for word, bound in (("of at least", low), ("above", above), ("of at most", high), ("below", below))
        if bound is not None
    ]
    return (" " + " and ".join(parts)) if parts else ""


def _metavar(schema: Schema) -> str:
    if "enum" in schema:
        return "{" + ",".join(schema["enum"]) + "}"
    if schema.get("format") == "path":
        return "PATH"
    return {"integer": "N", "number": "X", "boolean": "{true,false}"}.get(schema.get("type", ""), "TEXT")


def shown_default(setting: Setting) -> str:
    """The default of a setting as people read it."""
    default = setting.field.default
    if setting.path[-1].endswith("_bytes") and default >= 1 << 20 and default % (1 << 20) == 0:
        return f"{default}, {default >> 20} MiB"
    return f"{default:g}" if isinstance(default, float) else str(default) or "none"


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _explain(root: Schema, error: ValidationError, source: Source) -> Iterator[str]:
    """One line for each of pydantic's errors; the branches of a union make one line together."""
    for problem in error.errors(include_url=False):
        loc = tuple(str(part) for part in problem["loc"])
        if loc[-1:] == ("[key]",) and problem["type"] not in ("value_error", "extra_forbidden"):
            _, path, node = _locate(root, loc[:-2])
            allowed = describe(node.get("propertyNames", {}))
            yield f"{'.'.join(path)} has the key {loc[-2]!r}{_origin(source, path)}: expected {allowed}"
            continue
        location, path, node = _locate(root, loc)
        key = ".".join(path)
        if problem["type"] == "extra_forbidden":
            unknown = location[len(path)]
            known = [".".join(k) for k in _keys(root, root)] if not path else list(node.get("properties", ()))
            name = ".".join((*path, unknown))
            yield f"unknown key {name!r}{_origin(source, location)}{nearest(unknown, known)}"
        elif problem["type"] == "missing" and _value_at(source.values, path) is None:
            yield f"{key} is missing{_origin(source, path)}: expected {describe(node)}"
        elif problem["type"] == "value_error":
            yield f"{key + ': ' if key else ''}{problem['ctx']['error']}{_origin(source, path)}"
        else:
            yield _wrong(key, _value_at(source.values, path), describe(node), _origin(source, path))


def _wrong(key: str, value: object, allowed: str, origin: str) -> str:
    return f"{key} = {json.dumps(value, default=str)}{origin}: expected {allowed}"


def _resolve(root: Schema, node: Schema) -> Schema:
    """The schema that a reference, or a table that may be left out, stands for."""
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    if len(options) == 1 and "$ref" in options[0]:
        node = options[0]
    if "$ref" not in node:
        return node
    target: Schema = root["$defs"][node["$ref"].rpartition("/")[2]]
    return target


def _locate(root: Schema, location: KeyPath) -> tuple[KeyPath, KeyPath, Schema]:
    """An error's location in the source, the longest part of it that is a key of the tree, and that key's schema.

    Where one of several tables is chosen by a key of theirs, pydantic's location holds its value, which is no key.
    """
    node = root
    keys: list[str] = []
    known = len(location)
    for at, key in enumerate(location):
        tables = node.get("discriminator", {}).get("mapping", {})
        if key in tables:
            node = _resolve(root, {"$ref": tables[key]})
            continue
        properties = node.get("properties", {})
        if properties:
            child = properties.get(key)
        else:  # a table with names of the user's own
            child = node.get("additionalProperties") or next(iter(node.get("patternProperties", {}).values()), None)
        if "$ref" in node.get("items", {}):  # a list of tables
            child = node["items"]
        if not isinstance(child, dict):
            known = len(keys)
            keys += location[at:]
            break
        keys.append(key)
        node = _resolve(root, child)
    return tuple(keys), tuple(keys[:known]), node


def _keys(root: Schema, node: Schema) -> Iterator[KeyPath]:
    for name, child in node.get("properties", {}).items():
        yield (name,)
        yield from ((name, *rest) for rest in _keys(root, _resolve(root, child)))


def _origin(source: Source, path: KeyPath) -> str:
    """Where the value at `path` was set, to follow it in a message. Empty where several places made it together."""
    for depth in range(len(path), 0, -1):
        if path[:depth] in source.origins:
            return f" ({source.origins[path[:depth]]})"
    below = {origin for leaf, origin in source.origins.items() if leaf[: len(path)] == path}
    if not below and () in source.origins:
        below = {source.origins[()]}
    return f" ({below.pop()})" if len(below) == 1 else ""


def _value_at(values: object, path: KeyPath) -> object:
    for key in path:
        if isinstance(values, list):
            values = values[int(key)]
        elif isinstance(values, Mapping) and key in values:
            values = values[key]
        elif key != "0":  # else it may be one value, where a list of such is taken too
            values = None
    return values
