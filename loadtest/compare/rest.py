"""The same as compare/oip.py over HTTP: the load's body, readiness, statistics, and one reply checked by hand."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compare.figures import Unmeasured
from compare.oip import Counts, expected, rows

if TYPE_CHECKING:
    from pathlib import Path

Form = Literal["binary", "json"]


def body(model: str, batch: int, form: Form) -> tuple[bytes, int]:
    """The body of an inference request, and octets of JSON in it. Tensors in binary form come back in it, too."""
    array = rows(model, batch)
    tensor: dict[str, Any] = {"name": "INPUT", "datatype": "FP32", "shape": list(array.shape)}
    request: dict[str, Any] = {"id": "1", "inputs": [tensor]}
    if form == "json":
        tensor["data"] = array.ravel().tolist()
        text = json.dumps(request).encode()
        return text, len(text)
    tensor["parameters"] = {"binary_data_size": array.nbytes}
    request["parameters"] = {"binary_data_output": True}
    text = json.dumps(request).encode()
    return text + array.tobytes(), len(text)


class RestClient:
    """http.client's, on one address; a context manager. form: of tensors."""

    def __init__(self, address: str, form: Form) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=30)
        self._form = form

    def __enter__(self) -> RestClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def payload(self, model: str, batch: int) -> bytes:
        """What the load sends with each request."""
        return body(model, batch, self._form)[0]

    def fields(self, model: str, batch: int) -> tuple[str, ...]:
        """The header fields of each request."""
        if self._form == "json":
            return ("content-type: application/json",)
        return (
            "content-type: application/octet-stream",
            f"Inference-Header-Content-Length: {body(model, batch, self._form)[1]}",
        )

    def ready(self, model: str) -> bool:
        """Whether the server answers and says that the model is ready."""
        try:
            return self._ask("GET", f"/v2/models/{model}/ready")[0] == 200
        except OSError:
            return False

    def version(self) -> str:
        """The server's name and version by its own account, or `unknown`."""
        status, _, text = self._ask("GET", "/v2")
        if status != 200:
            return "unknown"
        metadata = json.loads(text)
        return f"{metadata['name']} {metadata['version']}"

    def counts(self, model: str) -> Counts | None:
        """What the server's statistics say, or None where it has none."""
        status, _, text = self._ask("GET", f"/v2/models/{model}/stats")
        if status != 200:
            return None
        stats = [entry["inference_stats"] for entry in json.loads(text)["model_stats"]]
        return Counts(sum(s["success"]["count"] for s in stats), sum(s["fail"]["count"] for s in stats))

    def verify(self, model: str, batch: int, onnx: Path) -> int:
        """Sends the load's request once, compares the reply with ONNX Runtime's own output; octets of the reply's body.

        Raises Unmeasured when it differs, or when the server refuses.
        """
        fields = dict(field.split(": ") for field in self.fields(model, batch))
        status, length, reply = self._ask("POST", f"/v2/models/{model}/infer", self.payload(model, batch), fields)
        if status != 200:
            raise Unmeasured(f"{model}: the server refused a request: {status} {reply[:500]!r}")
        (output,) = json.loads(reply[:length])["outputs"]
        data = output["data"] if "data" in output else np.frombuffer(reply[length:], np.float32)
        got = np.array(data, np.float32).reshape(output["shape"])
        want = expected(model, batch, onnx)
        # The kernel for a batch may add in another order than that for a row: float32 noise, no more.
        if got.shape != want.shape or not np.allclose(got, want, rtol=1e-3, atol=1e-4):
            raise Unmeasured(f"{model}: a wrong reply: {got} where ONNX Runtime says {want}")
        return len(reply)

    def _ask(
        self, verb: str, path: str, content: bytes | None = None, fields: dict[str, str] | None = None
    ) -> tuple[int, int, bytes]:
        """Status, octets of JSON at the beginning of the reply, the reply."""
        try:
            self._connection.request(verb, path, content, fields or {})
            response = self._connection.getresponse()
            reply = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ConnectionError(f"{path}: {error}") from error
        return response.status, int(response.headers.get("Inference-Header-Content-Length", len(reply))), reply
