"""What can only be seen on a GPU: checks and measurements in one bounded run, kept as a dated file."""

import headrace  # noqa: F401 - before ONNX Runtime, which is told there not to report to its makers
