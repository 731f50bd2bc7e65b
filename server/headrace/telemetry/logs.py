"""The log: standard library logging to standard error, one line per event, for people and for `grep`, or as JSON.

    2026-03-01T12:00:00.123456Z INFO headrace.engine model is ready model=digits version=1 seconds=0.042

A line about a request that failed has its `correlation_id`, which its caller is told, and its `trace_id` if it is
traced; one about a model version has its `model` and `version`. Fields are what the call passes as `extra`. Nothing
that a client sent is logged by us beyond names that the protocol knows: no tensor, no parameter value. But the text of
an error of a backend is logged as it is, and may quote a value: ONNX Runtime's says which index is out of bounds.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

# What every record has, and what logging and uvicorn add on the way: not fields of the event.
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}


_SEVERITIES = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def of_model(name: str, version: str | int) -> dict[str, str]:
    """The fields of a line about a model version."""
    return {"model": name, "version": str(version)}


class Severities(logging.Filter):
    """Which severities are logged: first from one upwards, later as `set` says. Errors include what is worse."""

    def __init__(self, level: str) -> None:
        super().__init__()
        level = level.upper()
        least = logging.getLevelNamesMapping().get(level)
        if least is None:
            raise ValueError(f"Unknown level: {level!r}")
        self._enabled = {name: number >= least for name, number in _SEVERITIES.items()}

    def __repr__(self) -> str:
        return f"<Severities {', '.join(name for name, enabled in self._enabled.items() if enabled) or 'none'}>"

    def enabled(self, severity: str) -> bool:
        """Whether `debug`, `info`, `warning` or `error` is logged."""
        return self._enabled[severity]

    def all(self) -> dict[str, bool]:
        """Whether each is logged, by its name, as `set` takes them."""
        return dict(self._enabled)

    def set(self, changes: Mapping[str, bool]) -> None:
        """Switches severities on and off, for all of the process."""
        self._enabled.update(changes)
        enabled = [number for name, number in _SEVERITIES.items() if self._enabled[name]]
        logging.getLogger().setLevel(min(enabled, default=logging.CRITICAL + 1))

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        number = record.levelno
        name = next((name for name, least in reversed(_SEVERITIES.items()) if number >= least), "debug")
        return self._enabled[name]


def configure(level: str, stream: TextIO | None = None, *, as_json: bool = False) -> Severities:
    """Sends all logging of the process to `stream` (standard error) from `level` upwards, replacing what was set.

    level: a name that logging knows, in any case. as_json: an object in each line, for programs. Raises ValueError for
    any other level. Returns what changes it later.
    """
    severities = Severities(level)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else LineFormatter())
    handler.addFilter(severities)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # The HTTP server's own "started" and "finished" say nothing that ours do not.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    return severities


class LineFormatter(logging.Formatter):
    """UTC time in ISO 8601, level, logger, message, then `key=value` fields; a traceback is the field `traceback`.

    The result is one line whatever the message or a value contains: a value with spaces, quotes, equals signs or
    anything unprintable is written as a JSON string, and so are unprintable characters of the message.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        message = record.getMessage()
        if not message.isprintable():
            message = json.dumps(message)[1:-1]
        fields = (f"{key}={_value(value)}" for key, value in _fields(record, self).items())
        return " ".join([_when(record), record.levelname, record.name, message, *fields])


class JsonFormatter(logging.Formatter):
    """The same as a JSON object: `time`, `level`, `logger`, `message`, and the fields, numbers and booleans as such."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        said = {"time": _when(record), "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        return json.dumps({**said, **_fields(record, self), **said}, default=str)


def _when(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord, formatter: logging.Formatter) -> dict[str, Any]:
    """What the call has passed as `extra`, and where it went wrong."""
    fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    if record.exc_info:
        fields["traceback"] = formatter.formatException(record.exc_info)
    if record.stack_info:
        fields["stack"] = record.stack_info
    return fields


def _value(value: Any) -> str:  # noqa: ANN401 - `extra` takes anything
    text = str(value)
    plain = text.isprintable() and not set(text) & set(' "=\\')
    return text if plain and text else json.dumps(text)
