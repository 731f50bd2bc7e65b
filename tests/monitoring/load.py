"""A server to which, again and again, everything happens that its dashboards show."""

import http.client
import itertools
import json
import socket
import subprocess
import threading

import numpy as np
from e2e.onnx_models import scale, write
from e2e.sequence_models import STATE, accumulate
from e2e.server_process import HEADRACE, plain_environment

BUCKETS = "[buckets.n]\nsizes = [4, 8]\ninputs.x = 1\noutputs.y = 1"


GUARDED = '[guard]\nreference = 1\nshare = 1.0\nkind = "classes"'
WATCHED = "[drift]\nwindow_s = 3600\n[drift.inputs.x]"


def fit(version):
    """Makes the reference of a watched model."""
    data = version.parents[1].with_suffix(".npy")
    np.save(data, np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32))
    command = [HEADRACE, "drift", "fit", version, "--input", f"x={data}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=plain_environment())
    assert done.returncode == 0, done.stderr


def write_models(root):
    """A model of each kind that has metrics of its own."""
    write(root, "plain", scale(2, "N", 2), 'versions = "all"\ninstances = 2')
    write(root, "plain", scale(3, "N", 2), version=2)
    write(root, "bucketed", scale(2, "N", "S"), BUCKETS)
    write(root, "cached", scale(2, "N", 2), "response_cache = true")
    write(root, "stateful", accumulate("N", 1), "[sequence]\nidle_timeout_ms = 60_000\n" + STATE)
    write(root, "tight", scale(2, "N", 2), "[queue]\nmax_rows = 2")
    write(root, "watched", scale(2, "N", 2), WATCHED)
    fit(root / "watched" / "1")
    for version in (1, 2):
        write(root, "guarded", scale(2, "N", 2), GUARDED if version == 1 else "", version=version)
    write(root, "broken", b"this is no ONNX file")
    return root


class Load:
    """Sends such requests from one thread until the `with` statement ends. Raises there what went wrong."""

    def __init__(self, server):
        self._server = server
        self._stop = threading.Event()
        self._error = None
        self._random = np.random.default_rng(1)
        self._thread = threading.Thread(target=self._run)
        self.turns = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self):
        try:
            host = self._server.http.removeprefix("http://")
            connection = http.client.HTTPConnection(host, timeout=20)
            for turn in itertools.count():
                if self._stop.wait(0.01):
                    break
                self._turn(connection, turn)
                self.turns = turn
            connection.close()
        except BaseException as error:
            self._error = error

    def _turn(self, connection, turn):
        def send(model, data, shape, status=200, **parameters):
            tensor = {"name": "x", "datatype": "FP32", "shape": shape, "data": data}
            body = json.dumps({"inputs": [tensor], "parameters": parameters})
            connection.request("POST", f"/v2/models/{model}/infer", body)
            reply = connection.getresponse()
            text = reply.read()
            assert reply.status == status, (model, reply.status, text)

        send("plain", [1, 2], [1, 2])
        send("plain/versions/1", [1, 2, 3, 4], [2, 2])
        send("bucketed", [1, 2, 3], [1, 3])
        send("cached", [1, 2], [1, 2])
        send("stateful", [1], [1, 1], sequence_id=1, sequence_start=turn == 0)
        send("watched", self._random.normal(size=128).tolist(), [64, 2])
        send("guarded", self._random.normal(size=2).tolist(), [1, 2])
        send("tight", [0] * 6, [3, 2], status=400)
        send("nobody", [1], [1, 1], status=404)
        if turn % 10 == 0:
            with socket.create_connection(("127.0.0.1", self._server.port)) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                while stranger.recv(4096):
                    pass
