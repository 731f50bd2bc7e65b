"""From output rows to the bytes of a ModelInferResponse, most of which are the same for all requests of one look.

Field numbers: model_name=1, model_version=2, id=3, parameters=4, outputs=5, raw_output_contents=6; an output tensor
has name=1, datatype=2, shape=3 (packed), parameters=4; a parameter is a map entry key=1, value=2 with int64_param=2,
string_param=3.
Outputs are always raw, one entry for each output, in order: clients index that list without looking at its length.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from headrace.datatypes import DATATYPES
from headrace.pipeline.wire import length_prefixed, varint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.messages import Buffer, Region, ReplyOutput

RAW_OUTPUT_TAG = b"\x32"
_LARGE = 32 << 10
"""Bytes of an output that may lie anywhere: joined with what stands before them, they are copied once."""


def encode_parameters(parameters: Mapping[str, int | str]) -> bytes:
    """Response parameters: integers as int64_param, text as string_param."""
    out = b""
    for key, value in parameters.items():
        param = length_prefixed(3, value.encode()) if isinstance(value, str) else varint(2 << 3) + varint(value)
        out += length_prefixed(4, length_prefixed(1, key.encode()) + length_prefixed(2, param))
    return out


def region_parameters(region: Region, datatype: str, shape: tuple[int, ...]) -> dict[str, int | str]:
    """What a reply says of an output that was written to shared memory; of BYTES, the size that it had at most."""
    itemsize = DATATYPES[datatype].itemsize
    return {
        "shared_memory_region": region.name,
        "shared_memory_byte_size": itemsize * prod(shape) if itemsize else region.size,
        "shared_memory_offset": region.offset,
    }


class ReplyEncoder:
    """Writes replies of one model version with one list of outputs.

    name, version: as the reply states them. outputs: what the reply holds, in order.
    """

    __slots__ = ("_head", "_meta", "_outputs")

    def __init__(self, name: str, version: str, outputs: Sequence[ReplyOutput]) -> None:
        self._head = length_prefixed(1, name.encode()) + length_prefixed(2, version.encode())
        self._outputs = tuple(outputs)
        self._meta: dict[tuple[tuple[int, ...], ...], bytes] = {}

    def encode(
        self,
        id_field: bytes,
        raw: Sequence[Buffer],
        shapes: tuple[tuple[int, ...], ...],
        parameters: bytes = b"",
    ) -> bytes:
        """The serialised reply. raw: each output's bytes; shapes: with batch dimension; id_field: field 3 or empty."""
        parts: list[Buffer] = [self._head, id_field, parameters, self._described(shapes)]
        for one in raw:
            parts.append(RAW_OUTPUT_TAG + varint(len(one)))
            parts.append(one)
        return b"".join(parts)

    def opening(self, shapes: tuple[tuple[int, ...], ...]) -> bytes | None:
        """All that `encode` writes before the bytes of the only output, without id and parameters.

        None: there are several outputs, or the size of this one is not told by its shape, or is large.
        """
        if len(self._outputs) != 1:
            return None
        itemsize = DATATYPES[self._outputs[0].spec.datatype].itemsize
        size = itemsize * prod(shapes[0])
        if not itemsize or size >= _LARGE:
            return None
        return self._head + self._described(shapes) + RAW_OUTPUT_TAG + varint(size)

    def _described(self, shapes: tuple[tuple[int, ...], ...]) -> bytes:
        meta = self._meta.get(shapes)
        return self._describe(shapes) if meta is None else meta

    def _describe(self, shapes: tuple[tuple[int, ...], ...]) -> bytes:
        meta = b""
        for output, shape in zip(self._outputs, shapes, strict=True):
            spec = output.spec
            packed = b"".join(map(varint, shape))
            tensor = length_prefixed(1, spec.name.encode()) + length_prefixed(2, spec.datatype.encode())
            tensor += length_prefixed(3, packed) if packed else b""
            if output.region is not None:
                tensor += encode_parameters(region_parameters(output.region, spec.datatype, shape))
            meta += length_prefixed(5, tensor)
        if len(self._meta) >= 256:  # variable dimensions: keep what is recent, not all there ever was
            self._meta.clear()
        self._meta[shapes] = meta
        return meta
