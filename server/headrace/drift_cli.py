"""`headrace drift fit` and `headrace drift report`: a reference from data, and what was recorded held against it."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.clock import wall_ms
from headrace.errors import ModelLoadError
from headrace.messages import TensorSpec
from headrace.tensor_text import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from headrace.drift.alarms import AlarmSettings
    from headrace.drift.fit import Progress, Source
    from headrace.drift.monitor import Monitor
    from headrace.drift.plan import Plan
    from headrace.drift.readers import Known
    from headrace.drift.reference import Reference
    from headrace.drift.summary import Summary
    from headrace.drift.watch import Layout, Watch
    from headrace.drift.windows import Record
    from headrace.messages import Signature
    from headrace.repository.model_config import ModelConfig
    from headrace.repository.schema_config import Schema

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]
    Given = tuple[str, str, Path, tuple[str, ...]]

_FIT = """\
Makes the reference that a model version's drift is measured by, and writes it to drift.json in the version's directory:
of training data, a file for each tensor, or of windows that a server has recorded while all was well. Which features
are made of a tensor is said by [drift] in model.toml, or else by its datatype and shape. No row of the data is kept.
"""

_FIT_EPILOG = """\
A file is .npy, .npz, .csv or .parquet. Of a table, columns may be chosen: NAME=FILE:COLUMN,COLUMN.

examples:
  headrace drift fit models/digits/1 --input pixels=train.npy
  headrace drift fit models/credit/3 --input x=train.parquet:age,income,debt --output score=scores.csv
  headrace drift fit models/credit/3 --input x=train.parquet:age,income,debt --schema
  headrace drift fit models/credit/3 --windows state/credit.3.drift
"""

_REPORT = """\
Holds what was recorded against the version's reference, and says which features have drifted, the worst first. What was
recorded are files of windows, of one or more instances, or data, read as if it had flowed by in one window.
"""

_REPORT_EPILOG = """\
examples:
  headrace drift report models/credit/3 --windows a.drift b.drift --html drift.html
  headrace drift report models/credit/3 --input x=today.csv --check
"""

_STATUS = {"quiet": 0, "alarm": 1, "not judged": 3}
"""Exit status of `report --check`."""
_FAILED = 2
"""Exit status of `report` where something cannot be read, as of bad usage: that is no alarm."""


def add_command(commands: Subparsers) -> None:
    """Adds `drift` to the subcommands of a parser."""
    drift = commands.add_parser(
        "drift",
        help="make a reference of training data, or report drift",
        description="Makes the reference that drift is measured by, and reports drift.",
        allow_abbrev=False,
    )
    kinds = drift.add_subparsers(title="commands", metavar="COMMAND", required=True)
    fit = _parser(kinds, "fit", "make a version's reference", _FIT, _FIT_EPILOG)
    fit.add_argument("--out", metavar="FILE", type=Path, help="where to write it (default: drift.json of the version)")
    fit.add_argument(
        "--force", action="store_true", help="replace what is there, and take windows in which an alarm was on"
    )
    fit.add_argument(
        "--schema",
        action="store_true",
        help="write schema.toml to the version's directory as well: rules that the inputs' data keep, with policy "
        "count, so that they refuse nobody yet",
    )
    fit.set_defaults(command=_guarded(_fit, 1), parser=fit)
    report = _parser(kinds, "report", "say what has drifted", _REPORT, _REPORT_EPILOG)
    report.add_argument("--reference", metavar="FILE", type=Path, help="the reference (default: drift.json)")
    report.add_argument("--last", metavar="N", type=int, help="the last N windows (default: all that were kept)")
    report.add_argument("--html", metavar="FILE", type=Path, help="write a page that needs no other file")
    report.add_argument("--csv", metavar="DIR", type=Path, help="write reference.csv and window.csv, for Evidently")
    report.add_argument("--json", action="store_true", help="print JSON")
    report.add_argument(
        "--check",
        action="store_true",
        help="exit with 1 if there is an alarm, with 2 if something cannot be read, with 3 if nothing was judged",
    )
    report.set_defaults(command=_guarded(_report, _FAILED), parser=report)


def _parser(kinds: Subparsers, name: str, short: str, description: str, epilog: str) -> argparse.ArgumentParser:
    parser = kinds.add_parser(
        name,
        help=short,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("directory", metavar="VERSION_DIR", type=Path, help="a version's directory, such as NAME/1")
    for side in ("input", "output"):
        parser.add_argument(
            f"--{side}", metavar="NAME=FILE", action="append", default=[], help=f"data of an {side}; once for each"
        )
    parser.add_argument("--windows", metavar="FILE", type=Path, nargs="+", default=[], help="recorded windows")
    return parser


def _guarded(command: Callable[[argparse.Namespace], int], failed: int) -> Callable[[argparse.Namespace], int]:
    """What goes wrong with data is the user's to mend: a line, not a traceback. failed: the exit status."""

    def run(arguments: argparse.Namespace) -> int:
        from headrace.drift.errors import DriftError

        try:
            return command(arguments)
        except (DriftError, ModelLoadError) as error:
            print(f"headrace: {error}", file=sys.stderr)
        except OSError as error:
            said = f"{error.filename}: {error.strerror}" if error.filename else error
            print(f"headrace: {said}", file=sys.stderr)
        return failed

    return run


