from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="session")
def script():
    """Imports a script beside a model, which is no package's."""

    def load(path):
        spec = spec_from_file_location("model_" + path.removesuffix(".py").replace("/", "_"), MODELS / path)
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
