"""headrace and tritonclient describe the same protobuf package, and live in one process."""

import subprocess
import sys

import pytest
from e2e.server_process import plain_environment

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
