"""`headrace quantize`: a version of a model in a lower precision, which is written if it is good enough."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from headrace.clock import monotonic_ns, wall_ms
from headrace.progress import bar
from headrace.tensor_text import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from headrace.quantize.report import Report

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]
    Group = argparse._ArgumentGroup

_DESCRIPTION = """\
Makes a version of a model in a lower precision, measures what that costs, and writes it as the model's next version if
it keeps the gate: --min-relative-accuracy of the source's own accuracy on the same rows, or else of agreement with it.
Layers that cost the most are left in float until it does. The new version has model.onnx, quantization.json (what was
made of what, how, and what came out) and quantization.html, the same as a page. A server whose model.toml does not
choose versions serves it next.

recipes:
  int8           weights and activations of 8 bits; ranges of activations by --calibration
  int8-dynamic   weights of 8 bits, ranges of activations found in each run; matrices alone, target cpu alone
  fp16           half precision, for GPUs
  int4           weights of 4 bits in blocks; matrices alone
targets:
  cpu            what ONNX Runtime's CPU provider is quickest with
  portable       what TensorRT's parser takes as well
"""

_EPILOG = """\
Data are rows for each input of the model file, by its name: an .npz, or INPUT=FILE for each input, where a file is
.npy, .npz, .csv or .parquet, and INPUT=FILE:COLUMN,COLUMN chooses columns of a table. Labels are among them, under the
name that --labels gives. Exit status: 0 written, 1 below the gate, 2 nothing could be made of what was given.

examples:
  headrace quantize models/digits --recipe int8 --calibration train.npz --evaluate heldout.npz --labels labels
  headrace quantize models/credit/3 --recipe int8 --target portable --calibration x=train.parquet:age,income,debt
  headrace quantize models/embed --recipe int4 --evaluate texts.npz --min-relative-accuracy 0.98 --report report.json
"""


_BELOW_THE_GATE, _NOTHING_MADE = 1, 2
"""Exit statuses."""


def add_command(commands: Subparsers) -> None:
    """Adds `quantize` to the subcommands of a parser."""
    parser = commands.add_parser(
        "quantize",
        help="make a version of a model in a lower precision",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "model", metavar="MODEL", type=Path, help="a model's directory (its newest version in float), or a version's"
    )
    parser.add_argument("--recipe", required=True, choices=("int8", "int8-dynamic", "fp16", "int4"), help="see above")
    parser.add_argument("--target", default="cpu", choices=("cpu", "portable"), help="see above (default: cpu)")
    _add_data(parser.add_argument_group("data"))
    _add_judgement(parser.add_argument_group("what is measured"))
    _add_means(parser.add_argument_group("how"))
    result = parser.add_argument_group("the result")
    result.add_argument("--version", metavar="N", type=int, help="number of the version (default: the next)")
    result.add_argument(
        "--report", metavar="FILE", type=Path, help="write the report, .json or .html, whatever it says"
    )
    parser.set_defaults(command=_quantize, parser=parser)


def _add_data(data: Group) -> None:
    data.add_argument(
        "--calibration", metavar="DATA", action="append", default=[], help="rows to find ranges with; without "
        "--evaluate, every 5th is measured on instead",
    )  # fmt: skip
    data.add_argument(
        "--evaluate", metavar="DATA", action="append", default=[], help="rows to measure on, other than those"
    )
    data.add_argument(
        "--labels", metavar="NAME", default="", help="labels of the rows to measure on: classes, or numbers"
    )
    data.add_argument("--calibration-rows", metavar="N", type=int, default=512, help="at most so many (default: 512)")


def _add_judgement(judged: Group) -> None:
    judged.add_argument(
        "--min-relative-accuracy", metavar="SHARE", type=float, default=0.99, help="the gate (default: 0.99)"
    )
    judged.add_argument("--metric", choices=("accuracy", "r2", "top1_agreement", "cosine"), help="default: what fits")
    judged.add_argument(
        "--output", metavar="NAME", default="", help="the output to look at (default: the first that fits)"
    )
    judged.add_argument(
        "--timing", metavar="SECONDS", type=float, default=30.0, help="time to measure speed in; 0: none (default: 30)"
    )


def _add_means(how: Group) -> None:
    how.add_argument(
        "--calibration-method",
        choices=("minmax", "entropy", "percentile"),
        default="minmax",
        help="ranges by the extremes, by the least loss of information, or without the rarest values (default: minmax)",
    )
    how.add_argument(
        "--percentile", metavar="P", type=float, default=99.999, help="of values in range (default: 99.999)"
    )
    how.add_argument("--per-tensor", action="store_true", help="one scale for all channels of a weight")
    how.add_argument(
        "--reduce-range", choices=("auto", "yes", "no"), default="auto",
        help="weights of 7 bits, for x86 processors without VNNI (default: as this machine's processor needs)",
    )  # fmt: skip
    how.add_argument(
        "--block-size", metavar="N", type=int, default=32, help="of int4: weights to a scale (default: 32)"
    )
    how.add_argument("--prune", choices=("2:4",), help="make two of four weights 0 first: an experiment, for TensorRT")
    how.add_argument("--no-search", action="store_true", help="leave no layer in float, and measure none by itself")


def _quantize(arguments: argparse.Namespace) -> int:
    _check(arguments)
    from headrace.quantize.errors import QuantizeError
    from headrace.quantize.packages import require

    place, written = arguments.model, ""
    try:
        require()
        with _stoppable():
            report, directory = _build(arguments)
        written = f"{directory}: written" if directory else ""
        if place := arguments.report:
            _write_report(report, arguments.report)
    except QuantizeError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return _NOTHING_MADE
    except OSError as error:
        print(
            f"headrace: {error.filename or place}: {error.strerror or error}{written and f'; {written}'}",
            file=sys.stderr,
        )
        return _NOTHING_MADE
    try:
        _print(report)
        print(written, end="\n" if written else "", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:  # what was made is there all the same, and the status says so
        print(f"headrace: standard output: {error.strerror or error}; {written or 'no version'}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter's end complains
    for warning in report.warnings:
        print(f"headrace: {warning}", file=sys.stderr)
    if directory is None:
        _refused(report)
        return _BELOW_THE_GATE
    _tell_if_not_served(directory)
    return 0


def _tell_if_not_served(directory: Path) -> None:
    from headrace.repository.discovery import NAME_RULE, is_name, scan_model

    model = directory.parent
    if not is_name(model.name):
        print(f"headrace: {model.name} will not be served: {NAME_RULE}", file=sys.stderr)
        return
    found = [one.version for one in scan_model(model.parent, model.name)]
    if None not in found and int(directory.name) not in found:
        served = ", ".join(map(str, found))
        print(
            f"headrace: version {directory.name} will not be served: `versions` in the model's configuration chooses "
            f"{served}",
            file=sys.stderr,
        )


@contextmanager
def _stoppable() -> Iterator[None]:
    """Has signals that would end the process at once end it as Ctrl-C does: what is not finished is removed."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # a second one would stop the removal
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ended = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL]
    for number in ended:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ended:
            signal.signal(number, signal.SIG_DFL)


