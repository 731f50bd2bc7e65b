"""How a model is to be served, whichever file says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.repository.model_config import CONFIG_FILE, ModelConfig, load_model_config
from headrace.repository.triton.text import read_pbtxt
from headrace.repository.triton.translate import translate

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.rpc import model_config_pb2 as mc

PBTXT_FILE = "config.pbtxt"
WARMUP_DIRECTORY = "warmup"
"""Where in a model's directory the files are that warm-up requests name."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings, and the file that they are from ("" for defaults).

    stated: what Triton's file says, for clients that ask. warnings: what of it has no effect, or another.
    """

    settings: ModelConfig
    file: str = ""
    stated: mc.ModelConfig | None = None
    warnings: tuple[str, ...] = ()

    @property
    def named_files(self) -> list[str]:
        """The files beside the versions that the settings name, within the model's directory."""
        settings = self.settings
        labels = [output.labels for output in settings.outputs.values() if output.labels]
        data = [given.file for sample in settings.warmup_data for given in sample.inputs.values() if given.file]
        states = settings.sequence.state if settings.sequence else ()
        initial = [state.initial for state in states if state.initial != "zero"]
        return [*labels, *(f"{WARMUP_DIRECTORY}/{name}" for name in data), *initial]


def read_configuration(directory: Path) -> Configuration:
    """Of the model in `directory`: model.toml, else config.pbtxt, else the defaults. Raises ConfigError, OSError."""
    toml, pbtxt = directory / CONFIG_FILE, directory / PBTXT_FILE
    if _is_meant(toml):
        shadowed = (f"{PBTXT_FILE} is not read: there is a {CONFIG_FILE}",) if pbtxt.exists() else ()
        return Configuration(load_model_config(toml), CONFIG_FILE, None, shadowed)
    if _is_meant(pbtxt):
        return read_triton_configuration(directory)
    return Configuration(ModelConfig())


def _is_meant(file: Path) -> bool:
    """Whether it is there, or was meant to be: of a link that leads nowhere, the defaults are not what was wanted."""
    return file.exists() or file.is_symlink()


def read_triton_configuration(directory: Path) -> Configuration:
    """What the config.pbtxt of the model in `directory` says. Raises ConfigError, OSError."""
    path = directory / PBTXT_FILE
    message = read_pbtxt(path)
    translation = translate(message, directory.name, str(path), _files_of_a_version(directory))
    warnings = tuple(f"{PBTXT_FILE}: {warning}" for warning in translation.warnings)
    return Configuration(translation.config, PBTXT_FILE, message, warnings)


def _files_of_a_version(directory: Path) -> set[str]:
    version = next((entry for entry in sorted(directory.iterdir()) if entry.name.isdecimal() and entry.is_dir()), None)
    return set() if version is None else {entry.name for entry in version.iterdir()}
