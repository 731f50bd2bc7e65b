import io
import logging

import pytest

from headrace.errors import InvalidRequest, ModelNotFound
from headrace.repository.catalog import Catalog
from headrace.rpc import inference_pb2 as pb
from headrace.telemetry import logs
from headrace.telemetry.traces import Tracer
from headrace.transport.runtime_settings import RuntimeSettings


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def stream():
    return io.StringIO()


@pytest.fixture
def runtime(stream):
    catalog = Catalog()
    catalog.ready("m", 1, object())
    return RuntimeSettings(logs.configure("info", stream), Tracer(), catalog)


def log(runtime, **settings):
    request = pb.LogSettingsRequest()
    for key, value in settings.items():
        kind = {bool: "bool_param", int: "uint32_param", str: "string_param"}[type(value)]
        setattr(request.settings[key], kind, value)
    answer = runtime.log(request).settings
    return {key: getattr(setting, setting.WhichOneof("parameter_choice")) for key, setting in answer.items()}


def trace(runtime, model="", **settings):
    request = pb.TraceSettingRequest(model_name=model)
    for key, value in settings.items():
        request.settings[key].value.extend(value)
    return {key: list(setting.value) for key, setting in runtime.trace(request).settings.items()}


def said(stream, name="headrace.test"):
    stream.truncate(0)
    stream.seek(0)
    logger = logging.getLogger(name)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logger.log(level, "said")
    return [line.split()[1] for line in stream.getvalue().splitlines()]


def test_asking_changes_nothing(runtime, stream):
    assert log(runtime) == {
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_file": "",
        "log_format": "ISO8601",
    }
    assert said(stream) == ["INFO", "WARNING", "ERROR", "CRITICAL"]


def test_severities_are_switched_one_by_one(runtime, stream):
    assert log(runtime, log_info=False)["log_info"] is False
    assert said(stream) == ["WARNING", "ERROR", "CRITICAL"]
    assert log(runtime, log_verbose_level=3, log_warning=False)["log_verbose_level"] == 1
    assert said(stream) == ["DEBUG", "ERROR", "CRITICAL"]
    log(runtime, log_verbose_level=0, log_error=False)
    assert said(stream) == []
    log(runtime, log_info=True)
    assert said(stream) == ["INFO"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"log_level": 1}, "unknown log setting 'log_level', expected one of log_info, log_warning"),
        ({"log_info": "yes"}, "log setting 'log_info' is 'yes', expected a boolean"),
        ({"log_verbose_level": True}, "log setting 'log_verbose_level' is True, expected a number"),
        ({"log_file": "/tmp/x"}, "log setting 'log_file' is '/tmp/x', expected '': it cannot be changed"),
        ({"log_format": "default"}, "expected 'ISO8601': it cannot be changed"),
    ],
)
def test_what_is_wrong_changes_nothing(runtime, settings, text):
    with pytest.raises(InvalidRequest) as caught:
        log(runtime, log_error=False, **settings)
    assert text in str(caught.value)
    assert log(runtime)["log_error"] is True


def test_what_is_as_it_is_may_be_said(runtime):
    assert log(runtime, log_file="", log_format="ISO8601")["log_format"] == "ISO8601"


def test_traces(runtime):
    assert trace(runtime) == {
        "trace_level": ["OFF"],
        "trace_rate": ["1000"],
        "trace_count": ["-1"],
        "log_frequency": ["0"],
        "trace_file": [""],
        "trace_mode": ["log"],
    }
    assert trace(runtime, "m", trace_level=["TIMESTAMPS"])["trace_level"] == ["TIMESTAMPS"]
    assert trace(runtime)["trace_level"] == ["OFF"]
    assert trace(runtime, "m", trace_level=[])["trace_level"] == ["OFF"]
    with pytest.raises(ModelNotFound, match="Request for unknown model: 'n' is not found"):
        trace(runtime, "n")
    with pytest.raises(InvalidRequest):
        trace(runtime, trace_rate=["0"])
