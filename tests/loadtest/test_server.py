import ssl
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from compare.collector import collecting
from compare.figures import Unmeasured
from compare.launch import free_ports
from compare.server import Setup
from headrace.drift.reference import read_reference
from headrace.repository.model_config import load_model_config
from headrace.repository.schema_config import read_schema

SETUP = Setup(Path("/peers"), ("headrace",), Path("/loadtest/peers/triton"), Path("/scratch"))


def test_servers_start_on_loopback_with_defaults():
    ports = ["--host", "127.0.0.1", "--grpc-port", "1", "--http-port", "2"]
    native = ["headrace", "serve", "--model-repository", "/peers/headrace", *ports]
    assert SETUP.command("headrace", 1, 2, 3) == native
    assert SETUP.command("reference", 1, 2, 3) == [*native, "--transport", "reference"]
    assert SETUP.command("tls", 1, 2, 3) == [*native, "--tls-certificate", "/scratch/server.pem"]
    assert SETUP.command("ruled", 1, 2, 3)[3] == "/scratch/ruled"
    assert SETUP.command("watched", 1, 2, 3)[3] == "/scratch/watched"
    assert SETUP.command("triton", 1, 2, 3) == (
        ["/loadtest/peers/triton", "--grpc-port", "1", "--http-port", "2", "--metrics-port", "3"]
    )
    assert SETUP.command("fastapi", 1, 2, 3) == (
        ["/peers/fastapi/bin/python", "/loadtest/peers/fastapi_endpoint.py", "/peers/models", "--port", "2"]
    )


def test_a_server_may_have_another_repository():
    setup = replace(SETUP, repositories={"headrace": Path("/wide"), "triton": Path("/other")})
    assert setup.command("headrace", 1, 2, 3)[3] == "/wide"
    assert setup.command("reference", 1, 2, 3)[3] == "/peers/headrace"
    assert setup.command("triton", 1, 2, 3) == [*SETUP.command("triton", 1, 2, 3), "--model-repository=/other"]


def test_settings_of_the_shell_do_not_reach_a_server_under_test(monkeypatch):
    monkeypatch.setenv("HEADRACE_LOG_LEVEL", "debug")
    monkeypatch.setenv("HEADRACE_PEERS", "/elsewhere")
    monkeypatch.setenv("KEPT", "1")
    assert SETUP.environment("headrace")["KEPT"] == "1"
    assert not any(name.startswith("HEADRACE_") for name in SETUP.environment("headrace"))
    assert SETUP.environment("triton")["HEADRACE_PEERS"] == "/peers"


def test_the_certificate_is_for_loopback(tmp_path):
    setup = Setup(Path("/peers"), ("headrace",), Path("/loadtest/peers/triton"), tmp_path)
    setup.make_certificate()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(setup.certificate)
    assert len(ssl.create_default_context(cafile=setup.ca).get_ca_certs()) == 1


def test_the_model_with_rules_has_one_for_each_feature(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/tab.onnx").write_bytes(b"model")
    setup = Setup(tmp_path, ("headrace",), Path("/loadtest/peers/triton"), tmp_path / "scratch")
    setup.make_ruled()
    version = setup.ruled / "tab/1"
    assert (version / "model.onnx").read_bytes() == b"model"
    rules = read_schema(version).inputs["INPUT"]
    assert (rules.finite, len(set(rules.min)), len(set(rules.max)), rules.policy) == (True, 32, 32, {})


def test_the_model_that_is_watched_has_a_reference_for_each_feature(tmp_path, identity):
    (tmp_path / "models").mkdir()
    identity.rename(tmp_path / "models/tab.onnx")
    command = (sys.executable, "-m", "headrace")
    setup = Setup(tmp_path, command, Path("/loadtest/peers/triton"), tmp_path / "scratch")
    setup.make_watched()
    setup.make_watched()  # for the next round
    assert "[drift.inputs.INPUT]" in (setup.watched / "tab/model.toml").read_text()
    plan, summary = read_reference(setup.watched / "tab/1/drift.json").tensors["inputs.INPUT"]
    assert (len(plan.watch.features), summary.rows) == (32, 5000)
    with pytest.raises(Unmeasured, match="no reference could be made"):
        Setup(tmp_path, (*command, "nonsense"), Path("/loadtest/peers/triton"), tmp_path / "scratch").make_watched()


def test_the_guarded_model_has_a_reference(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mid.onnx").write_bytes(b"model")
    setup = Setup(tmp_path, ("headrace",), Path("/loadtest/peers/triton"), tmp_path / "scratch")
    setup.make_guarded()
    setup.make_guarded()  # for the next round
    assert [file.read_bytes() for file in setup.guarded.glob("mid/*/model.onnx")] == [b"model"] * 2
    guard = load_model_config(setup.guarded / "mid/model.toml").guard
    assert (guard.reference, guard.share, guard.cpu_budget) == (1, 0.01, 0.03)
    assert setup.command("guarded", 1, 2, 3)[3] == str(tmp_path / "scratch/guarded")


def test_a_collector_counts_what_opentelemetry_exports():
    with collecting() as collector:
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(collector.url, insecure=True)))
        provider.get_tracer("test").start_span("one").end()
        provider.shutdown()
    assert collector.exports == 1


def test_free_ports_differ():
    assert len(set(free_ports(3))) == 3
