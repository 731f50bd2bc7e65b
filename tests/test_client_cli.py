import json
import re
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from transport.tls.certificates import issue

from headrace.cli import main
from headrace.rpc import inference_pb2 as pb


class Server(grpc.GenericRpcHandler):
    """A server with one model, `double`, that remembers what it was asked."""

    def __init__(self):
        self.requests = []

    def service(self, details):
        name = details.method.rpartition("/")[2]
        return grpc.unary_unary_rpc_method_handler(
            getattr(self, name),
            request_deserializer=getattr(pb, f"{name}Request").FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def ModelMetadata(self, request, context):  # noqa: N802 - the names are the protocol's
        if request.name != "double":
            context.set_trailing_metadata([("headrace-reason", "model_not_found")])
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        response = pb.ModelMetadataResponse(name="double", versions=["3"], platform="onnxruntime_onnx")
        response.inputs.add(name="x", datatype="FP32", shape=[-1, 2])
        response.inputs.add(name="t", datatype="BYTES", shape=[-1, 1])
        response.outputs.add(name="y", datatype="FP32", shape=[-1, 2])
        response.outputs.add(name="t2", datatype="BYTES", shape=[-1, 1])
        return response

    def ModelConfig(self, request, context):  # noqa: N802
        response = pb.ModelConfigResponse()
        response.config.max_batch_size = 64
        response.config.backend = "onnxruntime"
        return response

    def RepositoryIndex(self, request, context):  # noqa: N802
        response = pb.RepositoryIndexResponse()
        response.models.add(name="broken", version="", state="UNAVAILABLE", reason="model.toml:\nunknown key 'a'")
        response.models.add(name="double", version="3", state="READY")
        return response

    def ModelInfer(self, request, context):  # noqa: N802
        self.requests.append(request)
        response = pb.ModelInferResponse(model_name="double", model_version="3")
        x = np.frombuffer(request.raw_input_contents[0], np.float32)
        response.outputs.add(name="y", datatype="FP32", shape=request.inputs[0].shape)
        response.raw_output_contents.append((2 * x).tobytes())
        response.outputs.add(name="t2", datatype="BYTES", shape=[1, 1])
        response.raw_output_contents.append(b"\3\0\0\0\xe2\x82\xac")
        for key, value in {"decode_us": 4, "queue_us": 300, "execute_us": 20, "total_us": 324, "batch_rows": 7}.items():
            response.parameters[f"headrace_{key}"].int64_param = value
        response.parameters["headrace_close_reason"].string_param = "idle"
        response.parameters["other"].string_param = "not ours"
        return response


@pytest.fixture(scope="module")
def server():
    handler = Server()
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, handlers=[handler])
        handler.url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield handler
        server.stop(None).wait()


@pytest.fixture
def infer(server):
    server.requests.clear()

    def infer(*arguments, model="double"):
        return main(["infer", model, "--url", server.url, *arguments])

    return infer


def test_infer_sends_what_was_typed(infer, server):
    assert infer("--input", "x=[1, 2.5]", "--input", 't=[["a"]]', "--version", "3", "--outputs", "y,t2") == 0
    (request,) = server.requests
    assert (request.model_name, request.model_version) == ("double", "3")
    assert [(i.name, i.datatype, list(i.shape)) for i in request.inputs] == [
        ("x", "FP32", [1, 2]),
        ("t", "BYTES", [1, 1]),
    ]
    assert list(request.raw_input_contents) == [np.array([1, 2.5], "<f4").tobytes(), b"\1\0\0\0a"]
    assert [output.name for output in request.outputs] == ["y", "t2"]
    assert request.parameters["headrace_timing"].bool_param


def test_infer_sends_parameters(infer, server):
    typed = {"sequence_id": "7", "sequence_start": "true", "half": "0.5", "who": "me", "number": '"8"', "empty": ""}
    flags = [part for name, value in typed.items() for part in ("--parameter", f"{name}={value}")]
    assert infer("--input", "x=[1, 2]", *flags) == 0
    sent = server.requests[0].parameters
    assert (sent["sequence_id"].int64_param, sent["sequence_start"].bool_param) == (7, True)
    assert sent["half"].double_param == 0.5
    assert [sent[name].string_param for name in ("who", "number", "empty")] == ["me", "8", ""]


def test_infer_prints_outputs_and_timing(infer, capsys):
    assert infer("--input", "x=[1, 2.5]") == 0
    assert (
        capsys.readouterr().out
        == """\
double, version 3

y  FP32[1, 2]
[[2. 5.]]

t2  BYTES[1, 1]
[['\u20ac']]

timing
  decode           4 us
  queue          300 us
  execute         20 us
  total          324 us
  batch rows: 7, close reason: idle
"""
    )


