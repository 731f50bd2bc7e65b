import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def script():
    """Imports a script of the project by its path, which is no package's."""

    def load(path):
        spec = spec_from_file_location("script_" + path.removesuffix(".py").replace("/", "_"), ROOT / path)
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script's main() with these arguments and gives the lines that it prints."""

    def main(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, arguments)])
        module.main()
        return capsys.readouterr().out.splitlines()

    return main
