"""Has the CUDA backend load a model by onnxruntime-gpu on the stubs; prints how many nodes each provider has, as JSON.

Arguments: the version's directory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from headrace.backends.onnxruntime.cuda import OnnxRuntimeCudaBackend
from headrace.testing.device import FakeDevice


def main() -> None:
    device = FakeDevice()
    device.kind = "cuda"
    model = OnnxRuntimeCudaBackend(open_device=lambda index: device).load(
        Path(sys.argv[1]), max_batch=2, threads=1, options={}
    )
    model.make_instance(0).close()
    print(json.dumps(dict(model.nodes)))


if __name__ == "__main__":
    main()