def _fit(arguments: argparse.Namespace) -> int:
    from headrace.drift.errors import DriftError
    from headrace.drift.fit import fit_reference, reference_of_record
    from headrace.drift.packing import write_atomically
    from headrace.drift.reference import REFERENCE_FILE, Reference
    from headrace.drift.text import reference_lines, shown
    from headrace.repository.schema_builder import gaps, infer_schema
    from headrace.repository.schema_config import SCHEMA_FILE, schema_text

    given = _given(arguments)
    if not given and not arguments.windows:
        raise UsageError("nothing to make a reference of: give --input, --output or --windows")
    target = arguments.out or arguments.directory / REFERENCE_FILE
    schema = arguments.directory / SCHEMA_FILE
    if arguments.schema and not any(side == "inputs" for side, *_ in given):
        raise UsageError("--schema needs data of an input: give --input")
    for path in (target, schema) if arguments.schema else (target,):
        if path.exists() and not arguments.force:
            raise DriftError(f"{path}: is there already; --force replaces it")
    now = wall_ms()
    tensors: dict[str, tuple[Plan, Summary]] = {}
    notes: list[str] = []
    if arguments.windows:
        record, drifted = _records(arguments.windows, arguments.directory)
        if drifted:
            said = f"an alarm was on in these windows, of {', '.join(map(shown, drifted))}"
            if not arguments.force:
                raise DriftError(f"{said}: as a reference they would make the drift normal; --force takes them")
            notes.append(f"{said}: the reference takes that drift for normal")
        tensors.update(reference_of_record(record, "", now).tensors)
        _check_features(arguments.directory, Reference(tensors, ", ".join(map(str, arguments.windows)), now))
    if given:
        sources, said_of_data = _sources(arguments.directory, given)
        notes += said_of_data
        tensors.update(fit_reference(sources, secrets.token_bytes(16), "", now, _progress()).tensors)
    names = [*(path.name for path in arguments.windows), *(path.name for _, _, path, _ in given)]
    reference = Reference(tensors, ", ".join(dict.fromkeys(names)), now)
    rules = ""
    if arguments.schema:  # before anything is written: data that make no schema leave no reference either
        inputs = [
            (TensorSpec(watch.tensor, watch.datatype, watch.shape), data.names, data.chunks())
            for watch, data in sources
            if not watch.output
        ]
        found = infer_schema(inputs, ", ".join(path.name for side, _, path, _ in given if side == "inputs"))
        rules = schema_text(found)
        lines = gaps(found, [(spec, names) for spec, names, _ in inputs])
        notes += [f"{SCHEMA_FILE}: {shown(line)}" for line in (*lines, *_without_effect(arguments.directory, found))]
    reference.write(target)
    for line in reference_lines(reference):
        print(line)
    print(f"{target}: written")
    if arguments.schema:
        write_atomically(schema, rules.encode())
        print(f"{schema}: written")
    for line in notes:
        print(f"headrace: {line}", file=sys.stderr)
    return 0


def _without_effect(directory: Path, schema: Schema) -> Iterator[str]:
    """Which rules of a schema do not count, a line for each input: model.toml has them too."""
    from headrace.repository.configuration import read_configuration

    config = read_configuration(Path(os.path.abspath(directory)).parent).settings
    for name, rules in schema.inputs.items():
        own = config.inputs.get(name)
        if own is not None and (both := own.both_say(rules)):
            yield f"{', '.join(both)} of {name} without effect: model.toml has its own"


def _given(arguments: argparse.Namespace) -> list[Given]:
    """Side, name, file, columns. Raises UsageError."""
    from headrace.drift.readers import file_and_columns

    found: list[Given] = []
    for side in ("input", "output"):
        for text in getattr(arguments, side):
            name, separator, rest = text.partition("=")
            if not (name and separator and rest):
                raise UsageError(f"--{side} {text}: expected NAME=FILE or NAME=FILE:COLUMN,COLUMN")
            path, chosen = file_and_columns(rest)
            if any(one[:2] == (f"{side}s", name) for one in found):
                raise UsageError(f"--{side} {text}: {name} is given twice, expected one file for each tensor")
            if twice := [column for column in chosen if chosen.count(column) > 1]:
                raise UsageError(f"--{side} {text}: column {twice[0]} is given twice")
            found.append((f"{side}s", name, Path(path), chosen))
    return found


