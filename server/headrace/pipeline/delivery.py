"""Where outputs go that a reply does not simply carry: the classification and shared memory extensions.

Source: Triton's protocol extensions for classification and system shared memory.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.datatypes import DATATYPES
from headrace.errors import InvalidRequest, RegionTooSmall
from headrace.messages import ReplyOutput, TensorSpec
from headrace.pipeline import bytes_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.messages import Buffer, Place, Region, ReplyWriter, RequestedOutput, SharedMemory

    Shape = tuple[int, ...]

_NO_CLASSES = frozenset({"BOOL", "BYTES"})


def described(output: RequestedOutput, spec: TensorSpec) -> ReplyOutput:
    """How a reply states a requested output; classes are BYTES. Raises InvalidRequest for values without an order."""
    if not output.classes:
        return ReplyOutput(spec, output.region, output.binary)
    if spec.datatype in _NO_CLASSES:
        raise InvalidRequest(
            f"classification of output '{spec.name}' is not possible: its datatype is {spec.datatype}, expected numbers"
        )
    return ReplyOutput(TensorSpec(spec.name, "BYTES", (-1,)), None, output.binary)


class Delivery:
    """A `messages.ReplyWriter` that turns outputs into classes, or writes them to shared memory, before `inner`.

    requested, specs: what was asked for, and the model's outputs in that order. inner: writes the reply with the
    outputs as `described`; of one that went to shared memory it gets no bytes. labels: of classes, by output.
    """

    def __init__(
        self,
        requested: Sequence[RequestedOutput],
        specs: Sequence[TensorSpec],
        inner: ReplyWriter,
        memory: SharedMemory,
        labels: Mapping[str, Sequence[str]],
        *,
        batched: bool,
    ) -> None:
        self._outputs = list(zip(requested, specs, strict=True))
        self._inner = inner
        self._memory = memory
        self._labels = labels
        self._batched = batched
        self._places: dict[str, Place] = {}

    def pinned(self) -> Delivery:
        """The same for one request: its outputs go where the names of its regions lead now. Raises as `encode`.

        Nobody may be given what somebody else has asked for because a name has come to mean another region meanwhile.
        """
        made = copy(self)
        made._places = {
            output.name: self._memory.pin(output.region) for output, _ in self._outputs if output.region is not None
        }
        return made

    def encode(self, id_field: bytes, raw: Sequence[Buffer], shapes: tuple[Shape, ...], parameters: bytes = b"") -> Any:  # noqa: ANN401
        """See `messages.ReplyWriter`. Raises RegionTooSmall and InvalidRequest. With regions, of `pinned` alone."""
        sent: list[Buffer] = []
        sent_shapes: list[Shape] = []
        for (output, spec), data, shape in zip(self._outputs, raw, shapes, strict=True):
            if output.classes:
                rows = shape[0] if self._batched else 1
                labels = self._labels.get(spec.name, ())
                elements = classes(_numbers(data, spec).reshape(rows, -1), output.classes, labels)
                data = bytes_tensor.encode(elements)
                shape = elements.shape if self._batched else elements.shape[1:]
            elif output.region is not None:
                self._write(output.region, data, spec.name)
                data = b""
            sent.append(data)
            sent_shapes.append(shape)
        return self._inner.encode(id_field, sent, tuple(sent_shapes), parameters)

    def opening(self, shapes: tuple[Shape, ...]) -> None:
        """See `messages.ReplyWriter`: there is none, every reply is made."""

    def _write(self, region: Region, data: Buffer, name: str) -> None:
        if region.size < len(data):
            raise RegionTooSmall(
                f"shared memory size specified with the request for output '{name}' ({region.size} bytes) should be "
                f"at least {len(data)} bytes to hold the results"
            )
        self._places[name].write(data)


def classes(values: np.ndarray[Any, Any], count: int, labels: Sequence[str]) -> np.ndarray[Any, Any]:
    """The `count` greatest of each row as `value:index` or `value:index:label`, the greatest first, ties by index.

    values: [rows, classes], numbers. Returns [rows, min(count, classes)] of bytes. NaN counts as the least.
    """
    most = min(count, values.shape[1])
    comparable = np.where(np.isnan(values), -np.inf, values) if values.dtype.kind == "f" else values
    # the greatest first and, among equals, the first: a stable sort of the reversed row, read from its end
    order = values.shape[1] - 1 - np.argsort(comparable[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :most]
    found = np.take_along_axis(values, order, axis=1)
    result = np.empty(order.shape, object)
    for at, index in np.ndenumerate(order):
        value = found[at]
        text = f"{value:f}" if values.dtype.kind == "f" else f"{value}"
        label = f":{labels[index]}" if index < len(labels) else ""
        result[at] = f"{text}:{index}{label}".encode()
    return result


def _numbers(data: Buffer, spec: TensorSpec) -> np.ndarray[Any, Any]:
    array = np.frombuffer(data, DATATYPES[spec.datatype].numpy)
    if spec.datatype == "BF16":  # the upper half of an FP32
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array
