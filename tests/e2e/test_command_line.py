"""The command `headrace` as a user types it, against servers that run, and the examples."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from e2e.calls import floats, request
from e2e.onnx_models import SHIPPED, scale, write
from e2e.server_process import HEADRACE, Server, plain_environment

ROOT = Path(__file__).parents[2]
SECONDS = 60
one_transport = pytest.mark.parametrize("transport", ["native"], indirect=True)
"""For what the command does by itself."""


def headrace(*arguments, **environment):
    """Runs `headrace`; (exit code, standard output, standard error)."""
    return run(HEADRACE, *arguments, **environment)


def run(*command, **environment):
    done = subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env=plain_environment(**environment),
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def digit():
    """Held-out digits: (pixels FP32 [N,64], labels)."""
    with np.load(SHIPPED / "digits" / "heldout.npz") as held_out:
        return held_out["pixels"], held_out["labels"]


# --- headrace infer ---------------------------------------------------------------------------------------------------


def test_infer_prints_outputs_and_timing(server, digit, tmp_path):
    pixels, labels = digit
    np.save(tmp_path / "digit.npy", pixels[:3])
    code, out, err = headrace("infer", "digits", "--url", server.address, "--input", f"pixels={tmp_path}/digit.npy")
    assert (code, err) == (0, "")
    assert out.startswith("digits, version 1\n")
    assert "probabilities  FP32[3, 10]" in out
    assert f"label  INT64[3]\n[{' '.join(map(str, labels[:3]))}]" in out
    for phase in ("decode", "admit", "queue", "batch", "execute", "encode", "total"):
        assert f"\n  {phase} " in out
    assert "close reason: idle" in out


@one_transport
def test_infer_as_json(server, digit):
    pixels, labels = digit
    row = json.dumps(pixels[0].tolist())
    code, out, _ = headrace(
        "infer", "digits", "--url", server.address, "--json", "--outputs", "label", "--input", f"pixels={row}"
    )
    assert code == 0
    reply = json.loads(out)
    assert reply["outputs"] == [{"name": "label", "datatype": "INT64", "shape": [1], "data": [int(labels[0])]}]
    assert reply["timing"]["total_us"] > 0


@one_transport
def test_infer_of_text_and_of_two_inputs(server):
    code, out, _ = headrace("infer", "fixed_text", "--url", server.address, "--json", "--input", 'x=["a", "ß"]')
    assert (code, json.loads(out)["outputs"][0]["data"]) == (0, ["a", "ß"])
    both = ("--input", "a=[[1, 2]]", "--input", "b=[1, 2, 3]")
    code, out, _ = headrace("infer", "pair", "--url", server.address, "--json", *both)
    assert (code, [output["data"] for output in json.loads(out)["outputs"]]) == (0, [[[3.0]], [[2, 4, 6]]])


def test_what_the_server_refuses_is_one_line(server):
    code, out, err = headrace("infer", "checked", "--url", server.address, "--input", "x=[[5, 0]]")
    assert (code, out) == (1, "")
    assert err.startswith("headrace: INVALID_ARGUMENT: element [0, 0] of input 'x' for model 'checked' is 5.0")
    assert err.endswith("(rule_broken)\n")
    code, _, err = headrace("infer", "nobody", "--url", server.address, "--input", "x=1")
    assert code == 1
    assert err == "headrace: NOT_FOUND: Request for unknown model: 'nobody' is not found (model_not_found)\n"


@one_transport
def test_bad_usage(server):
    code, _, err = headrace("infer", "digits", "--url", server.address, "--input", "z=1")
    assert (code, err) == (2, "headrace: model 'digits' has no input 'z'; it has pixels\n")
    code, _, err = headrace("infer", "digits", "--url", server.address)
    assert (code, err) == (2, "headrace: no input given; use --input NAME=VALUE\n")
    code, _, err = headrace("sreve")
    assert code == 2
    assert "invalid choice: 'sreve'" in err


def test_nobody_there():
    code, out, err = headrace("models", "--url", "127.0.0.1:1", "--timeout-ms", "2000")
    assert (code, out) == (1, "")
    assert err.startswith("headrace: UNAVAILABLE: ")


# --- headrace models --------------------------------------------------------------------------------------------------


def test_models(server):
    code, out, err = headrace("models", "--url", server.address)
    assert (code, err) == (0, "")
    rows = {line.split()[0]: " ".join(line.split()) for line in out.splitlines()}
    assert rows["MODEL"] == "MODEL VERSION STATE BACKEND MAX BATCH INPUTS OUTPUTS REASON"
    assert (
        rows["digits"] == "digits 1 READY onnxruntime 64 pixels FP32[-1,64] probabilities FP32[-1,10], label INT64[-1]"
    )
    assert rows["fixed"] == "fixed 1 READY onnxruntime 0 x FP32[2,3] y FP32[2,3]"
    assert rows["broken"].startswith("broken 1 UNAVAILABLE - - - - ONNX Runtime cannot load")
    assert "unknown key 'max_bach'" in rows["misconfigured"]
    code, out, _ = headrace("models", "--url", server.address, "--json")
    listed = {(model["name"], model["version"]): model for model in json.loads(out)}
    assert listed["versions", "2"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}]


# --- the examples -----------------------------------------------------------------------------------------------------


def test_whoever_reads_the_output_may_stop(server):
    """As in `headrace models | head`."""
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(
            [HEADRACE, "models", "--url", server.address],
            stdout=writes,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
            env=plain_environment(),
        )
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_example_digits(server):
    code, out, err = run(sys.executable, ROOT / "examples" / "digits.py", "--url", server.address, "--count", "20")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert sum("read as" in line for line in lines) == 20
    assert sum("<- wrong" in line for line in lines) <= 2
    assert "us in the server: decode " in lines[20]
    assert lines[21].startswith("in a batch of 20 rows, closed by: ")


@pytest.mark.skipif(not (SHIPPED / "filetype/1/model.onnx").exists(), reason="models/filetype/fetch.py has not run")
def test_example_filetype(server):
    script = ROOT / "examples" / "filetype.py"
    files = [script, ROOT / "pyproject.toml", ROOT / "Makefile"]
    code, out, err = run(sys.executable, script, "--url", server.address, *files)
    assert (code, err) == (0, "")
    kinds = [line.removeprefix(f"{file}: ").split()[0] for file, line in zip(files, out.splitlines(), strict=True)]
    assert kinds == ["python", "toml", "makefile"]


# --- headrace serve ---------------------------------------------------------------------------------------------------


def test_a_settings_file(tmp_path):
    """Each mistake is a line that names the key, the value, what is allowed, and the file; nothing is served."""
    file = tmp_path / "headrace.toml"
    file.write_text('grpc_prot = 1\nlog_level = "loud"\n[http2]\nkeepalive_s = -1\n')
    code, out, err = headrace("serve", "--config", file, HEADRACE_HTTP_PORT="70000")
    assert (code, out) == (2, "")
    told = err.splitlines()
    assert all(line.startswith("headrace: ") for line in told)
    assert any("'grpc_prot'" in line and str(file) in line and "did you mean 'grpc_port'" in line for line in told)
    assert any("log_level" in line and '"loud"' in line and '"warning"' in line and str(file) in line for line in told)
    assert any("http2.keepalive_s" in line and "-1" in line and str(file) in line for line in told)
    assert any("http_port" in line and "70000" in line and "HEADRACE_HTTP_PORT" in line for line in told)


def test_a_repository_that_is_not_there(tmp_path):
    code, _, err = headrace("serve", "--model-repository", tmp_path / "no", "--grpc-port", 0, "--http-port", 0)
    assert code == 2
    assert f'headrace: model_repository = "{tmp_path}/no": not a readable directory' in err
    assert "Traceback" not in err


@pytest.mark.parametrize("port", ["grpc", "http"])
def test_a_port_that_is_taken(server, tmp_path, port):
    write(tmp_path, "one", scale(1, "N", 1))
    taken = {"grpc": server.port, "http": server.http.rpartition(":")[2]}[port]
    other = {"grpc": "http", "http": "grpc"}[port]
    code, _, err = headrace(
        "serve", "--model-repository", tmp_path, f"--{port}-port", taken, f"--{other}-port", 0,
        "--transport", server.transport,
    )  # fmt: skip
    assert code == 2
    assert f"headrace: {port}_port = {taken}: cannot listen on 127.0.0.1" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--host", "300.1.1.1"), "host = 300.1.1.1: cannot be listened on: "),
        (("--host", "192.0.2.1"), "host = 192.0.2.1: cannot be listened on: "),
        (("--grpc-port", "{}", "--http-port", "{}"), "grpc_port and http_port are both {}: expected a port for each"),
    ],
)
def test_an_address_that_there_is_not(tmp_path, flags, said):
    write(tmp_path, "one", scale(1, "N", 1))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    ports = () if "--grpc-port" in flags else ("--grpc-port", 0, "--http-port", 0)
    code, _, err = headrace("serve", "--model-repository", tmp_path, *(flag.format(free) for flag in flags), *ports)
    assert code == 2
    assert f"headrace: {said.format(free)}" in err
    assert err.count("\n") == 1


def test_a_file_and_the_environment_configure_it(tmp_path):
    write(tmp_path / "models", "one", scale(1, "N", 1))
    file = tmp_path / "headrace.toml"
    file.write_text('log_level = "debug"\ntransport = "reference"\n')
    environment = plain_environment(HEADRACE_CONFIG=str(file), HEADRACE_LOG_LEVEL="info")
    with Server(tmp_path / "models", environment=environment) as server:
        assert server.transport == "reference"
        assert " DEBUG " not in server.log
        assert server.stop() == 0


# --- headrace record, headrace replay ---------------------------------------------------------------------------------


def test_record_and_replay(serve, stub_of, tmp_path):
    write(tmp_path / "models", "doubled", scale(2, "N", 4))
    server = serve(tmp_path / "models")
    infer = stub_of(server).ModelInfer
    calls = [infer.future(request("doubled", x=floats([1, 2, 3, 4])), timeout=SECONDS) for _ in range(50)]
    assert all(call.result() for call in calls)
    file = tmp_path / "r.npz"
    code, out, err = headrace("record", "doubled", "--url", server.http, "--output", file)
    assert (code, out, err) == (0, f"{file}: 50 requests\n", "")
    code, out, err = headrace("replay", file, "--set", "max_batch=2", "--set", "batching.policy=single")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("doubled, version 1: 50 requests in ")
    assert lines[1].split() == ["p50", "ms", "p95", "ms", "p99", "ms", "batches", "rows/batch"]
    assert [line.split("  ")[0] for line in lines[2:5]] == [
        "recorded",
        "replayed",
        "max_batch=2 batching.policy=single",
    ]
    assert lines[5] == ""
    assert lines[-1].endswith("believe no difference that is smaller.")
    assert lines[4].split()[-2:] == ["50", "1.00"]
    code, out, _ = headrace("replay", file, "--json")
    assert json.loads(out).keys() == {"recorded", "replayed"}


def test_what_cannot_be_recorded_or_replayed(server, tmp_path):
    file = tmp_path / "r.npz"
    code, _, err = headrace("record", "nobody", "--url", server.http, "--output", file)
    assert (code, err) == (1, "headrace: Request for unknown model: 'nobody' is not found\n")
    code, _, err = headrace("record", "digits", "--url", "http://127.0.0.1:1", "--output", file)
    assert code == 2
    assert err.startswith("headrace: http://127.0.0.1:1/v2/models/digits/recording: ")
    assert not file.exists()
    code, _, err = headrace("replay", file)
    assert (code, err) == (2, f"headrace: {file}: cannot be read: No such file or directory\n")
