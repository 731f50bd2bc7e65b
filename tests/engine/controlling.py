"""An engine under control, and the repository that it follows."""

import asyncio

import numpy as np
from engine.test_lifecycle import FAKE, World

from headrace.engine.control import ModelControl
from headrace.testing.client import infer_request
from headrace.testing.loop import run_virtual

ROW = np.array([[1, 2]], np.float32)
BROKEN = 'backend_options = {refuse = "no such operator"}\n'


class Repository:
    def __init__(self, root):
        self.root = root

    def write(self, name, toml="", versions=(1,)):
        for version in versions:
            (self.root / name / str(version)).mkdir(parents=True, exist_ok=True)
            (self.root / name / str(version) / "model.fake").touch()
        (self.root / name / "model.toml").write_text(FAKE + toml)

    def remove(self, name, *versions):
        for path in sorted((self.root / name).rglob("*"), reverse=True):
            if not versions or str(path.relative_to(self.root / name)).split("/")[0] in map(str, versions):
                path.rmdir() if path.is_dir() else path.unlink()
        if not versions:
            (self.root / name).rmdir()


class Control(World):
    """An engine with its control."""

    def __init__(self, repository, mode, *startup):
        super().__init__()
        self.control = ModelControl(repository.root, mode, self.engine, startup)

    async def serves(self, name="a", version=""):
        call = self.client.send(infer_request(name, {"x": ROW}, version=version))
        await asyncio.sleep(1)
        if call.error is not None:
            raise call.error
        return call.response.model_version


def virtual(scenario):
    """Runs an async test in virtual time."""

    def test(repository):
        run_virtual(scenario(repository))

    test.__name__ = scenario.__name__
    return test
