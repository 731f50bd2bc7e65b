"""Requests for a template, and what is said of those that are refused."""

from types import SimpleNamespace

import pytest

from headrace.engine.shared_memory import NoSharedMemory
from headrace.errors import InvalidRequest
from headrace.messages import InferMessage, InputTensor, RequestedOutput, Signature, TensorSpec
from headrace.pipeline.decode import ModelView, build_template
from headrace.testing.requests import FakeOwner

NOTE = (
    " NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape."
)
OWNER = FakeOwner()
X = TensorSpec("x", "FP32", (4,))
TWO = Signature((X, TensorSpec("n", "INT64", (-1,))), (TensorSpec("y", "FP32", (2,)), TensorSpec("z", "INT64", ())), 8)
ONE = Signature((X,), TWO.outputs, 8)
UNBATCHED = Signature((TensorSpec("x", "FP32", (-1, 4)),), TWO.outputs, 0)


def view(signature=ONE, **more):
    return ModelView("m", "1", signature, more.pop("rules", {}), OWNER, **more)


def message(*inputs, id="", parameters=None, outputs=()):  # noqa: A002
    requested = tuple(RequestedOutput(name) if isinstance(name, str) else name for name in outputs)
    return InferMessage("m", "", id, parameters or {}, inputs, requested)


def x(*shape, datatype="FP32", contents=None, region=None):
    return InputTensor("x", datatype, shape or (1, 4), contents, region)


def n(*shape, region=None):
    return InputTensor("n", "INT64", shape, None, region)


def build(description, model=None, memory=None):
    return build_template(description, model or view(), lambda *described: described, memory or NoSharedMemory())


def refusal(description, model=None):
    with pytest.raises(InvalidRequest) as caught:
        build(description, model)
    return str(caught.value)


def asking(*parts):
    return [SimpleNamespace(parts=own) for own in parts]


def bind_refusal(template, *raw, id_field=b""):
    with pytest.raises(InvalidRequest) as caught:
        template.bind(raw, id_field)
    return str(caught.value)
