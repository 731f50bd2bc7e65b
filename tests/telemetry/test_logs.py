import io
import json
import logging
from pathlib import Path

import pytest

from headrace.telemetry.logs import LineFormatter, configure


@pytest.fixture
def log():
    """A configured stream; what was configured before comes back."""
    root, http = logging.getLogger(), logging.getLogger("uvicorn")
    handlers, levels = root.handlers[:], (root.level, http.level)
    root.handlers[:] = []
    stream = io.StringIO()
    configure("info", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    http.setLevel(levels[1])


def test_a_line_is_time_level_logger_message_fields(log):
    record = logging.makeLogRecord(
        {"name": "headrace.x", "levelno": 20, "levelname": "INFO", "msg": "model %s is ready", "args": ("m",),
         "created": 1_772_366_400.25, "version": "1", "seconds": 0.5}
    )  # fmt: skip
    logging.getLogger().handle(record)
    assert log.getvalue() == "2026-03-01T12:00:00.250000Z INFO headrace.x model m is ready version=1 seconds=0.5\n"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain/path-1.2", "plain/path-1.2"),
        ("", '""'),
        ("two words", '"two words"'),
        ('say "x"', '"say \\"x\\""'),
        ("a=b", '"a=b"'),
        ("a\\b", '"a\\\\b"'),
        ("line\nfeed", '"line\\nfeed"'),
        ("\u2028", '"\\u2028"'),
        ("\x1b[2J", '"\\u001b[2J"'),
        ("Ärger", "Ärger"),
        (None, "None"),
        (7, "7"),
    ],
)
def test_a_value_is_quoted_when_it_must_be(log, value, written):
    logging.getLogger("x").warning("event", extra={"key": value})
    assert log.getvalue().endswith(f" WARNING x event key={written}\n")


def test_a_message_cannot_forge_a_line(log):
    logging.getLogger("x").warning("model %s", "a\n2026-03-01T12:00:00Z ERROR forged\r\x1b")
    assert len(log.getvalue().splitlines()) == 1
    assert log.getvalue().endswith("model a\\n2026-03-01T12:00:00Z ERROR forged\\r\\u001b\n")


def test_a_traceback_is_a_field_of_the_one_line(log):
    try:
        raise ValueError("deep")
    except ValueError:
        logging.getLogger("x").exception("failed", stack_info=True)
    (line,) = log.getvalue().splitlines()
    assert ' ERROR x failed traceback="Traceback (most recent call last):\\n' in line
    assert "ValueError: deep" in line
    assert ' stack="Stack (most recent call last):\\n' in line


def test_the_level_holds_and_the_http_servers_chatter_is_off(log):
    logging.getLogger("x").debug("quiet")
    logging.getLogger("uvicorn.error").info("Started server process")
    assert log.getvalue() == ""
    configure("DEBUG", log)
    logging.getLogger("x").debug("heard")
    assert log.getvalue().count("heard") == 1  # the earlier handler is gone


def test_an_unknown_level_is_an_error(log):
    with pytest.raises(ValueError, match="LOUD"):
        configure("loud", log)


def test_standard_error_is_the_default(log, capsys):
    configure("info")
    logging.getLogger("x").info("hello")
    assert capsys.readouterr().err.endswith("INFO x hello\n")


def test_uvicorns_coloured_copy_of_the_message_is_no_field():
    record = logging.makeLogRecord({"name": "uvicorn.error", "levelname": "INFO", "msg": "m", "color_message": "x"})
    assert LineFormatter().format(record).endswith("INFO uvicorn.error m")


def test_json_is_an_object_a_line(log):
    configure("info", log, as_json=True)
    try:
        raise ValueError("x")
    except ValueError:
        logging.getLogger("headrace.x").exception(
            "model %s failed\n", "m", extra={"trace_id": "ab", "count": 3, "path": Path("/a"), "level": "lies"}
        )
    (line,) = log.getvalue().splitlines()
    said = json.loads(line)
    assert said.pop("time").endswith("Z")
    assert said.pop("traceback").endswith("ValueError: x")
    assert said == {
        "level": "ERROR", "logger": "headrace.x", "message": "model m failed\n", "trace_id": "ab", "count": 3,
        "path": "/a",
    }  # fmt: skip