def _sources(
    directory: Path, given: Sequence[Given], reference: Reference | None = None
) -> tuple[list[tuple[Watch, Source]], list[str]]:
    """The data of each tensor with what is watched of it, and what to say to the user when all went well.

    reference: what the data will be held against, whose names tell which column is which. Raises ConfigError,
    ModelLoadError, DriftError, OSError.
    """
    from headrace.drift.readers import open_source
    from headrace.drift.values import checked
    from headrace.repository.drift_config import DriftConfig, TensorDrift

    config, signature = _model(directory)
    drift = config.drift or DriftConfig()
    tables = {"inputs": dict(drift.inputs), "outputs": dict(drift.outputs)}
    unwatched = []
    for side, name, _, _ in given:
        if name not in tables[side]:
            tables[side][name] = TensorDrift()
            unwatched.append(f"{name} is watched once there is [drift.{side}.{name}] in model.toml")
    wanted = drift.model_copy(update=tables)
    watches = {watch.key: watch for watch in wanted.watches(signature, _layouts(config))}
    found = []
    for side, name, path, columns in given:
        watch = watches[f"{side}.{name}"]
        known = _known(watch, config, reference)
        source = open_source(path, name, watch.shape, columns, text=watch.datatype == "BYTES", known=known)
        found.append((watch, checked(source, watch.datatype)))
    return found, unwatched


def _known(watch: Watch, config: ModelConfig, reference: Reference | None) -> Known:
    """What the elements of a tensor's rows are called, as far as anybody has said."""
    from headrace.drift.readers import Known

    plan = None if reference is None else reference.tensors.get(watch.key, (None,))[0]
    own = None if watch.output else config.inputs.get(watch.tensor)
    labels = watch.kind == "classes"
    said = [
        (plan.watch.labels if plan is not None else (), "the reference"),
        (own.names if own is not None else (), "names in model.toml"),
        (watch.labels, "its labels"),
    ]
    found = (Known(tuple(names), who, labels) for names, who in said if names and len(names) == prod(watch.shape))
    return next(found, Known())


def _model(directory: Path) -> tuple[ModelConfig, Signature]:
    """How a version is served, and its signature. Raises ConfigError, ModelLoadError."""
    from headrace.backends import registry
    from headrace.engine.presented import present
    from headrace.engine.processed import process
    from headrace.repository.configuration import read_configuration

    directory = Path(os.path.abspath(directory))
    if not directory.is_dir():
        raise UsageError(f"{directory}: no directory of a version, such as models/NAME/1")
    config = read_configuration(directory.parent).settings
    problems = []
    for name in config.chain:  # the first that can open it here: a machine to fit on may have no GPU
        try:
            opener, options = registry.get(name), config.options_of(name)
            model = opener.load(directory, max_batch=config.max_batch, threads=config.threads, options=options)
            return config, process(present(model, config, directory.parent), config).signature
        except ModelLoadError as error:
            problems.append(f"{name}: {error}")
    raise ModelLoadError(f"{directory}: {'; '.join(problems)}")


def _layouts(config: ModelConfig) -> dict[str, Layout]:
    return {name: table.format for name, table in config.inputs.items() if table.format is not None}


def _check_features(directory: Path, reference: Reference) -> None:
    """Raises DriftError for a reference of other features than the model is watched for, as the server would."""
    from headrace.drift.monitor import Monitor

    config, signature = _model(directory)
    drift = config.drift
    if drift is not None and (watches := drift.watches(signature, _layouts(config))):
        Monitor("", "", watches, drift.alarms, b"", reference)


def _records(paths: Sequence[Path], directory: Path) -> tuple[Record, list[str]]:
    """What several instances of the model of a version's directory have recorded, as one, and what had an alarm there.

    Raises DriftError, which names the file, OSError.
    """
    from headrace.drift.errors import DriftError
    from headrace.drift.monitor import alarmed_in
    from headrace.drift.packing import read_bounded
    from headrace.drift.windows import merge_records, unpack_record

    model = Path(os.path.abspath(directory)).parent.name
    found = []
    drifted: dict[str, None] = {}
    for path in paths:
        try:
            record, extra = unpack_record(read_bounded(path))
            if record.model != model:
                raise DriftError(f"windows of model {record.model}, but {directory} is of model {model}")
            found.append(record)
            drifted |= dict.fromkeys(alarmed_in(extra))
        except DriftError as error:
            raise DriftError(f"{path}: {error}") from None
    return merge_records(found), list(drifted)


