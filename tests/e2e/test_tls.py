"""TLS and mutual TLS from outside, with the clients that people use, on both transports."""

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import urllib.error

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from e2e.calls import SECONDS, failure, floats, occupy, output, request, tensor
from e2e.gated import HELD, write_gated
from e2e.onnx_models import WIDTH, scale, wide, write
from e2e.server_process import HEADRACE, eventually, plain_environment
from grpc import StatusCode
from transport.tls.certificates import OTHERS, OURS, client_context, issue
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from compare.clients import Load, h2load_command, parse_h2load

LARGE = 5 << 20
"""Elements of a tensor of 20 MB."""


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "models"
    write(root, "one", scale(2, "N", 4))
    write(root, "large", scale(2, "N", "D"))
    write(root, "wide", wide(), "max_batch = 2")
    return root


@pytest.fixture
def files(tmp_path):
    return issue(tmp_path, "server")


@pytest.fixture
def shown(tmp_path):
    """A client certificate."""
    return issue(tmp_path, "client", "client@example.org")


@pytest.fixture
def server(serve, repository, files):
    return serve(repository, *files.flags(), context=client_context(alpn=()))


@pytest.fixture
def mutual(serve, repository, files, shown):
    flags = [*files.flags(), "--tls-client-ca", files.ca]
    return serve(repository, *flags, context=client_context(shown, alpn=()))


def stub(address, files, shown=None, *, trusts=OURS):
    """The RPCs, on a channel of their own; closed with the process."""
    credentials = grpc.ssl_channel_credentials(
        trusts.cert_pem.bytes(), shown and shown.key.read_bytes(), shown and shown.chain.read_bytes()
    )
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    return service_pb2_grpc.GRPCInferenceServiceStub(grpc.secure_channel(address, credentials, options))


def works(calls):
    reply = calls.ModelInfer(request("one", x=np.ones((1, 4), np.float32)), timeout=SECONDS)
    return output(reply).tolist() == [[2, 2, 2, 2]]


def command(*words):
    done = subprocess.run(
        [*map(str, words)], capture_output=True, text=True, timeout=60, check=False, env=plain_environment()
    )
    return done.returncode, done.stdout, done.stderr


# --- clients that get in ----------------------------------------------------------------------------------------------


def test_tritonclient(server, files):
    with triton.InferenceServerClient(server.address, ssl=True, root_certificates=str(files.ca)) as client:
        assert client.is_server_ready(client_timeout=SECONDS)
        reply = client.infer("one", [tensor("x", floats((1, 2, 3, 4)))], client_timeout=SECONDS)
        assert reply.as_numpy("y").tolist() == [[2, 4, 6, 8]]


def test_tritonclient_with_a_certificate(mutual, files, shown):
    identity = {"private_key": str(shown.key), "certificate_chain": str(shown.chain)}
    with triton.InferenceServerClient(mutual.address, ssl=True, root_certificates=str(files.ca), **identity) as client:
        assert client.is_server_ready(client_timeout=SECONDS)


def test_grpcio_and_https(mutual, files, shown):
    assert works(stub(mutual.address, files, shown))
    assert mutual.get_json("/v2/health/ready") == (200, {"ready": True})
    assert mutual.stop() == 0


def test_the_command_line(mutual, files, shown):
    identity = ("--ca", files.ca, "--certificate", shown.chain, "--key", shown.key)
    code, out, err = command(HEADRACE, "models", "--url", mutual.address, *identity)
    assert (code, err) == (0, "")
    assert "one" in out
    code, out, _ = command(HEADRACE, "infer", "one", "--url", mutual.address, *identity, "--input", "x=[1, 2, 3, 4]")
    assert code == 0
    code, _, err = command(HEADRACE, "models", "--url", mutual.address, "--timeout-ms", 3000)
    assert code == 1
    assert "headrace: UNAVAILABLE: " in err
    record = (
        HEADRACE,
        "record",
        "one",
        "--url",
        mutual.http,
        "--output",
        files.key.with_name("r.npz"),
        "--ca",
        files.ca,
    )
    code, _, err = command(*record)
    assert code == 2
    assert "certificate" in err.lower()
    assert works(stub(mutual.address, files, shown))
    assert command(*record, "--certificate", shown.chain, "--key", shown.key)[0] == 0
    for flags in (("--key", shown.key), ("--certificate", files.chain, "--key", shown.key)):
        assert command(*record, *flags)[0] == 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl(mutual, files, shown):
    trust = ("curl", "-sS", "--max-time", SECONDS, "--cacert", files.ca)
    code, out, err = command(*trust, "--cert", shown.chain, "--key", shown.key, mutual.http + "/v2/health/ready")
    assert (code, out) == (0, '{"ready":true}'), err
    code, _, err = command(*trust, mutual.http + "/v2/health/ready")
    assert code != 0
    assert "certificate required" in err


