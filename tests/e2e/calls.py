"""What tests say to a server, in the words of tritonclient and of bare grpcio."""

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from e2e.gated import HELD, at_work, let_go
from e2e.server_process import eventually
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import np_to_triton_dtype

SECONDS = 20
"""The deadline of calls that are expected to be answered."""


def floats(*rows):
    """An FP32 array of these rows, or of these numbers as rows of one."""
    array = np.array(rows, np.float32)
    return array.reshape(-1, 1) if array.ndim == 1 else array


def tensor(name, array, datatype=None):
    """A tritonclient input."""
    made = triton.InferInput(name, list(array.shape), datatype or np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def request(model, *, version="", id="", parameters=None, outputs=(), **arrays):  # noqa: A002 - the field's name
    """A ModelInferRequest with raw contents. Arrays of numbers by the input's name."""
    made = pb.ModelInferRequest(model_name=model, model_version=version, id=id)
    for name, array in arrays.items():
        made.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        made.raw_input_contents.append(array.tobytes())
    for name in outputs:
        made.outputs.add(name=name)
    for key, value in (parameters or {}).items():
        field = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(made.parameters[key], field, value)
    return made


def output(response, index=0, dtype=np.float32):
    """An output of a ModelInferResponse as an array."""
    return np.frombuffer(response.raw_output_contents[index], dtype).reshape(response.outputs[index].shape)


def connect(channel):
    """Has a grpcio channel connected, so that calls leave in the order in which they are made."""
    live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
    live(b"", timeout=SECONDS, wait_for_ready=True)


def statistics(stub, model, version=""):
    """The ModelStatistics of one model version."""
    reply = stub.ModelStatistics(pb.ModelStatisticsRequest(name=model, version=version), timeout=SECONDS)
    (found,) = reply.model_stats
    return found


class Held:
    """A call whose model runs until it is let go."""

    def __init__(self, server, model, call):
        self._server = server
        self._model = model
        self.call = call

    def done(self):
        return self.call.done()

    def let_go(self):
        """Lets the run end. Once."""
        let_go(self._server.repository, self._model)

    def result(self):
        """Lets the run end; the response."""
        self.let_go()
        return self.call.result()


def occupy(server, stub, model, timeout=SECONDS):
    """Has the only instance of a model, a `gated` one of one row a batch, run until it is let go.

    Returns the call once it runs.
    """
    call = stub.ModelInfer.future(request(model, x=floats(HELD)), timeout=timeout)
    eventually(lambda: server.waiting(model) == 0 and at_work(server.repository, model))
    return Held(server, model, call)


class Failure:
    """How a call failed: code, text and trailing metadata."""

    def __init__(self, error):
        self.code = error.code()
        self.text = error.details()
        self.trailers = dict(error.trailing_metadata() or ())
        self.reason = self.trailers.get("headrace-reason")

    def __repr__(self):
        return f"<Failure {self.code.name} {self.reason}: {self.text}>"


def failure(call, *arguments, **options):
    """Makes a call, or awaits the result of one, that is to fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, timeout=options.pop("timeout", SECONDS), **options)
    return Failure(caught.value)
