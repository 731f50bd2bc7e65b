"""A server of the inference protocol in a few lines of grpcio: for clients under test, not a model of Headrace."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import onnxruntime
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

TIMING = {
    "headrace_decode_us": 1,
    "headrace_admit_us": 2,
    "headrace_queue_us": 3,
    "headrace_batch_us": 4,
    "headrace_execute_us": 5,
    "headrace_encode_us": 6,
    "headrace_total_us": 21,
    "headrace_batch_rows": 8,
    "headrace_close_reason": "idle",
    "headrace_padding_percent": 9,
}


class ModelServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Runs each request alone through its ONNX model. `spoil` may change the outputs by name; `calls` counts."""

    def __init__(self, models, timing=True):
        self.sessions = {name: onnxruntime.InferenceSession(path) for name, path in models.items()}
        self.timing = timing
        self.spoil = {}
        self.calls = 0

    def ModelInfer(self, request, context):  # noqa: N802 - the RPC's name
        self.calls += 1
        session = self.sessions[request.model_name]
        feeds = {
            tensor.name: np.frombuffer(raw, triton_to_np_dtype(tensor.datatype)).reshape(tensor.shape)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        reply = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        for spec, value in zip(session.get_outputs(), session.run(None, feeds), strict=True):
            value = self.spoil.get(spec.name, lambda same: same)(value)
            reply.outputs.add(name=spec.name, datatype=np_to_triton_dtype(value.dtype), shape=value.shape)
            reply.raw_output_contents.append(value.tobytes())
        if self.timing and request.parameters["headrace_timing"].bool_param:
            for name, value in TIMING.items():
                field = "string_param" if isinstance(value, str) else "int64_param"
                setattr(reply.parameters[name], field, value)
        return reply


@contextmanager
def serving(servicer):
    """Serves on a free port of the loopback; gives the address."""
    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(grace=None).wait()
