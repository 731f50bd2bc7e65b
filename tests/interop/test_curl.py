"""curl: REST in both forms, and what it is told where it speaks to the wrong port."""

import gzip
import json
import shutil
import struct

import pytest
from interop.peers import needs, run

CURL = shutil.which("curl")
pytestmark = needs(CURL)
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}


def curl(*arguments):
    """(status, HTTP version, content type, body) of one request."""
    form = "\n%{http_code} %{http_version} %{content_type}"
    text, _, told = run(CURL, "-sS", "--max-time", 20, "-w", form, *arguments).rpartition("\n")
    status, version, kind = told.split(" ", 2)
    return int(status), version, kind, text


def infer(server, *arguments, model="echo_fp32"):
    return curl(*arguments, f"{server.http}/v2/models/{model}/infer")


def test_json(server):
    status, version, kind, body = infer(server, "-d", json.dumps(BODY))
    assert (status, version, kind) == (200, "1.1", "application/json")
    assert json.loads(body)["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}
    ]


def test_binary(server, tmp_path):
    header = {
        "id": "7",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    text, values = json.dumps(header).encode(), struct.pack("<4f", 1, 2, 3, 4)
    sent, got, fields = tmp_path / "sent", tmp_path / "got", tmp_path / "fields"
    sent.write_bytes(text + values)
    length = f"Inference-Header-Content-Length: {len(text)}"
    status, _, kind, _ = infer(server, "--data-binary", f"@{sent}", "-H", length, "-o", got, "-D", fields)
    assert (status, kind) == (200, "application/octet-stream")
    told = dict(line.lower().split(": ", 1) for line in fields.read_text().splitlines() if ": " in line)
    size = int(told["inference-header-content-length"])
    body = got.read_bytes()
    reply = json.loads(body[:size])
    assert (reply["id"], reply["outputs"][0]["parameters"], body[size:]) == ("7", {"binary_data_size": 16}, values)


def test_octets_alone(server, tmp_path):
    sent, got = tmp_path / "sent", tmp_path / "got"
    sent.write_bytes(struct.pack("<8f", *range(8)))
    status, *_ = infer(
        server, "--data-binary", f"@{sent}", "-H", "Inference-Header-Content-Length: 0", "-o", got
    )  # fmt: skip
    assert (status, got.read_bytes()[-32:]) == (200, sent.read_bytes())


def test_gzip_both_ways(server, tmp_path):
    rows = [float(number) for number in range(4 * 500)]
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [500, 4], "data": rows}]}
    sent, fields = tmp_path / "sent", tmp_path / "fields"
    sent.write_bytes(gzip.compress(json.dumps(body).encode()))
    status, _, _, text = infer(
        server, "--data-binary", f"@{sent}", "-H", "Content-Encoding: gzip", "-D", fields, "--compressed",
        "-H", "Accept-Encoding: gzip",
    )  # fmt: skip
    assert (status, json.loads(text)["outputs"][0]["data"]) == (200, rows)
    assert "content-encoding: gzip" in fields.read_text().lower()


def test_errors(server):
    status, _, kind, body = infer(server, "-d", json.dumps(BODY), model="nobody")
    assert (status, kind) == (404, "application/json")
    assert json.loads(body) == {"error": "Request for unknown model: 'nobody' is not found"}
    assert curl("-X", "DELETE", f"{server.http}/v2")[0] == 405


def test_state(server):
    for path in ("live", "ready"):
        assert curl(f"{server.http}/v2/health/{path}")[0] == 200
    metadata = json.loads(curl(f"{server.http}/v2/models/pair")[3])
    assert [one["name"] for one in metadata["inputs"]] == ["a", "b"]


@pytest.mark.parametrize(("method", "status"), [("GET", 405), ("POST", 415)])
def test_http2_to_the_grpc_port_is_refused_cleanly(server, method, status):
    """It is an HTTP/2 server, but not one of this protocol."""
    url = f"http://{server.address}/v2/health/live"
    if server.transport == "reference":
        pytest.skip("grpcio's own answer")
    told = curl("--http2-prior-knowledge", "-X", method, url)
    text = "This is a gRPC server: expected POST with content-type application/grpc."
    assert (*told[:3], told[3].strip()) == (status, "2", "text/plain", text)
