"""The client of the HTTP rows, against a server of a few lines."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from compare.figures import Unmeasured
from compare.oip import Counts, rows
from compare.rest import RestClient, body

STATS = {"model_stats": [{"inference_stats": {"success": {"count": 3}, "fail": {"count": 1}}}] * 2}


@pytest.fixture
def server():
    """Answers as it is told; `.replies` by path: status, body, octets of JSON."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            status, text, length = made.replies.get(self.path, (404, b"{}", None))
            made.bodies.append(self.rfile.read(int(self.headers.get("content-length", 0))))
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            if length is not None:
                self.send_header("Inference-Header-Content-Length", str(length))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as made:
        made.replies, made.bodies = {}, []
        made.address = f"127.0.0.1:{made.server_port}"
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def reply(array, form):
    output = {"name": "OUTPUT", "datatype": "FP32", "shape": list(array.shape)}
    if form == "json":
        output["data"] = array.ravel().tolist()
    text = json.dumps({"outputs": [output]}).encode()
    return (200, text, None) if form == "json" else (200, text + array.tobytes(), len(text))


@pytest.mark.parametrize("form", ["json", "binary"])
def test_a_reply_is_compared(server, identity, form):
    server.replies["/v2/models/tab/infer"] = reply(rows("tab", 2), form)
    with RestClient(server.address, form) as client:
        assert client.verify("tab", 2, identity) == len(server.replies["/v2/models/tab/infer"][1])
        assert server.bodies == [body("tab", 2, form)[0]] == [client.payload("tab", 2)]
        server.replies["/v2/models/tab/infer"] = reply(rows("tab", 2) + np.float32(0.01), form)
        with pytest.raises(Unmeasured, match="tab: a wrong reply"):
            client.verify("tab", 2, identity)
        server.replies.clear()
        with pytest.raises(Unmeasured, match="tab: the server refused a request: 404"):
            client.verify("tab", 2, identity)


def test_the_fields_tell_the_form():
    assert RestClient("x", "json").fields("tab", 1) == ("content-type: application/json",)
    octets, length = body("tab", 1, "binary")
    assert RestClient("x", "binary").fields("tab", 1)[1] == f"Inference-Header-Content-Length: {length}"
    assert json.loads(octets[:length])["inputs"][0]["parameters"] == {"binary_data_size": len(octets) - length}


def test_readiness_version_and_counts(server):
    with RestClient(server.address, "json") as client:
        assert (client.ready("tab"), client.version(), client.counts("tab")) == (False, "unknown", None)
        server.replies = {
            "/v2/models/tab/ready": (200, b"", None),
            "/v2": (200, b'{"name": "n", "version": "1"}', None),
            "/v2/models/tab/stats": (200, json.dumps(STATS).encode(), None),
        }
        assert (client.ready("tab"), client.version(), client.counts("tab")) == (True, "n 1", Counts(6, 2))


def test_nobody_there_is_not_ready():
    with RestClient("127.0.0.1:9", "json") as client:
        assert not client.ready("tab")
