"""Has the CUDA backend run batches of a model whose processor's part computes determinants; prints those, as JSON.

Arguments: the version's directory. Of the CUDA provider itself, on the stubs, nothing is computed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from headrace.backends.onnxruntime.cuda import OnnxRuntimeCudaBackend
from headrace.testing.device import FakeDevice


def main() -> None:
    device = FakeDevice()
    device.kind = "cuda"
    model = OnnxRuntimeCudaBackend(open_device=lambda index: device).load(
        Path(sys.argv[1]), max_batch=4, threads=1, options={"max_cpu_nodes": 1.0}
    )
    instance = model.make_instance(0)
    found = []
    for number in (1, 2, 3):
        x = np.eye(2, dtype=np.float32)[None] * number
        found += instance.run([[x.tobytes()]], [x.shape], [0])[0].tolist()
    instance.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
