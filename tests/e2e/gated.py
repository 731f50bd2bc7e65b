"""Models that run for as long as a test says: what would otherwise be a matter of the machine's speed.

A request that holds the value `HELD` keeps its model busy until the test lets it go. The two meet at a named pipe in
the version's directory: the model opens it to read, which waits for somebody who opens it to write, and reads until
that end is closed.
"""

import os
from contextlib import suppress
from pathlib import Path

from headrace.messages import Signature, TensorSpec
from headrace.testing.backend import FakeModel

HELD = 1e6
GATE = "gate"


class GatedBackend:
    """x FP32 [N,1] -> y = x, as soon as it may: `backend = "e2e.gated:GatedBackend"`."""

    def load(self, path, *, max_batch, threads, options):
        def compute(inputs):
            if (inputs[0] == HELD).any():
                with (path / GATE).open("rb") as gate:
                    gate.read()
            return inputs

        spec = TensorSpec("x", "FP32", (1,)), TensorSpec("y", "FP32", (1,))
        return FakeModel(Signature(spec[:1], spec[1:], max_batch), compute)


class SlowToLoad:
    """Is loaded when somebody writes to the pipe."""

    def load(self, path, *, max_batch, threads, options):
        with (path / GATE).open("rb") as gate:
            gate.read()
        return GatedBackend().load(path, max_batch=max_batch, threads=threads, options=options)


def write_gated(root, name, toml="", max_batch=1, backend="GatedBackend"):
    """Puts such a model into the repository `root`."""
    directory = root / name / "1"
    directory.mkdir(parents=True)
    os.mkfifo(directory / GATE)
    text = f'max_batch = {max_batch}\nbackend = "e2e.gated:{backend}"\n{toml}'
    (root / name / "model.toml").write_text(text)


_held: dict[Path, int] = {}
"""The gates at which a run was seen to wait, with the end that keeps it there."""


def at_work(root, model):
    """Whether a run of the model waits at its gate. Once it does, it is held there."""
    gate = root / model / "1" / GATE
    if gate not in _held:
        with suppress(OSError):  # nobody waits there yet
            _held[gate] = os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
    return gate in _held


def let_go(root, model):
    """Ends the run that is held, or will be."""
    gate = root / model / "1" / GATE
    if (end := _held.pop(gate, None)) is None:
        end = os.open(gate, os.O_WRONLY)
    os.close(end)


def let_all_go(root):
    """Ends whatever a test that has failed may have left."""
    for gate in root.glob(f"*/1/{GATE}"):
        if at_work(root, gate.parts[-3]):
            os.close(_held.pop(gate))
