"""The servers under test: started on free ports of loopback, awaited, stopped by their own process id."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import trustme

from compare.clients import pinned
from compare.collector import collecting
from compare.figures import Unmeasured
from compare.launch import free_ports
from compare.oip import ROWS, Client
from compare.rest import RestClient

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

READY_SECONDS = 90
STOP_SECONDS = 30

Kind = Literal[
    "headrace",
    "reference",
    "tls",
    "shared_memory",
    "explicit",
    "ruled",
    "watched",
    "guarded",
    "traced",
    "triton",
    "fastapi",
]
FLAGS = {
    "reference": ("--transport", "reference"),
    "shared_memory": ("--allow-client-shm", "true"),
    "explicit": ("--model-control-mode", "explicit", "--load-models", "*"),
}
"""What kinds of our own server are started with."""


@dataclass(frozen=True)
class Setup:
    """Where everything is, and how long to measure.

    peers: what loadtest/peers/setup made. headrace: the command up to `serve`. triton: the script that starts it.
    scratch: a directory for logs and messages. memory_requests: how many the memory row sends. repositories: others
    than those of the peers, by kind of server.
    """

    peers: Path
    headrace: tuple[str, ...]
    triton: Path
    scratch: Path
    seconds: float = 3
    memory_requests: int = 2_000_000
    repositories: Mapping[Kind, Path] = field(default_factory=dict)

    def model(self, name: str) -> Path:
        """The ONNX file that all servers serve."""
        return self.peers / "models" / f"{name}.onnx"

    def command(self, kind: Kind, grpc: int, http: int, metrics: int) -> list[str]:
        """What starts a server of this kind with every other setting at its default."""
        if kind == "fastapi":
            endpoint = self.triton.with_name("fastapi_endpoint.py")
            python = self.peers / "fastapi/bin/python"
            return [str(python), str(endpoint), str(self.peers / "models"), "--port", str(http)]
        if kind == "triton":
            ports = ["--grpc-port", str(grpc), "--http-port", str(http), "--metrics-port", str(metrics)]
            other = self.repositories.get(kind)
            return [str(self.triton), *ports, *([f"--model-repository={other}"] if other else [])]
        ports = ["--host", "127.0.0.1", "--grpc-port", str(grpc), "--http-port", str(http)]
        made: dict[Kind, Path] = {"ruled": self.ruled, "watched": self.watched, "guarded": self.guarded}
        repository = (made | dict(self.repositories)).get(kind, self.peers / "headrace")
        command = [*self.headrace, "serve", "--model-repository", str(repository), *ports]
        if kind == "tls":
            command += ["--tls-certificate", str(self.certificate)]
        return [*command, *FLAGS.get(kind, ())]

    @property
    def certificate(self) -> Path:
        """The file of the server's certificate and its key, which `make_certificate` writes."""
        return self.scratch / "server.pem"

    @property
    def ca(self) -> Path:
        """The file of the authority that signed it."""
        return self.scratch / "ca.pem"

    @property
    def ruled(self) -> Path:
        """The repository that `make_ruled` makes."""
        return self.scratch / "ruled"

    def make_ruled(self) -> None:
        """A repository with tab, whose 32 features have a range each and must be finite."""
        version = self._copy("tab", self.ruled)
        low, high = [-1e6 - feature for feature in range(32)], [1e6 + feature for feature in range(32)]
        rules = f"[inputs.INPUT]\nfinite = true\nmin = {low}\nmax = {high}\n"
        (version / "schema.toml").write_text(f'format = "headrace schema 1"\n{rules}')

    @property
    def watched(self) -> Path:
        """The repository that `make_watched` makes."""
        return self.scratch / "watched"

    def make_watched(self) -> None:
        """A repository with tab, whose 32 features are watched for drift, each against a reference of 5,000 rows."""
        version = self._copy("tab", self.watched)
        (version.parent / "model.toml").write_text("[drift.inputs.INPUT]\n")
        data = self.scratch / "training.npy"
        np.save(data, np.random.default_rng(0).random((5000, *ROWS["tab"]), np.float32))
        fit = [*self.headrace, "drift", "fit", str(version), "--input", f"INPUT={data}", "--force"]
        done = subprocess.run(fit, capture_output=True, text=True, timeout=READY_SECONDS, check=False)
        if done.returncode:
            raise Unmeasured(f"no reference could be made: {done.stderr.strip()}")

    @property
    def guarded(self) -> Path:
        """The repository that `make_guarded` makes."""
        return self.scratch / "guarded"

    def make_guarded(self) -> None:
        """A repository with mid twice, of which the second is compared with the first, by the guard's defaults."""
        version = self._copy("mid", self.guarded)
        self._copy("mid", self.guarded, 2)
        (version.parent / "model.toml").write_text('[guard]\nreference = 1\nkind = "classes"\n')

    def _copy(self, model: str, repository: Path, version: int = 1) -> Path:
        """The directory of a model's version in a repository of its own."""
        directory = repository / model / str(version)
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.model(model), directory / "model.onnx")
        return directory

    def make_certificate(self) -> None:
        """For loopback, by an authority of its own (ECDSA, P-256)."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca))
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(self.certificate))

    def environment(self, kind: Kind) -> dict[str, str]:
        """Ours without any setting of Headrace: it runs on its defaults. Triton's script needs to know its place."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        return plain | {"HEADRACE_PEERS": str(self.peers)} if kind == "triton" else plain


