"""What the server's operator has decided for all models that TensorRT runs, whatever their own files say."""

from __future__ import annotations

from headrace.config import TensorRtSettings

_settings = TensorRtSettings()


def use(settings: TensorRtSettings) -> None:
    """What holds from now on, for models that are loaded."""
    global _settings
    _settings = settings


def settings() -> TensorRtSettings:
    """What holds."""
    return _settings
