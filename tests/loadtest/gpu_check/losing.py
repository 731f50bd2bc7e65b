"""Backends of a server for the check of a lost GPU: the file named by BROKEN stands for a fault of the device."""

import os
from pathlib import Path

from gpu_check.faulting import FaultingBackend
from headrace.backends.base import InstanceLost
from headrace.backends.onnxruntime.cpu import OnnxRuntimeBackend
from headrace.testing.device import FakeDevice

BROKEN = Path(os.environ["BROKEN"])


class _Instance:
    def __init__(self, instance):
        self._instance = instance

    def run(self, inputs, shapes, outputs):
        if BROKEN.exists():
            raise InstanceLost("the device has faulted", with_others=True)
        return self._instance.run(inputs, shapes, outputs)

    def close(self):
        self._instance.close()


class _Model:
    inline = False

    def __init__(self, model):
        self._model = model
        self.signature, self.platform = model.signature, model.platform
        self.executors_per_instance = model.executors_per_instance

    def make_instance(self, index):
        if BROKEN.exists():
            raise InstanceLost("the device has faulted")
        return _Instance(self._model.make_instance(index))


class LosingBackend:
    """The processor, until it is broken."""

    def load(self, path, *, max_batch, threads, options):
        return _Model(OnnxRuntimeBackend().load(path, max_batch=max_batch, threads=threads, options={}))


class BreakingBackend(FaultingBackend):
    def __init__(self):
        super().__init__(lambda index: FakeDevice(), lambda stream: BROKEN.touch())


class HarmlessBackend(FaultingBackend):
    def __init__(self):
        super().__init__(lambda index: FakeDevice(), lambda stream: None)