def _progress() -> Progress:
    """Tells how far it is on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        return lambda what, done, of: None

    def show(what: str, done: int, of: int | None) -> None:
        share = f" of {of:,} ({done / of:.0%})" if of else ""
        print(f"\r{what} {done:,}{share} rows\033[K", end="\n" if done == of else "", file=sys.stderr, flush=True)

    return show


def _report(arguments: argparse.Namespace) -> int:
    from headrace.drift.export import tables
    from headrace.drift.packing import write_atomically
    from headrace.drift.page import page
    from headrace.drift.report import report
    from headrace.drift.text import report_lines

    given = _given(arguments)
    if bool(given) == bool(arguments.windows):
        raise UsageError("give either --windows, or data by --input and --output")
    if arguments.last is not None and arguments.last < 1:
        raise UsageError(f"--last {arguments.last}: expected at least 1")
    reference = _reference(arguments)
    if given and arguments.last is not None:
        raise UsageError(f"--last {arguments.last}: data are of no windows, expected --windows with it")
    notes: list[str] = []
    if given:
        monitor, notes = _of_data(arguments, given, reference)
    else:
        monitor = _of_windows(arguments, reference)
    newest = max(monitor.record.windows, default=0)
    monitor.tick(newest + monitor.record.window_ms)
    found = report(monitor, newest, arguments.last, of_data=bool(given))
    if arguments.html:
        write_atomically(arguments.html, page(found).encode())
    if arguments.csv:
        arguments.csv.mkdir(parents=True, exist_ok=True)
        for name, text in zip(("reference.csv", "window.csv"), tables(found), strict=True):
            write_atomically(arguments.csv / name, text.encode())
    print(found.model_dump_json() if arguments.json else "\n".join(report_lines(found)))
    for line in (*notes, *((f"not judged: {found.unjudged}",) if found.unjudged else ())):
        print(f"headrace: {line}", file=sys.stderr)
    return _STATUS[found.state] if arguments.check else 0


def _reference(arguments: argparse.Namespace) -> Reference | None:
    from headrace.drift.reference import REFERENCE_FILE, read_reference

    path = arguments.reference or arguments.directory / REFERENCE_FILE
    return read_reference(path) if arguments.reference or path.exists() else None


def _of_windows(arguments: argparse.Namespace, reference: Reference | None) -> Monitor:
    """A monitor that has seen what the files hold. Of one file the alarms are as they were; of several, found anew."""
    from headrace.drift.errors import DriftError
    from headrace.drift.monitor import Monitor
    from headrace.drift.packing import read_bounded

    record, _ = _records(arguments.windows, arguments.directory)
    version = Path(os.path.abspath(arguments.directory)).name
    if record.version != version:
        names = ", ".join(map(str, arguments.windows))
        raise DriftError(
            f"{names}: windows of version {record.version}, but {arguments.directory} is of version {version}"
        )
    settings = replace(_settings(arguments.directory), window_ms=record.window_ms, keep=record.keep)
    watches = [plan.watch for plan in record.plans.values()]
    monitor = Monitor(record.model, record.version, watches, settings, bytes(16), reference)
    alone = len(arguments.windows) == 1
    monitor.restore(read_bounded(arguments.windows[0]) if alone else record.pack({"alarms": [], "judged_ms": 0}))
    return monitor


def _of_data(
    arguments: argparse.Namespace, given: Sequence[Given], reference: Reference | None
) -> tuple[Monitor, list[str]]:
    """A monitor that has seen data in one window, and what to say of them."""
    from headrace.drift.errors import DriftError
    from headrace.drift.monitor import Monitor

    if reference is None:
        raise DriftError(f"{arguments.directory}: no reference to hold data against; make one by `headrace drift fit`")
    directory = Path(os.path.abspath(arguments.directory))
    sources, notes = _sources(directory, given, reference)
    settings = _settings(directory)
    watches = [watch for watch, _ in sources]
    monitor = Monitor(directory.parent.name, directory.name, watches, settings, bytes(16), reference)
    now = wall_ms()
    for number, (watch, source) in enumerate(sources):
        for rows in source.chunks():
            monitor.count(now, {watch.key: rows}, 0 if number else len(rows))
    return monitor, notes


def _settings(directory: Path) -> AlarmSettings:
    """Of the model's [drift], or the defaults. Raises ConfigError."""
    from headrace.repository.configuration import read_configuration
    from headrace.repository.drift_config import DriftConfig

    parent = Path(os.path.abspath(directory)).parent
    return ((read_configuration(parent).settings.drift if parent.is_dir() else None) or DriftConfig()).alarms
