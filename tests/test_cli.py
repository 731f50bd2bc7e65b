import os
import subprocess
import sys
from types import ModuleType

import pytest

from headrace import __version__
from headrace.cli import main
from headrace.errors import ConfigError


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def served(monkeypatch):
    """What `headrace serve` would have served: the settings of each start."""
    started = []
    module = ModuleType("headrace.serve")
    module.run = lambda settings: started.append(settings) or 0
    monkeypatch.setitem(sys.modules, "headrace.serve", module)
    return started


def test_serve_takes_flags_and_environment(served, monkeypatch):
    monkeypatch.setenv("HEADRACE_HTTP_PORT", "7000")
    assert main(["serve", "--grpc-port", "9001", "--http2-keepalive-s=60"]) == 0
    (settings,) = served
    assert (settings.grpc_port, settings.http_port, settings.http2.keepalive_s) == (9001, 7000, 60.0)


def test_serve_takes_a_file(served, tmp_path):
    file = tmp_path / "headrace.toml"
    file.write_text('log_level = "debug"')
    assert main(["serve", "--config", str(file)]) == 0
    assert served[0].log_level == "debug"


def test_every_bad_setting_is_a_line_and_nothing_is_served(served, monkeypatch, capsys):
    monkeypatch.setenv("HEADRACE_GRPC_PROT", "7000")
    assert main(["serve", "--grpc-port", "x", "--log-level", "loud"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "headrace: unknown environment variable HEADRACE_GRPC_PROT; did you mean 'HEADRACE_GRPC_PORT'?",
        'headrace: grpc_port = "x" (from flag --grpc-port): expected an integer from 0 to 65535',
        'headrace: log_level = "loud" (from flag --log-level): expected one of "debug", "info", "warning", "error"',
    ]
    assert served == []


def test_a_setting_that_proves_bad_while_starting(monkeypatch, capsys):
    def run(_):
        raise ConfigError("model_repository: not there")

    module = ModuleType("headrace.serve")
    module.run = run
    monkeypatch.setitem(sys.modules, "headrace.serve", module)
    assert main(["serve"]) == 2
    assert capsys.readouterr().err == "headrace: model_repository: not there\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["sreve"], "invalid choice: 'sreve'"),
        (["serve", "--grpc-prot", "1"], "unrecognized: --grpc-prot; did you mean '--grpc-port'?"),
        (["serve", "--grpc-prot=1"], "unrecognized: --grpc-prot=1; did you mean '--grpc-port'?"),
        (["serve", "--grpc", "1"], "unrecognized: --grpc"),
        (["serve", "models"], "unrecognized: models"),
        (["serve", "--load-models", "a", "b", "c"], "unrecognized: b, c"),
        (["infer"], "the following arguments are required: MODEL"),
        (["infer", "m", "--inputs", "x=1"], "unrecognized: --inputs; did you mean '--input'?"),
        (["models", "--timeout-ms", "0"], "'0': expected a whole number from 1 to 1000000000"),
    ],
)
def test_bad_usage_exits_with_2(served, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert served == []


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["infer", "--help"], ["models", "--help"]])
def test_help(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "headrace" in text
    assert max(map(len, text.splitlines())) <= 120


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"headrace {__version__}\n"


def test_the_servers_status_is_the_commands(monkeypatch):
    module = ModuleType("headrace.serve")
    module.run = lambda _: 1  # requests were cut off
    monkeypatch.setitem(sys.modules, "headrace.serve", module)
    assert main(["serve"]) == 1


def test_interruption(monkeypatch):
    def run(_):
        raise KeyboardInterrupt

    module = ModuleType("headrace.serve")
    module.run = run
    monkeypatch.setitem(sys.modules, "headrace.serve", module)
    assert main(["serve"]) == 130


def test_numpy_computes_on_one_thread_unless_told_otherwise():
    """Set before NumPy is imported, which reads it then."""
    code = "\n".join([
        "import os, sys, headrace.__main__ as command",
        "assert 'numpy' not in sys.modules",
        "sys.argv = ['headrace', '--version']",
        "try: command.main()",
        "except SystemExit: print(os.environ['OPENBLAS_NUM_THREADS'])",
    ])  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    for more, threads in (({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment | more, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["headrace", __version__, threads]
