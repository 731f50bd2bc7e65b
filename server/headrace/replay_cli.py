"""`headrace record` and `headrace replay`: what would have happened with other settings."""

from __future__ import annotations

import argparse
import http.client
import json
import math
import ssl
import sys
import tempfile
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import ConfigError
from headrace.tensor_text import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.replay.simulation import Outcome
    from headrace.repository.model_config import ModelConfig
    from headrace.telemetry.recording import Recording

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_RECORD = """\
Writes down how the last requests of a model came and went: when, how many rows, with which deadlines, in which batches,
and why some were refused; nothing of what they said. The server keeps so many as its record_requests says.
"""

_REPLAY = """\
Runs recorded requests again through the scheduler that served them, in virtual time, with the settings that they were
served with and with others: `--set max_batch=16`. Runs of the model take as long as recorded ones did. Requests come
when they came: clients that wait for a reply before they send the next would, with another server, have come otherwise.
"""

_EPILOG = """\
examples:
  headrace record digits --output digits.npz
  headrace replay digits.npz --set max_batch=16 --set batching.policy=deadline
"""

_TIMEOUT_S = 60.0
_CAUTION = """
By as much as `replayed` is off what was recorded, any other row may be: believe no difference that is smaller."""
_CAUTION_REFUSED = """\
How many requests miss a deadline depends on the slowest runs: take that for an order of magnitude, and try --seed."""
_BY_A_HAIR = ("deadline_exceeded", "deadline_unreachable", "queue_timeout")


def add_commands(commands: Subparsers) -> None:
    """Adds `record` and `replay` to the subcommands of a parser."""
    record = commands.add_parser(
        "record",
        help="write down how the last requests of a model came and went",
        description=_RECORD,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    record.add_argument("model", metavar="MODEL")
    record.add_argument("--output", metavar="FILE", type=Path, required=True, help="where to")
    record.add_argument("--model-version", metavar="N", default="", help="default: the newest that serves")
    record.add_argument(
        "--url", metavar="URL", default="127.0.0.1:8000",
        help="the server's HTTP port, host:port or with http:// or https:// before it (default: %(default)s)",
    )  # fmt: skip
    record.add_argument("--ca", metavar="FILE", help="PEM file of who has signed the server's certificate")
    record.add_argument("--certificate", metavar="FILE", help="PEM file of a client certificate and its chain")
    record.add_argument("--key", metavar="FILE", help="PEM file of its private key (default: the certificate's file)")
    record.set_defaults(command=_record, parser=record)
    replay = commands.add_parser(
        "replay",
        help="run recorded requests again, with other settings",
        description=_REPLAY,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    replay.add_argument("recording", metavar="FILE", type=Path)
    replay.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="a key of model.toml and its value in TOML"
    )
    replay.add_argument("--seed", type=int, default=0, help="of the run times that are drawn (default: %(default)s)")
    replay.add_argument("--json", action="store_true", help="print JSON")
    replay.set_defaults(command=_replay, parser=replay)


def _record(arguments: argparse.Namespace) -> int:
    quoted = urllib.parse.quote(arguments.model, safe="")
    version = f"/versions/{urllib.parse.quote(arguments.model_version, safe='')}" if arguments.model_version else ""
    server = arguments.url if "://" in arguments.url else f"http://{arguments.url}"
    url = f"{server.rstrip('/')}/v2/models/{quoted}{version}/recording"
    try:
        context = _tls(arguments) if url.startswith("https:") else None
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S, context=context) as reply:
            body = reply.read()
    except urllib.error.HTTPError as error:
        print(f"headrace: {_told(error)}", file=sys.stderr)
        return 1
    except http.client.HTTPException as error:  # a gRPC port, say
        said = " ".join(str(error).split())
        raise UsageError(f"{url}: no reply in HTTP/1.1, expected the server's HTTP port: {said[:80]!r}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{url}: {getattr(error, 'reason', error)}") from error
    requests = _requests(body, url)  # before it is written: what is no use must not replace what may be
    try:
        arguments.output.write_bytes(body)
    except OSError as error:
        raise UsageError(f"{arguments.output}: cannot be written: {error.strerror or error}") from error
    print(f"{arguments.output}: {requests} requests")
    return 0


