"""The RPCs that show and change how the server logs and traces: Triton's logging and trace extensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.errors import InvalidRequest, ModelNotFound
from headrace.rpc import inference_pb2 as pb

if TYPE_CHECKING:
    from headrace.repository.catalog import Catalog
    from headrace.telemetry.logs import Severities
    from headrace.telemetry.traces import Tracer

_FIXED = {"log_file": "", "log_format": "ISO8601"}
"""What is as it is: the log goes to standard error, with times in ISO 8601."""
_SWITCHES = {"log_info": "info", "log_warning": "warning", "log_error": "error"}


class RuntimeSettings:
    """Shows and changes. severities: of what is logged. tracer: of the requests. catalog: of the models there are."""

    def __init__(self, severities: Severities, tracer: Tracer, catalog: Catalog[Any]) -> None:
        self._severities = severities
        self._tracer = tracer
        self._catalog = catalog

    def log(self, request: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
        """Changes what is named, all or nothing, and returns all. Raises InvalidRequest."""
        changes: dict[str, bool] = {}
        for key, setting in request.settings.items():
            kind = setting.WhichOneof("parameter_choice")
            value: Any = getattr(setting, kind) if kind else None
            if key in _SWITCHES and kind == "bool_param":
                changes[_SWITCHES[key]] = value
            elif key == "log_verbose_level" and kind == "uint32_param":
                changes["debug"] = value > 0
            elif key in _FIXED and kind == "string_param":
                if value != _FIXED[key]:
                    raise InvalidRequest(
                        f"log setting '{key}' is '{value}', expected '{_FIXED[key]}': it cannot be changed"
                    )
            else:
                raise _wrong(key, value)
        self._severities.set(changes)
        return self._log_settings()

    def trace(self, request: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
        """Changes what is named, all or nothing, and returns all. Raises InvalidRequest, ModelNotFound."""
        name = request.model_name
        if name and name not in self._catalog.names():
            raise ModelNotFound(f"Request for unknown model: '{name}' is not found")
        changes = {key: list(setting.value) for key, setting in request.settings.items()}
        settings = self._tracer.update(changes, name)
        response = pb.TraceSettingResponse()
        for key, values in settings.shown().items():
            response.settings[key].value.extend(values)
        return response

    def _log_settings(self) -> pb.LogSettingsResponse:
        response = pb.LogSettingsResponse()
        for key, severity in _SWITCHES.items():
            response.settings[key].bool_param = self._severities.enabled(severity)
        response.settings["log_verbose_level"].uint32_param = int(self._severities.enabled("debug"))
        for key, text in _FIXED.items():
            response.settings[key].string_param = text
        return response


def _wrong(key: str, value: object) -> InvalidRequest:
    types = dict.fromkeys(_SWITCHES, "a boolean") | {"log_verbose_level": "a number"} | dict.fromkeys(_FIXED, "text")
    if key not in types:
        return InvalidRequest(f"unknown log setting '{key}', expected one of {', '.join(types)}")
    return InvalidRequest(f"log setting '{key}' is {value!r}, expected {types[key]}")