@dataclass(frozen=True)
class Running:
    """A server that said it was ready. pid: None when it is not ours and its processor time is unknown.

    address: of its gRPC port. ca: who signed its certificate, if it speaks TLS. http: address of the other port.
    """

    kind: str
    address: str
    pid: int | None
    version: str
    ca: Path | None = None
    http: str = ""


@contextmanager
def serving(kind: Kind, setup: Setup, model: str, pin: str | None = None) -> Iterator[Running]:
    """Runs a server for the length of the block. Raises Unmeasured, with its log's path, when it does not get ready."""
    more: list[str] = []
    collector = None
    with ExitStack() as stack:
        if kind == "tls":
            setup.make_certificate()
        elif kind == "ruled":
            setup.make_ruled()
        elif kind == "watched":
            setup.make_watched()
        elif kind == "guarded":
            setup.make_guarded()
        elif kind == "traced":
            collector = stack.enter_context(collecting())
            more = ["--tracing-endpoint", collector.url]
        running = stack.enter_context(_running(kind, setup, model, pin, more))
        yield running
        if kind == "guarded" and not _compared(running.http):
            raise Unmeasured("the guard has compared nothing")
    if collector is not None and not collector.exports:
        raise Unmeasured("the server has exported no traces")


def _compared(http: str) -> int:
    """Requests to mid that its guard has run on the reference as well."""
    with urllib.request.urlopen(f"http://{http}/v2/models/mid/guard", timeout=STOP_SECONDS) as reply:
        return int(json.load(reply)["requests"])


@contextmanager
def _running(kind: Kind, setup: Setup, model: str, pin: str | None, more: list[str]) -> Iterator[Running]:
    grpc, http, metrics = free_ports(3)
    ca = setup.ca if kind == "tls" else None
    log = setup.scratch / f"{kind}-{grpc}.log"
    with log.open("wb") as out:
        try:
            process = subprocess.Popen(
                pinned([*setup.command(kind, grpc, http, metrics), *more], pin),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=setup.environment(kind),
                start_new_session=True,
            )
        except OSError as error:
            raise Unmeasured(f"{kind} could not be started: {error}") from error
    try:
        address, http_address = f"127.0.0.1:{grpc}", f"127.0.0.1:{http}"
        version = "unknown"
        if ca is None:  # Triton's HTTP port comes after the other
            with RestClient(http_address, "json") as rest:
                _await_ready(process, rest, model, log)
        if kind != "fastapi":
            with Client(address, ca) as client:
                _await_ready(process, client, model, log)
                version = client.version()
        running = Running(kind, address, process.pid, version, ca, http_address)
        yield running
        if process.poll() is not None:
            raise Unmeasured(f"{kind} ended under load with {process.returncode}; its log: {log}")
    finally:
        _stop(process)


def _await_ready(process: subprocess.Popen[bytes], client: Client | RestClient, model: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not client.ready(model):
        if process.poll() is not None:
            raise Unmeasured(f"the server ended at once with {process.returncode}; its log: {log}")
        if time.monotonic() > deadline:
            raise Unmeasured(f"the server was not ready within {READY_SECONDS} s; its log: {log}")
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then, for one that does not end, SIGKILL to the process group that was made for it."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
