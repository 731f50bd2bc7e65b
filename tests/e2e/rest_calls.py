"""What tests say to the HTTP port, without a client of the protocol."""

import http.client
import json
import socket

from e2e.calls import SECONDS


class Reply:
    """status, fields by lower-case name, body."""

    def __init__(self, response):
        self.status = response.status
        self.fields = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    def __repr__(self):
        return f"<Reply {self.status} {self.body[:300]!r}>"

    @property
    def json(self):
        """The JSON at the beginning of the body."""
        return json.loads(self.body[: int(self.fields.get("inference-header-content-length", len(self.body)))])

    @property
    def binary(self):
        """What follows it."""
        return self.body[int(self.fields["inference-header-content-length"]) :]


def address(server):
    """Host and port, as tritonclient.http takes them."""
    return server.http.removeprefix("http://")


def connect(server):
    """http.client's connection."""
    return http.client.HTTPConnection(address(server), timeout=SECONDS)


def ask(server, path, body=None, method=None, **fields):
    """One request on a connection of its own. body: octets, or what becomes JSON. fields: underscores for hyphens."""
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    connection = connect(server)
    try:
        given = {name.replace("_", "-"): str(value) for name, value in fields.items()}
        connection.request(method or ("GET" if body is None else "POST"), path, body, given)
        return Reply(connection.getresponse())
    finally:
        connection.close()


def infer(server, model, header, *tensors, **fields):
    """One inference; tensors: those in binary form."""
    text = json.dumps(header).encode()
    if tensors:
        fields["inference_header_content_length"] = len(text)
    return ask(server, f"/v2/models/{model}/infer", text + b"".join(tensors), **fields)


def tensor(name, array, datatype):
    """An input in JSON."""
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.ravel().tolist()}


class Raw:
    """A socket, and replies read from it one by one."""

    def __init__(self, server):
        host, port = address(server).split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=SECONDS)
        self._file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
        self.socket.close()

    def send(self, octets):
        """Sends."""
        self.socket.sendall(octets)

    def reply(self):
        """(status, fields, body) of the next reply; None at the end."""
        line = self._file.readline()
        if not line:
            return None
        fields = {}
        while (field := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = field.decode().partition(": ")
            fields[name.lower()] = value.strip()
        return int(line.split()[1]), fields, self._file.read(int(fields.get("content-length", 0)))


def octets(path, body=b"", method="POST", **fields):
    """A request."""
    given = {"host": "x", "content-length": len(body)} | {name.replace("_", "-"): v for name, v in fields.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value is not None)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
