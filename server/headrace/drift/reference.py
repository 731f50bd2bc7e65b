"""A model version's reference: for each tensor its plan, and what data that is as it should be looks like by it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from headrace.drift.errors import DriftError
from headrace.drift.packing import read_bounded, write_atomically
from headrace.drift.plan import Plan, plan_from_json, plan_json
from headrace.drift.summary import Summary, summary_from_json, summary_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

REFERENCE_FILE = "drift.json"
"""Its name in a version's directory."""
LARGEST_FILE = 64 << 20
_FORMAT = "headrace drift reference"
_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """tensors: by `Watch.key`. source: what it was made of, for people. created_ms: since the epoch."""

    tensors: Mapping[str, tuple[Plan, Summary]]
    source: str
    created_ms: int

    @property
    def rows(self) -> int:
        """Of the tensor that has most."""
        return max((summary.rows for _, summary in self.tensors.values()), default=0)

    def text(self) -> str:
        """The file: JSON, one line for a tensor."""
        tensors = {
            key: {"plan": plan_json(plan), "summary": summary_json(one)} for key, (plan, one) in self.tensors.items()
        }
        body = {"format": _FORMAT, "version": _VERSION, "source": self.source, "created_ms": self.created_ms}
        lines = [f"{json.dumps(key)}: {_compact(value)}" for key, value in body.items()]
        lines.append(f'"checksum": "{_checksum(body | {"tensors": tensors})}"')
        each = ",\n  ".join(f"{json.dumps(key)}: {_compact(value)}" for key, value in tensors.items())
        return "{\n" + ",\n".join([*lines, f'"tensors": {{\n  {each}\n}}']) + "\n}\n"

    def write(self, path: Path) -> None:
        """To a file, atomically. Raises OSError."""
        write_atomically(path, self.text().encode())


def parse_reference(text: bytes | str) -> Reference:
    """What `Reference.text` gave. Raises DriftError for anything else, and where it was changed."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DriftError(f"not JSON: {error}") from None
    if not isinstance(value, dict) or value.get("format") != _FORMAT:
        raise DriftError(f'not a drift reference: expected "format": "{_FORMAT}"')
    if value.get("version") != _VERSION:
        raise DriftError(f"a drift reference of version {value.get('version')!r}, expected {_VERSION}")
    checksum = value.pop("checksum", None)
    if checksum != _checksum(value):
        raise DriftError("damaged or edited: its checksum is another. `headrace drift fit` makes it anew")
    tensors = {}
    for key, part in value["tensors"].items():
        plan = plan_from_json(part["plan"])
        tensors[key] = plan, summary_from_json(part["summary"], plan)
    return Reference(tensors, value["source"], value["created_ms"])


def read_reference(path: Path) -> Reference:
    """From a file. Raises DriftError, which names it, and OSError."""
    try:
        return parse_reference(read_bounded(path, LARGEST_FILE))
    except DriftError as error:
        raise DriftError(f"{path}: {error}") from None


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _checksum(value: Mapping[str, Any]) -> str:
    return blake2b(_compact(value).encode(), digest_size=16).hexdigest()
