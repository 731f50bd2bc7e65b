"""A real Open Inference Protocol client: the load's message, readiness, statistics, and one reply checked by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnxruntime
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from compare.figures import Unmeasured

if TYPE_CHECKING:
    from pathlib import Path

ROWS = {"tab": (32,), "mid": (256,), "img": (3, 224, 224), "wide": (1024,)}
"""Shape of one row of each model's INPUT, FP32."""

_ID = "1"


class Counts(NamedTuple):
    """Requests of one model, over all versions, since the server started."""

    success: int
    fail: int


def rows(model: str, batch: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The input that every load sends: FP32 [batch, *row], always the same."""
    return np.random.default_rng(1).random((batch, *ROWS[model]), np.float32)


def framed(model: str, batch: int, timeout_us: int | None = None) -> bytes:
    """A ModelInferRequest with its five-octet gRPC prefix (uncompressed), as a client puts it in DATA frames.

    timeout_us: the request parameter `timeout`, which Triton's queues know.
    """
    array = rows(model, batch)
    request = service_pb2.ModelInferRequest(model_name=model, id=_ID)
    if timeout_us is not None:
        request.parameters["timeout"].int64_param = timeout_us
    tensor = request.inputs.add(name="INPUT", datatype="FP32")
    tensor.shape.extend(array.shape)
    request.raw_input_contents.append(array.tobytes())
    message: bytes = request.SerializeToString()
    return b"\0" + len(message).to_bytes(4, "big") + message


def expected(model: str, batch: int, onnx: Path) -> np.ndarray[Any, Any]:
    """ONNX Runtime's own output for the input that every load sends."""
    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    output: np.ndarray[Any, Any] = session.run(None, {"INPUT": rows(model, batch)})[0]
    return output


class Client:
    """tritonclient's, on one address; a context manager. ca: over TLS, trusting this authority."""

    def __init__(self, address: str, ca: Path | None = None) -> None:
        self._client = triton.InferenceServerClient(address, ssl=ca is not None, root_certificates=ca and str(ca))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def payload(self, model: str, batch: int) -> bytes:
        """What the load sends with each request."""
        return framed(model, batch)

    def fields(self, model: str, batch: int) -> tuple[str, ...]:
        """The header fields of each request, beside gRPC's."""
        return ()

    def ready(self, model: str) -> bool:
        """Whether the server answers and says that it is live and ready, and the model too."""
        try:
            return bool(
                self._client.is_server_live(client_timeout=2)
                and self._client.is_server_ready(client_timeout=2)
                and self._client.is_model_ready(model, client_timeout=2)
            )
        except InferenceServerException:
            return False

    def version(self) -> str:
        """The server's name and version by its own account, or `unknown`."""
        try:
            metadata = self._client.get_server_metadata(client_timeout=5)
        except InferenceServerException:
            return "unknown"
        return f"{metadata.name} {metadata.version}"

    def counts(self, model: str) -> Counts | None:
        """What the server's ModelStatistics say, or None where it has none."""
        try:
            answer = self._client.get_inference_statistics(model, client_timeout=5)
        except InferenceServerException:
            return None
        stats = [entry.inference_stats for entry in answer.model_stats]
        return Counts(sum(s.success.count for s in stats), sum(s.fail.count for s in stats))

    def load(self, model: str) -> None:
        """Has the server load a model again. Raises Unmeasured when it does not."""
        try:
            self._client.load_model(model, client_timeout=60)
        except InferenceServerException as error:
            raise Unmeasured(f"{model} could not be loaded again: {error}") from error

    def verify(self, model: str, batch: int, onnx: Path) -> int:
        """Sends the load's request once, compares the reply with ONNX Runtime's own output, returns its framed size.

        Raises Unmeasured when it differs, or when the server refuses.
        """
        array = rows(model, batch)
        tensor = triton.InferInput("INPUT", list(array.shape), "FP32")
        tensor.set_data_from_numpy(array)
        try:
            result = self._client.infer(model, [tensor], request_id=_ID, client_timeout=30)
        except InferenceServerException as error:
            raise Unmeasured(f"{model}: the server refused a request: {error}") from error
        got = result.as_numpy("OUTPUT")
        want = expected(model, batch, onnx)
        # The kernel for a batch may add in another order than that for a row: float32 noise, no more.
        if got is None or got.shape != want.shape or not np.allclose(got, want, rtol=1e-3, atol=1e-4):
            raise Unmeasured(f"{model}: a wrong reply: {got} where ONNX Runtime says {want}")
        return int(result.get_response().ByteSize()) + 5