def test_infer_as_json(infer, capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.array([[1, 2], [3, 4]], np.float64))
    assert infer("--input", f"x={tmp_path / 'x.npy'}", "--json") == 0
    reply = json.loads(capsys.readouterr().out)
    assert reply["outputs"][0] == {"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [[2, 4], [6, 8]]}
    assert reply["outputs"][1]["data"] == [["\u20ac"]]
    assert (reply["model_name"], reply["model_version"]) == ("double", "3")
    assert reply["timing"]["queue_us"] == 300
    assert reply["timing"]["close_reason"] == "idle"
    assert "other" not in reply["timing"]


def test_a_refusal_is_one_line_with_status_and_reason(infer, capsys):
    assert infer("--input", "x=[1, 2]", model="nope") == 1
    captured = capsys.readouterr()
    assert captured.err == "headrace: NOT_FOUND: Request for unknown model: 'nope' is not found (model_not_found)\n"
    assert captured.out == ""


def test_no_server_is_one_line(capsys):
    assert main(["models", "--url", "127.0.0.1:1", "--timeout-ms", "5000"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("headrace: UNAVAILABLE: ")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Certificates: server, and client."""
    directory = tmp_path_factory.mktemp("certificates")
    return issue(directory, "server"), issue(directory, "client", "client@example.org")


@pytest.fixture(scope="module")
def mutual(files):
    """The same server over mutual TLS."""
    ours, _ = files
    handler = Server()
    pair = (ours.key.read_bytes(), ours.chain.read_bytes())
    credentials = grpc.ssl_server_credentials([pair], ours.ca.read_bytes(), require_client_auth=True)
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, handlers=[handler])
        handler.url = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
        server.start()
        yield handler
        server.stop(None).wait()


@pytest.mark.parametrize("name", [(), ("--server-name", "localhost"), ("--tls",)])
def test_mutual_tls(mutual, files, capsys, name, tmp_path):
    ours, client = files
    trust = ["--url", mutual.url, "--ca", str(ours.ca), *name]
    assert main(["models", *trust, "--certificate", str(client.chain), "--key", str(client.key)]) == 0
    both = tmp_path / "both.pem"
    both.write_bytes(client.key.read_bytes() + client.chain.read_bytes())
    assert main(["models", *trust, "--certificate", str(both)]) == 0
    assert "double" in capsys.readouterr().out


def test_a_server_that_is_not_trusted(mutual, files, capsys):
    """By its authority, by its name; without a certificate of the client's; in plain text."""
    ours, client = files
    shown = ["--certificate", str(client.chain), "--key", str(client.key)]
    for flags in (
        ["--tls", *shown],
        ["--ca", str(ours.ca), "--server-name", "example.org", *shown],
        ["--ca", str(ours.ca)],
        [],
    ):
        assert main(["models", "--url", mutual.url, "--timeout-ms", "5000", *flags]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("headrace: UNAVAILABLE: ")


def test_files_that_are_no_good(capsys, tmp_path):
    (tmp_path / "text").write_text("text")
    for flags, message in (
        (["--ca", "nowhere.pem"], "--ca nowhere.pem: cannot be read: No such file or directory"),
        (["--ca", str(tmp_path / "text")], f"--ca {tmp_path / 'text'}: expected a PEM file"),
        (["--key", "key.pem"], "--key goes with --certificate"),
    ):
        assert main(["models", *flags]) == 2
        assert capsys.readouterr().err == f"headrace: {message}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no input given; use --input NAME=VALUE"),
        (["--input", "x"], "--input x: expected NAME=VALUE"),
        (["--input", "=1"], "--input =1: expected NAME=VALUE"),
        (["--input", "x=[1,2]", "--input", "x=[1,2]"], "--input x is given twice"),
        (["--input", "z=[1,2]"], "model 'double' has no input 'z'; it has x, t"),
        (["--input", 'x=["a"]'], "input 'x' is FP32: expected numbers, in lists of equal lengths"),
        (["--input", "x=[1,2]", "--parameter", "p"], "--parameter p: expected NAME=VALUE"),
        (["--input", "x=[1,2]", "--parameter", "p=1", "--parameter", "p=2"], "--parameter p is given twice"),
        (
            ["--input", "x=[1,2]", "--parameter", f"p={1 << 63}"],
            f"--parameter p={1 << 63}: expected an integer of 64 bits, a number, true, false or text",
        ),
        (
            ["--input", "x=[1,2]", "--parameter", "p=null"],
            "--parameter p=null: expected an integer of 64 bits, a number, true, false or text",
        ),
        (
            ["--input", "x=[1,2]", "--parameter", "p=[1]"],
            "--parameter p=[1]: expected an integer of 64 bits, a number, true, false or text",
        ),
        (["--input", "x=nowhere.npy"], "input 'x': cannot read nowhere.npy: No such file or directory"),
    ],
)
def test_bad_inputs_are_one_line_and_nothing_is_sent(infer, server, capsys, arguments, message):
    assert infer(*arguments) == 2
    assert capsys.readouterr().err == f"headrace: {message}\n"
    assert server.requests == []


def test_models_is_a_table(server, capsys):
    assert main(["models", "--url", server.url]) == 0
    table = [[cell.strip() for cell in re.split(r"  +", line)] for line in capsys.readouterr().out.splitlines()]
    assert table == [
        ["MODEL", "VERSION", "STATE", "BACKEND", "MAX BATCH", "INPUTS", "OUTPUTS", "REASON"],
        ["broken", "-", "UNAVAILABLE", "-", "-", "-", "-", "model.toml: unknown key 'a'"],
        ["double", "3", "READY", "onnxruntime", "64", "x FP32[-1,2], t BYTES[-1,1]", "y FP32[-1,2], t2 BYTES[-1,1]"],
    ]


def test_models_as_json(server, capsys):
    assert main(["models", "--url", server.url, "--json"]) == 0
    broken, double = json.loads(capsys.readouterr().out)
    assert broken == {"name": "broken", "version": "", "state": "UNAVAILABLE", "reason": "model.toml:\nunknown key 'a'"}
    assert (double["max_batch"], double["backend"]) == (64, "onnxruntime")
    assert double["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
