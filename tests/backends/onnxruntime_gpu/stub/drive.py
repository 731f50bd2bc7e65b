"""Has the CUDA backend load a model and run it by onnxruntime-gpu on the stubs; prints what was called, as JSON.

Arguments: the version's directory, the backend's options as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from headrace.backends.onnxruntime.cuda import OnnxRuntimeCudaBackend
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

    def capture(self, work):
        before.extend(called())
        try:
            return record(self, work)
        finally:
            recorded.append(called())

    FakeStream.capture = capture
    model = backend.load(Path(sys.argv[1]), max_batch=4, threads=1, options=json.loads(sys.argv[2]))
    instances = [model.make_instance(index) for index in range(2)]
    facts = {"load": [*before, *called()], "nodes": dict(model.nodes)}
    facts |= {"graphs": len(device.graphs), "recorded": recorded}
    facts["options"] = instances[0]._executor.session.get_provider_options()["CUDAExecutionProvider"]
    with ThreadPoolExecutor(1) as other:  # as the engine's threads are not those that load
        for instance in instances:
            other.submit(instance.run, [[bytes(12)]], [(1, 3)], [0]).result()
    facts["run"] = called()
    for instance in instances:
        instance.close()
    facts["close"] = called()
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
