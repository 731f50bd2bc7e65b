"""A recording: the last requests of a model version and the batches that they were in, as a file.

A NumPy archive without pickles. All times are monotonic nanoseconds of the server's.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Array = np.ndarray[Any, Any]

FORMAT = 1
SETTINGS = (
    "max_batch", "instances", "split_oversize", "slo_ms", "priority_levels", "default_priority", "batching", "queue",
)  # fmt: skip
"""Keys of model.toml on which it depends how requests are batched, and whether they are refused."""
NOT_QUEUED = ("rule_broken",)
"""Why requests ended that were refused for what they hold: with other settings, they would be as well."""
_REQUESTS = ("received", "decoded", "due", "rows", "priority", "timeout", "row_bytes", "batch", "shape", "ended")
_BATCHES = ("batched", "started", "finished", "encoded", "rows", "instance", "reason")


@dataclass(frozen=True, slots=True)
class Recording:
    """model, version: whose. settings: of the model, those that matter here. inline_below_us: of the server.

    requests: columns with an entry for each. received, decoded: when its octets were read, when it was ready to enter
    the queue. due: its RPC's deadline, 0: none. timeout: its own or that of the settings, ns from receipt, 0: none.
    batch: its place among the batches, that of the last one for a split request, -1 if it ended without success; ended:
    why it did. shape: requests of equal ones may share a batch. batches: columns with an entry for each; see
    `messages.Batch`; encoded: when its replies were written.
    """

    model: str
    version: str
    settings: Mapping[str, Any]
    inline_below_us: int
    requests: Mapping[str, Array]
    batches: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.requests["received"])

    @property
    def latency_ns(self) -> Array:
        """INT64, of the requests that were answered: from the read of the request to its reply."""
        done = self.requests["batch"] >= 0
        encoded: Array = self.batches["encoded"][self.requests["batch"][done]]
        return np.asarray(encoded - self.requests["received"][done])


def to_bytes(
    model: str, version: str, settings: Mapping[str, Any], inline_below_us: int, columns: Mapping[str, Array]
) -> bytes:
    """A recording as a file. columns: see `telemetry.diary.Diary.columns`."""
    about = {
        "format": FORMAT,
        "model": model,
        "version": version,
        "settings": dict(settings),
        "inline_below_us": inline_below_us,
    }
    file = io.BytesIO()
    arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8), **columns}
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def read(path: Path) -> Recording:
    """The recording in a file. Raises ConfigError that says what is wrong with it."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files}
        about = json.loads(columns["about"].tobytes())
        if about["format"] != FORMAT:
            raise ConfigError(f"{path}: a recording of format {about['format']}, expected {FORMAT}")
        found = Recording(
            about["model"],
            about["version"],
            about["settings"],
            about["inline_below_us"],
            {name: columns[name] for name in _REQUESTS},
            {name: columns[f"batch_{name}"] for name in _BATCHES},
        )
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: this is no recording of `headrace record`") from error
    lengths = {len(column) for column in found.requests.values()}, {len(column) for column in found.batches.values()}
    batches = found.requests["batch"]
    if list(map(len, lengths)) != [1, 1] or (len(batches) and batches.max() >= len(found.batches["rows"])):
        raise ConfigError(f"{path}: columns of a recording do not fit together")
    if not (batches >= 0).any():
        raise ConfigError(f"{path}: a recording of no request that was answered")
    return found