def _tls(arguments: argparse.Namespace) -> ssl.SSLContext:
    """Raises UsageError for a certificate that cannot be shown, OSError."""
    context = ssl.create_default_context(cafile=arguments.ca)
    if arguments.certificate:
        try:
            context.load_cert_chain(arguments.certificate, arguments.key)
        except OSError as error:  # ssl.SSLError is one too
            files = f"{arguments.certificate}{f', {arguments.key}' if arguments.key else ''}"
            raise UsageError(f"{files}: no certificate with its key: {error.strerror or error}") from error
    elif arguments.key:
        raise UsageError("--key goes with --certificate")
    return context


def _requests(body: bytes, url: str) -> int:
    """How many are in a recording that has come from a server. Raises UsageError for one that cannot be replayed."""
    from headrace.telemetry.recording import read

    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "recording.npz")
        file.write_bytes(body)
        try:
            return len(read(file))
        except ConfigError as error:
            raise UsageError(f"{url}: {str(error).removeprefix(f'{file}: ')}; nothing was written") from error


def _told(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.code} {error.reason}"


def _replay(arguments: argparse.Namespace) -> int:
    from headrace.replay.simulation import recorded, replay
    from headrace.telemetry.recording import read

    if arguments.seed < 0:
        raise UsageError(f"--seed {arguments.seed}: expected at least 0")
    recording = read(arguments.recording)
    outcomes = {"recorded": recorded(recording)}
    outcomes["replayed"] = replay(recording, _settings(recording, []), arguments.seed)
    if arguments.set:
        outcomes[" ".join(arguments.set)] = replay(recording, _settings(recording, arguments.set), arguments.seed)
    rows = {name: _row(outcome) for name, outcome in outcomes.items()}
    if arguments.json:
        print(json.dumps({name: {key: _plain(value) for key, value in row.items()} for name, row in rows.items()}))
        return 0
    print(
        f"{recording.model}, version {recording.version}: {len(recording)} requests in "
        f"{outcomes['recorded'].seconds:.1f} s"
    )
    names = list(dict.fromkeys(key for row in rows.values() for key in row))
    widths = [max(len(name), *(len(_text(row.get(name, 0))) for row in rows.values())) for name in names]
    first = max(map(len, rows))
    print("  ".join([" " * first, *(name.rjust(width) for name, width in zip(names, widths, strict=True))]))
    for title, row in rows.items():
        cells = [_text(row.get(name, 0)).rjust(width) for name, width in zip(names, widths, strict=True)]
        print("  ".join([title.ljust(first), *cells]))
    print(_CAUTION)
    if any(reason in row for row in rows.values() for reason in _BY_A_HAIR):
        print(_CAUTION_REFUSED)
    return 0


def _settings(recording: Recording, changes: list[str]) -> ModelConfig:
    """The model's settings with changes. Raises ConfigError that names the key, UsageError for what is no setting."""
    from headrace import settings_sources as sources
    from headrace.repository.model_config import ModelConfig
    from headrace.telemetry.recording import SETTINGS

    found = [sources.Source(dict(recording.settings), {(): "recorded"})]
    said: dict[str, str] = {}
    for change in changes:
        try:
            values = tomllib.loads(change)
        except tomllib.TOMLDecodeError:
            key, _, value = change.partition("=")
            try:
                values = tomllib.loads(f"{key} = {json.dumps(value)}")  # a text without quotes
            except tomllib.TOMLDecodeError as error:
                raise UsageError(f"--set {change}: expected KEY=VALUE as in model.toml: {error}") from error
        if unknown := values.keys() - set(SETTINGS):
            raise UsageError(
                f"--set {change}: {unknown.pop()} makes no difference to a replay, expected one of "
                f"{', '.join(SETTINGS)}"
            )
        for key in _leaves(values):
            if key in said:
                raise UsageError(f"--set {change}: {key} is said before, by --set {said[key]}, expected it once")
            said[key] = change
        found.append(sources.Source(values, {(): f"--set {change}"}))
    return sources.build(ModelConfig, found)


def _leaves(values: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """The keys of values that are no tables, with dots."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}"


def _row(outcome: Outcome) -> dict[str, Any]:
    percentiles = {f"p{percent} ms": outcome.percentile(percent) for percent in (50, 95, 99)}
    mean = outcome.rows / outcome.batches if outcome.batches else math.nan
    return {**percentiles, "batches": outcome.batches, "rows/batch": mean, **outcome.refused}


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _text(value: float) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