@pytest.mark.skipif(shutil.which("h2load") is None, reason="no h2load")
def test_h2load(server, tmp_path):
    message = request("one", id="1", x=np.ones((1, 4), np.float32)).SerializeToString()
    payload = tmp_path / "message"
    payload.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    code, out, _ = command(*h2load_command(Load("h2load", "one", 16, 4, tls=True), 1000, server.address, payload))
    report = parse_h2load(out)
    assert (code, report.requests, report.failed) == (0, 1000, 0)


def test_large_messages(server, files):
    """Both ways, 20 MB."""
    calls = stub(server.address, files)
    values = np.arange(LARGE, dtype=np.float32)[np.newaxis]
    reply = calls.ModelInfer(request("large", x=values), timeout=3 * SECONDS)
    assert (output(reply) == 2 * values).all()


def test_a_client_that_does_not_read(server, files):
    """It stops reading in the middle of many large replies; others are served; then it misses nothing."""
    lazy = stub(server.address, files)
    replies = [lazy.ModelInfer.future(request("wide", x=floats(n)), timeout=3 * SECONDS) for n in range(20)]
    other = stub(server.address, files)
    for _ in range(10):
        assert works(other)
    for number, reply in enumerate(replies):
        got = output(reply.result())
        assert got.shape == (1, WIDTH)
        assert (got == number).all()


# --- clients that do not ----------------------------------------------------------------------------------------------


def refused(calls):
    return failure(calls.ServerLive, pb.ServerLiveRequest()).code is StatusCode.UNAVAILABLE


def test_who_is_refused(mutual, files, shown, tmp_path):
    """Without a certificate, with one of somebody else's, in plain text; and who does not trust the server leaves."""
    foreign = issue(tmp_path, "foreign", "foreign@example.org", by=OTHERS)
    assert refused(stub(mutual.address, files))
    assert refused(stub(mutual.address, files, foreign))
    assert refused(stub(mutual.address, files, shown, trusts=OTHERS))
    with grpc.insecure_channel(mutual.address) as channel:
        assert refused(service_pb2_grpc.GRPCInferenceServiceStub(channel))
    for context in (client_context(alpn=()), client_context(foreign, alpn=())):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            index(mutual, context)
    assert works(stub(mutual.address, files, shown))
    reasons = ["no_client_certificate", "client_certificate"]
    for port in ("grpc", "http") if mutual.transport == "native" else ("http",):
        for reason in reasons:
            assert mutual.metric("headrace_tls_handshake_failures_total", port=port, reason=reason) >= 1
    assert mutual.log.count("a TLS handshake failed") <= 6
    assert "Traceback" not in mutual.log
    assert "PRIVATE" not in mutual.log


def index(server, context):
    with https(server, context) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        return client.recv(100)


@contextlib.contextmanager
def https(server, context, port=None):
    """A TLS connection to a port; by default the HTTP one."""
    plain = socket.create_connection(("127.0.0.1", port or int(server.http.rpartition(":")[2])), SECONDS)
    with plain, context.wrap_socket(plain, server_hostname="localhost") as secure:
        yield secure


def test_plain_http(server):
    server.http = server.http.replace("https", "http")
    assert server.get("/v2/health/live") == (400, "this port speaks TLS\n")


def test_no_alpn_on_the_grpc_port(server):
    """Whoever does not offer HTTP/2 there is let go without a reset."""
    with contextlib.suppress(ConnectionError), https(server, client_context(alpn=("http/1.1",)), server.port) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.recv(100) == b""


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_tls_11_is_refused(server):
    context = client_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    for port in (server.port, None):
        with pytest.raises(ssl.SSLError), https(server, context, port):
            pass
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("DEFAULT")
    for port in (server.port, None):
        with https(server, context, port) as client:
            assert client.version() == "TLSv1.2"


def test_an_optional_certificate(serve, transport, repository, files, shown, tmp_path):
    flags = [*files.flags(), "--tls-client-ca", files.ca, "--tls-client-certificates", "optional"]
    if transport == "reference":
        code, _, err = command(HEADRACE, "serve", "--transport", transport, *flags)
        assert (code, err) == (
            2, 'headrace: transport = "reference": grpcio cannot do what tls.client_certificates asks for\n'
        )  # fmt: skip
        return
    server = serve(repository, *flags, context=client_context(alpn=()))
    assert works(stub(server.address, files))
    assert works(stub(server.address, files, shown))
    foreign = issue(tmp_path, "foreign", "foreign@example.org", by=OTHERS)
    assert refused(stub(server.address, files, foreign))
    assert server.get_json("/v2/health/ready") == (200, {"ready": True})


# --- reload -----------------------------------------------------------------------------------------------------------


def certificate_of(server, port=None):
    with https(server, client_context(), port) as client:
        return client.getpeercert(binary_form=True)


