"""The load generators that others measure with, and what the server counted meanwhile."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from e2e.calls import SECONDS, output, request, statistics

from compare.clients import Load, h2load_command, parse_h2load, parse_perf_analyzer, perf_analyzer_command

PEERS = Path(os.environ.get("HEADRACE_PEERS", Path.home() / ".cache/headrace-peers")) / "client"
PERF_ANALYZER = PEERS / "bin" / "perf_analyzer"
REQUESTS = 2000
MISSING = "run `loadtest/peers/setup clients`, as `make test` does"


def run(command, **environment):
    done = subprocess.run(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=90,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def run_perf_analyzer(command):
    """Its report; it wants a library of CUDA's even where there is no GPU."""
    libraries = sorted((PEERS / "lib").glob("python3*/site-packages/nvidia/cuda_runtime/lib"))
    return run(command, LD_LIBRARY_PATH=":".join(map(str, libraries)))


@pytest.mark.skipif(shutil.which("h2load") is None, reason=f"no h2load: {MISSING}")
@pytest.mark.parametrize("timeout", [None, "10S"])
def test_h2load(server, stub, tmp_path, timeout):
    message = request("digits", id="1", pixels=np.full((1, 64), 3, np.float32))
    reply = stub.ModelInfer(message, timeout=SECONDS)
    assert output(reply).shape == (1, 10)
    serialised = message.SerializeToString()
    payload = tmp_path / "message"
    payload.write_bytes(b"\0" + len(serialised).to_bytes(4, "big") + serialised)

    before = statistics(stub, "digits")
    load = Load("h2load", "digits", 16, connections=8, timeout=timeout)
    report = parse_h2load(run(h2load_command(load, REQUESTS, server.address, payload)))
    after = statistics(stub, "digits")

    assert (report.requests, report.failed) == (REQUESTS, 0)
    assert report.octets == REQUESTS * (5 + reply.ByteSize())
    assert after.inference_stats.success.count - before.inference_stats.success.count == REQUESTS
    assert after.inference_stats.fail.count == before.inference_stats.fail.count
    assert after.inference_count - before.inference_count == REQUESTS
    assert after.execution_count - before.execution_count < REQUESTS  # 128 in flight: batches were formed


@pytest.mark.skipif(not PERF_ANALYZER.exists(), reason=f"no perf_analyzer: {MISSING}")
@pytest.mark.parametrize(("model", "rows"), [("pair", 4), ("echo_bytes", 1)])
def test_perf_analyzer(server, stub, model, rows):
    """It reads ModelStatistics itself, and reports nothing where these do not agree with what it has sent."""
    before = statistics(stub, model)
    load = Load("perf_analyzer", model, 8, batch=rows, seconds=1)
    text = run_perf_analyzer(perf_analyzer_command(load, server.address, PERF_ANALYZER))
    after = statistics(stub, model)
    report = parse_perf_analyzer(text)
    success = after.inference_stats.success.count - before.inference_stats.success.count
    assert 100 < report.requests <= success  # it sends between its windows as well
    assert after.inference_count - before.inference_count == success * rows
    assert after.inference_stats.fail.count == before.inference_stats.fail.count
    assert "Server: " in text
    assert "Inference count: " in text
