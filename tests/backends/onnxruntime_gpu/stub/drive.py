"""Has the CUDA backend load a model and run it by onnxruntime-gpu on the stubs; prints what was called, as JSON.

Arguments: the version's directory, the backend's options as JSON, and forms of rows that the model is told of, if any.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

from headrace.backends.onnxruntime.cuda import OnnxRuntimeCudaBackend
from headrace.datatypes import DATATYPES
from headrace.testing.device import FakeDevice, FakeStream


def called() -> list[str]:
    """What was called since this was asked last."""
    trace = Path(os.environ["STUB_TRACE"])
    lines = trace.read_text().splitlines() if trace.exists() else []
    trace.write_text("")
    return lines


def main() -> None:
    device = FakeDevice()
    device.kind = "cuda"
    backend = OnnxRuntimeCudaBackend(open_device=lambda index: device)
    record = FakeStream.capture
    recorded, before = [], []

    def capture(self, work, **how):
        before.extend(called())
        try:
            return record(self, work, **how)
        finally:
            recorded.append(called())

    FakeStream.capture = capture
    model = backend.load(Path(sys.argv[1]), max_batch=4, threads=1, options=json.loads(sys.argv[2]))
    forms = json.loads(sys.argv[3]) or [[[3]]]
    model.take_forms([[tuple(dims) for dims in form] for form in forms])
    shapes = [(1, *dims) for dims in forms[0]]
    specs = zip(model.signature.inputs, shapes, strict=True)
    row = [[bytes(DATATYPES[spec.datatype].itemsize * prod(shape))] for spec, shape in specs]
    instances = [model.make_instance(index) for index in range(2)]
    facts = {"load": [*before, *called()], "nodes": dict(model.nodes)}
    facts |= {"graphs": len(device.graphs), "recorded": recorded}
    facts["options"] = instances[0]._executor.session.get_provider_options()["CUDAExecutionProvider"]
    with ThreadPoolExecutor(1) as other:  # as the engine's threads are not those that load
        for instance in instances:
            other.submit(instance.run, row, shapes, [0]).result()
    facts["run"] = called()
    for instance in instances:
        instance.close()
    facts["close"] = called()
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
