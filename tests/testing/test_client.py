import asyncio

import numpy as np
import pytest

from headrace.errors import InvalidRequest, ModelNotFound
from headrace.messages import Signature, TensorSpec
from headrace.testing.backend import FakeModel
from headrace.testing.client import InProcessServer, infer_request
from headrace.testing.loop import run_virtual

ALL = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"]


def server():
    return InProcessServer(asyncio.get_running_loop().clock)


def test_a_request_goes_through_and_its_reply_comes_back():
    async def main():
        here = server()
        model = FakeModel(compute=lambda inputs: [inputs[0] + 1], latency_ns=5_000_000)
        _, observer = here.serve(model)
        rows = np.arange(6, dtype=np.float32).reshape(3, 2)
        outputs = await here.client.infer("m", {"x": rows}, request_id="seven")
        assert outputs["y"].tolist() == (rows + 1).tolist()
        assert (observer.requests, observer.rows) == (1, 3)
        record = observer.batches[0]
        assert record.finished - record.started == 5_000_000

    run_virtual(main())


def test_every_datatype_comes_back_as_it_went():
    specs = tuple(TensorSpec(name, name, (2,)) for name in [*ALL, "BYTES"])
    arrays = {name: np.array([[0, 1]]).astype(infer_dtype(name)) for name in ALL}
    arrays["BYTES"] = np.array([[b"", "ä".encode()]], dtype=object)

    async def main():
        here = server()
        here.serve(FakeModel(Signature(specs, specs, 4)))
        return await here.client.infer("m", arrays)

    outputs = run_virtual(main())
    for name, array in arrays.items():
        assert outputs[name].dtype == array.dtype
        assert outputs[name].tolist() == array.tolist()


def infer_dtype(name):
    from headrace.datatypes import DATATYPES

    return DATATYPES[name].numpy


def test_errors_are_raised_and_counted():
    async def main():
        here = server()
        here.serve(FakeModel())
        with pytest.raises(ModelNotFound):
            await here.client.infer("other", {"x": np.zeros((1, 2), np.float32)})
        with pytest.raises(InvalidRequest):
            here.client.send(b"\xff").response  # noqa: B018
        with pytest.raises(AssertionError, match="not answered"):
            here.client.send(infer_request("m", {"x": np.zeros((1, 2), np.float32)})).response  # noqa: B018
        assert here.refused == {"model_not_found": 1, "invalid_request": 1}

    run_virtual(main())


def test_a_call_can_be_cancelled():
    async def main():
        here = server()
        scheduler, observer = here.serve(FakeModel())
        call = here.client.send(infer_request("m", {"x": np.zeros((1, 2), np.float32)}))
        assert scheduler.depth() == (1, 1)
        call.cancel()
        assert scheduler.depth() == (0, 0)
        await asyncio.sleep(1)
        assert call.message is call.error is None
        assert observer.reasons == {"cancelled": 1}

    run_virtual(main())
