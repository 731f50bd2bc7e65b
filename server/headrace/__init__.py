"""Headrace: a real-time inference server that speaks the Open Inference Protocol.

To import it keeps ONNX Runtime, which reads the variable when it is imported itself, from reporting to Microsoft: since
1.29 its packages for Linux send what processor, memory, system, program and models they run on, under an identifier
that they keep in the user's cache. Whoever wants that sets ORT_DISABLE_TELEMETRY to 0.
"""

import os
from importlib.metadata import PackageNotFoundError, version

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    __version__ = version("headrace")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"
