"""headrace and tritonclient describe the same protobuf package, and live in one process."""

import subprocess
import sys
from pathlib import Path

import pytest
from e2e.server_process import plain_environment

DIGITS = Path(__file__).parents[2] / "models" / "digits" / "1" / "model.onnx"
OURS = "import headrace.cli, headrace.serve"
THEIRS = "import tritonclient.grpc"
CALL = """
import sys
import numpy as np
import tritonclient.grpc as triton
from headrace.rpc import inference_pb2

with triton.InferenceServerClient(sys.argv[1]) as client:
    sent = triton.InferInput("x", [1, 1], "FP32")
    sent.set_data_from_numpy(np.array([[21]], np.float32))
    reply = client.infer("versions", [sent], model_version="2", client_timeout=20)
    assert reply.as_numpy("y").tolist() == [[42]]
    parsed = inference_pb2.ModelInferResponse.FromString(reply.get_response().SerializeToString())
    assert parsed.outputs[0].name == "y"
"""


@pytest.mark.parametrize("imports", [(OURS, THEIRS), (THEIRS, OURS)], ids=["headrace first", "tritonclient first"])
def test_in_one_process(server, imports):
    subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join([*imports, CALL]), server.address],
        check=True,
        timeout=60,
        env=plain_environment(),
    )


@pytest.mark.parametrize("module", ["headrace.serve", "headrace.quantize.build", "gpu_check.sessions"])
def test_onnx_runtime_reports_to_nobody(tmp_path, module):
    """It would keep an identifier of this machine in the user's cache, and send it from there. In CI it does not."""
    environment = {name: value for name, value in plain_environment().items() if name != "CI"}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    run = f"import {module}, onnxruntime; onnxruntime.InferenceSession({str(DIGITS)!r})"
    subprocess.run([sys.executable, "-c", run], check=True, timeout=60, env=environment | {"HOME": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []
