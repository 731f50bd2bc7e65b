"""The command `headrace`: serve models, or ask a server that runs."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING

from headrace import __version__, client_cli, drift_cli, quantize_cli, replay_cli
from headrace.config import add_flags, load_settings
from headrace.errors import ConfigError
from headrace.settings_sources import nearest
from headrace.tensor_text import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION = "A real-time inference server for the Open Inference Protocol, which clients of Triton and KServe speak."

_EXAMPLES = """\
examples:
  headrace serve --model-repository models
  headrace models
  headrace infer digits --input pixels=digit.npy

`headrace COMMAND --help` says more.
"""

_SERVE_DESCRIPTION = """\
Serves every model of a repository, NAME/VERSION/model.onnx with an optional NAME/model.toml, over gRPC, and health and
metrics over HTTP. SIGTERM or Ctrl-C drains: nothing new is accepted, what was accepted is answered, then the server
stops; a second signal stops it at once.
"""

_SERVE_EPILOG = """\
A setting comes from its flag, else from the environment, else from the file, else it is the default. For example:
  --grpc-port 9001        HEADRACE_GRPC_PORT=9001           grpc_port = 9001
  --http2-keepalive-s 60  HEADRACE_HTTP2__KEEPALIVE_S=60    keepalive_s = 60, under [http2]

examples:
  headrace serve --model-repository /srv/models --host 0.0.0.0
  headrace serve --config headrace.toml --log-level debug
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line (by default the process's) and returns the exit status: 0, 1 failed, 2 bad usage."""
    parser = _parser()
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = parsed.parser._option_string_actions
        hints = [
            f"{word}{nearest(word.partition('=')[0], known) if word.startswith('--') else ''}"
            for word in unknown
            if word.startswith("-") or all(not other.startswith("-") for other in unknown)
        ]
        parsed.parser.error("unrecognized: " + ", ".join(hints))
    try:
        status: int = parsed.command(parsed)
        sys.stdout.flush()
    except (ConfigError, UsageError) as error:
        for line in str(error).splitlines():
            print(f"headrace: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter's end complains
        return 128 + signal.SIGPIPE
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "headrace",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"headrace {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve = commands.add_parser(
        "serve",
        help="serve the models of a repository",
        usage="headrace serve [--config FILE] [--SETTING VALUE ...]",
        description=_SERVE_DESCRIPTION,
        epilog=_SERVE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(serve)
    serve.set_defaults(command=_serve, parser=serve)
    client_cli.add_commands(commands)
    drift_cli.add_command(commands)
    replay_cli.add_commands(commands)
    quantize_cli.add_command(commands)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    settings = load_settings(vars(arguments), os.environ)
    from headrace.serve import run  # here, so that the other commands start without the server's imports

    return run(settings)