def _check(arguments: argparse.Namespace) -> None:
    """Raises UsageError for numbers that make no sense."""
    if not 0 < arguments.min_relative_accuracy <= 1:
        raise UsageError(
            f"--min-relative-accuracy {arguments.min_relative_accuracy:g}: expected more than 0, at most 1"
        )
    if not 50 < arguments.percentile <= 100:
        raise UsageError(f"--percentile {arguments.percentile:g}: expected more than 50, at most 100")
    if not 0 <= arguments.timing <= 3600:
        raise UsageError(f"--timing {arguments.timing:g}: expected 0 to 3600 seconds")
    if arguments.block_size not in (16, 32, 64, 128, 256):
        raise UsageError(f"--block-size {arguments.block_size}: expected 16, 32, 64, 128 or 256")
    if arguments.calibration_rows < 1:
        raise UsageError(f"--calibration-rows {arguments.calibration_rows}: expected at least 1")
    if arguments.report and arguments.report.suffix not in (".json", ".html"):
        raise UsageError(f"--report {arguments.report}: expected a file ending in .json or .html")
    if arguments.report and not arguments.report.absolute().parent.is_dir():
        raise UsageError(f"--report {arguments.report}: {arguments.report.absolute().parent} is no directory")


def _build(arguments: argparse.Namespace) -> tuple[Report, Path | None]:
    from headrace.quantize.build import Request, build
    from headrace.quantize.recipes import Options

    request = Request(
        model=arguments.model,
        recipe=arguments.recipe,
        target=arguments.target,
        calibration=tuple(arguments.calibration),
        evaluation=tuple(arguments.evaluate),
        labels=arguments.labels,
        metric=arguments.metric,
        output=arguments.output,
        gate=arguments.min_relative_accuracy,
        options=Options(
            method=arguments.calibration_method,
            percentile=arguments.percentile,
            per_channel=not arguments.per_tensor,
            block_size=arguments.block_size,
            prune=arguments.prune is not None,
        ),
        reduce_range={"auto": None, "yes": True, "no": False}[arguments.reduce_range],
        calibration_rows=arguments.calibration_rows,
        search=not arguments.no_search,
        version=arguments.version,
        speed_s=arguments.timing,
    )
    return build(request, bar(), monotonic_ns, wall_ms())


def _write_report(report: Report, path: Path) -> None:
    from headrace.drift.packing import write_atomically
    from headrace.quantize.page import page
    from headrace.quantize.report import report_json

    write_atomically(path, page(report).encode() if path.suffix == ".html" else report_json(report))


def _print(report: Report) -> None:
    from headrace.quantize.gate import verdict

    print(f"{report.model}: {report.recipe} for {report.target}, of version {report.source_version}")
    print(verdict(report.measure, report.gate))
    share = report.result_bytes / report.source_bytes
    print(f"size {report.result_bytes:,} of {report.source_bytes:,} octets ({share:.0%})")
    for point in report.speed:
        print(
            f"batch {point.batch:>4}: {point.result_rows_per_second:>12,.0f} rows/s on one thread, "
            f"{point.ratio:.2f} times the source's ({point.low:.2f} to {point.high:.2f})"
        )
    for output in report.outputs if len(report.outputs) > 1 else ():
        print(f"output {output.name}: relative error {output.error:.3g}")
    for layer in sorted(report.layers, key=lambda one: -one.error)[:5]:
        print(
            f"layer {layer.name} ({layer.op_type}): error {layer.error:.3g}{', in float' if layer.kept_float else ''}"
        )
    reasons: dict[str, list[str]] = {}
    for name, reason in report.excluded:
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        print(f"in float: {', '.join(names[:2])}{more}: {reason}")


def _refused(report: Report) -> None:
    tried = ", ".join(f"{value:.4f} with {kept}" for kept, value in report.tries)
    print(
        f"headrace: below the gate, no version is written: relative {report.measure.relative:.4f}, expected at least "
        f"{report.gate:g}; tried, by layers left in float: {tried}",
        file=sys.stderr,
    )
