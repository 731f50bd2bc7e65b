"""Headrace with one model on loopback, and load on it from several processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from compare.launch import free_ports
from compare.process import cpu_seconds, rss_mib
from gpu_check.client import METHOD, OPTIONS
from gpu_check.registry import Failed
from headrace.rpc import inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from gpu_check.context import Context

    Array = np.ndarray[Any, Any]

READY_SECONDS = 120
STOP_SECONDS = 30
DATATYPES = {"float16": "FP16", "float32": "FP32", "int64": "INT64", "uint8": "UINT8"}


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    address: str
    http: str
    pid: int
    log: Path


@dataclass(frozen=True)
class Payloads:
    """directory: requests of one row each. expected: a file of their replies' rows. bound: of the error of a reply."""

    directory: Path
    expected: Path
    bound: float


def write_payloads(directory: Path, messages: list[bytes], expected: Array, bound: float) -> Payloads:
    """Writes what clients send, and what they are to get: FP32 [messages, width]."""
    requests = directory / "requests"
    requests.mkdir(parents=True)
    for number, message in enumerate(messages):
        (requests / f"{number:02}").write_bytes(message)
    np.save(directory / "expected.npy", expected)
    return Payloads(requests, directory / "expected.npy", bound)


def write_model(repository: Path, name: str, model: Path, configuration: str) -> None:
    """A repository of this model; configuration: its model.toml. The file itself is not copied."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").symlink_to(model.resolve())
    (version.parent / "model.toml").write_text(configuration)


def payloads_of(context: Context, name: str, output: str, count: int = 16) -> Payloads:
    """Requests of one row each to a model of speed_models, and the rows of that output by FP32 on the processor."""
    from gpu_check.agreement import BOUNDS
    from gpu_check.sessions import on_cpu

    feeds = context.sizes.feeds(name, count)
    rows = [{key: array[at : at + 1] for key, array in feeds.items()} for at in range(count)]
    reference = name.replace("fp16", "fp32")  # of which the processor is quicker, and exact
    (want,) = on_cpu(context.model(reference), feeds, [output])
    bound = BOUNDS["int8" if "int8" in name else "fp16"]
    return write_payloads(context.scratch / "payloads", [request(name, row, (output,)) for row in rows], want, bound)


@contextmanager
def serving(repository: Path, scratch: Path, workers: int = 0) -> Iterator[Running]:
    """Runs the server for the length of the block. workers: processes that receive for it (grpc_workers).

    Raises Failed, with the end of its log, if it does not get ready, a model of the repository was not loaded, or it
    does not end with 0 when it is asked to stop; and has a Failed of the block's own end with that too.
    """
    grpc_port, http_port = free_ports(2)
    flags = {"grpc-port": grpc_port, "http-port": http_port, "grpc-workers": workers}
    log = scratch / "server.log"
    code = "import sys; from headrace.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "serve", "--model-repository", str(repository), "--host", "127.0.0.1"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *(f"--{key}={value}" for key, value in flags.items())],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        running = Running(f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{http_port}", process.pid, log)
        _await_ready(process, running)
        for model in repository.iterdir():
            if not is_ready(running, model.name):
                raise Failed(f"{model.name} was not loaded:\n{_end_of(log)}")
        try:
            yield running
        except Failed as failed:
            raise Failed(f"{failed}; the server's last words:\n{_end_of(log)}", failed.figures) from failed
        if process.poll() is not None:
            raise Failed(f"the server ended under load with {process.returncode}:\n{_end_of(log)}")
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.returncode:
        raise Failed(f"asked to stop, the server ended with {process.returncode}:\n{_end_of(log)}")


def _await_ready(process: subprocess.Popen[bytes], server: Running) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not _is_ready(f"{server.http}/v2/health/ready"):
        if process.poll() is not None:
            raise Failed(f"the server ended with {process.returncode}:\n{_end_of(server.log)}")
        if time.monotonic() > deadline:
            raise Failed(f"the server was not ready within {READY_SECONDS} s:\n{_end_of(server.log)}")
        time.sleep(0.1)


def is_ready(server: Running, model: str) -> bool:
    """Whether the server says that it serves the model."""
    return _is_ready(f"{server.http}/v2/models/{model}/ready")


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:]


def request(model: str, feeds: Mapping[str, Array], outputs: tuple[str, ...]) -> bytes:
    """A serialized ModelInferRequest."""
    message = pb.ModelInferRequest(model_name=model, id="1")
    for name, array in feeds.items():
        tensor = message.inputs.add(name=name, datatype=DATATYPES[array.dtype.name])
        tensor.shape.extend(array.shape)
        message.raw_input_contents.append(array.tobytes())
    for name in outputs:
        message.outputs.add(name=name)
    serialized: bytes = message.SerializeToString()
    return serialized


def ask(address: str, message: bytes) -> Array:
    """The first output (FP32) of the reply to a serialized request. Raises grpc.RpcError."""
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        reply = pb.ModelInferResponse.FromString(channel.unary_unary(METHOD, bytes, bytes)(message, timeout=60))
    return np.frombuffer(reply.raw_output_contents[0], np.float32).reshape(reply.outputs[0].shape)


def metrics(http: str) -> str:
    """What /metrics says."""
    with urllib.request.urlopen(f"{http}/metrics", timeout=10) as reply:
        text: str = reply.read().decode()
    return text


def successes(http: str, model: str) -> int:
    """Requests that the server says it has answered with success, since it started."""
    with urllib.request.urlopen(f"{http}/v2/models/{model}/stats", timeout=10) as reply:
        stats = json.load(reply)["model_stats"]
    return sum(int(entry["inference_stats"]["success"]["count"]) for entry in stats)


def load(
    server: Running, model: str, payloads: Payloads, *, processes: int, in_flight: int, seconds: float
) -> dict[str, Any]:
    """Puts `in_flight` requests at a time on the server, spread over processes, and returns figures.

    Raises Failed if a request failed, a reply was not that of its request, or the server counted others than the
    clients.
    """
    command = [
        sys.executable,
        "-m",
        "gpu_check.client",
        "--address",
        server.address,
        "--payloads",
        str(payloads.directory),
    ]
    command += ["--expected", str(payloads.expected), "--bound", str(payloads.bound)]
    command += ["--in-flight", str(-(-in_flight // processes)), "--seconds", str(seconds)]
    before = successes(server.http, model)
    with ExitStack() as stack:
        children = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(processes)
        ]
        for child in children:
            if child.stdout is None or child.stdout.readline().strip() != "ready":
                raise Failed("a client did not get ready; its words are above")
        cpu = cpu_seconds(server.pid)
        for child in children:
            _write(child, "go\n")
        reports = [json.loads(child.communicate(timeout=seconds + 120)[0]) for child in children]
        cpu = cpu_seconds(server.pid) - cpu
    if errors := [text for report in reports for text in report["errors"]]:
        raise Failed(f"{len(errors)} requests failed, the first with: {errors[0][:500]}")
    compared, wrong = (sum(report[name] for report in reports) for name in ("compared", "wrong"))
    error = max(report["error"] for report in reports)
    if wrong or not compared:
        raise Failed(f"{wrong} of {compared} replies that were compared are not those of their requests: {error:.3g}")
    replies = sum(report["replies"] for report in reports)
    if (counted := successes(server.http, model) - before) != replies:
        raise Failed(f"the server counted {counted} replies, the clients {replies}")
    return {
        "requests_per_second": sum(report["replies"] / report["seconds"] for report in reports),
        "p50_us": float(np.median([report["p50_us"] for report in reports])),
        "p99_us": max(report["p99_us"] for report in reports),
        "compared": compared,
        "error": error,
        "cpu_us_per_request": cpu / replies * 1e6,
        "rss_mib": rss_mib(server.pid),
    }


def _write(child: subprocess.Popen[str], text: str) -> None:
    if child.stdin is not None:
        child.stdin.write(text)
        child.stdin.flush()
