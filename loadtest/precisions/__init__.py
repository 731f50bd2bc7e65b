"""The models of models/ in lower precisions: made by `headrace quantize`, measured, and told in the models' cards."""

import headrace  # noqa: F401 - before ONNX Runtime, which is told there not to report to its makers