@pytest.mark.parametrize("how", ["SIGHUP", "watched"])
def test_a_new_certificate(serve, repository, files, how):
    """New connections get it; calls on old ones go on; a pair that is no good is not taken."""
    reload_s = 0 if how == "SIGHUP" else 0.05
    server = serve(repository, *files.flags(), "--tls-reload-s", reload_s, context=client_context(alpn=()))

    def tell():
        if how == "SIGHUP":
            server.signal(signal.SIGHUP)

    old = stub(server.address, files)
    assert works(old)
    first = certificate_of(server), certificate_of(server, server.port)
    assert first[0] == first[1]
    stop, count = threading.Event(), []

    def call():
        while not stop.is_set():
            count.append(works(old))

    caller = threading.Thread(target=call)
    caller.start()
    key = files.key.read_bytes()
    files.key.write_text("-----BEGIN PRIVATE KEY-----\n")
    tell()
    server.await_log(lambda line: "those in use stay: tls.certificate" in line)
    assert certificate_of(server) == first[0]
    files.key.write_bytes(key)

    issue(files.chain.parent, "server")
    tell()
    eventually(lambda: certificate_of(server) != first[0])
    eventually(lambda: certificate_of(server, server.port) != first[0])
    assert works(stub(server.address, files))
    done = len(count)
    eventually(lambda: len(count) > done)
    stop.set()
    caller.join()
    assert all(count)
    assert server.metric("headrace_tls_reloads_total", result="done") >= 1
    assert server.metric("headrace_tls_reloads_total", result="failed") >= 1
    assert server.stop() == 0
    assert "PRIVATE" not in server.log


def test_a_link_that_is_turned(serve, repository, files, tmp_path):
    """As Kubernetes renews a secret: the files are links through a directory that is exchanged as a whole."""
    for directory in (tmp_path / "..1", tmp_path / "..2"):
        directory.mkdir()
        issue(directory, "tls")
    (tmp_path / "..data").symlink_to("..1")
    flags = ["--tls-certificate", tmp_path / "..data/tls.pem", "--tls-key", tmp_path / "..data/tls-key.pem"]
    server = serve(repository, *flags, "--tls-reload-s", 0.05, context=client_context(alpn=()))
    first = certificate_of(server)
    (tmp_path / "..next").symlink_to("..2")
    os.replace(tmp_path / "..next", tmp_path / "..data")
    eventually(lambda: certificate_of(server, server.port) != first)


# --- drain ------------------------------------------------------------------------------------------------------------


def test_drain(serve, transport, tmp_path, files):
    """What was accepted is answered; an idle client and one in the middle of its handshake hold nothing up for long."""
    repository = tmp_path / "gated"
    write_gated(repository, "slow")
    flags = [*files.flags(), "--inline-below-us", 0]
    if transport == "reference":  # which waits for handshakes
        flags += ["--tls-handshake-timeout-s", 1]
    server = serve(repository, *flags, context=client_context(alpn=()))
    calls = stub(server.address, files)
    calls.ServerLive(pb.ServerLiveRequest(), timeout=SECONDS)  # connected, so that calls leave in their order
    with socket.create_connection(("127.0.0.1", server.port)) as half, https(server, client_context(), server.port):
        half.sendall(b"\x16\x03\x01\x02\x00\x01")
        call = occupy(server, calls, "slow", 3 * SECONDS)
        server.signal(signal.SIGTERM)
        server.await_log(lambda line: "draining for at most" in line)
        assert server.get_json("/v2/health/ready") == (503, {"ready": False})
        assert not call.done()
        assert output(call.result()).item() == HELD
        assert server.wait() == 0
    assert "cut off" not in server.log
    assert "Traceback" not in server.log


# --- settings ---------------------------------------------------------------------------------------------------------


def test_a_server_that_must_not_speak_plain_text(files):
    code, _, err = command(HEADRACE, "serve", "--host", "0.0.0.0", "--tls-require", "true")
    assert code == 2
    assert err.startswith('headrace: tls.require = true and host = "0.0.0.0": expected tls.certificate')


def test_files_that_do_not_belong_together(files, tmp_path):
    other = issue(tmp_path, "other")
    code, _, err = command(HEADRACE, "serve", "--tls-certificate", files.chain, "--tls-key", other.key)
    assert (code, err) == (
        2,
        f'headrace: tls.key = "{other.key}": is not the key of the certificate in {files.chain}\n',
    )


def test_one_port_alone(serve, repository, files):
    server = serve(repository, *files.flags(), "--tls-ports", "grpc")
    assert server.get_json("/v2/health/ready") == (200, {"ready": True})
    assert works(stub(server.address, files))
    assert "HTTP: plain text" in server.log
    with pytest.raises((urllib.error.URLError, ssl.SSLError)):
        certificate_of(server)
