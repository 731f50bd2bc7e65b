import asyncio

import numpy as np
import pytest

from headrace.engine.inner import InnerClient, Tensor
from headrace.errors import DeadlineExceeded, InvalidRequest, QueueFull, QueueTimeout
from headrace.messages import SequenceFlags, Signature, TensorSpec
from headrace.repository.model_config import LevelConfig, ModelConfig, QueueConfig
from headrace.repository.sequence_config import SequenceConfig, SequenceState
from headrace.testing.backend import FakeModel
from headrace.testing.client import InProcessServer
from headrace.testing.loop import run_virtual
from headrace.testing.requests import make_request

X = TensorSpec("x", "FP32", (2,))
PAIR = Signature((X, TensorSpec("n", "INT64", ())), (X, TensorSpec("y", "FP32", (2,))), 4)


def row(*values):
    return Tensor("x", "FP32", (1, len(values)), np.array(values, np.float32).tobytes())


class Told:
    def __init__(self):
        self.tensors = self.parameters = self.error = None

    def done(self, tensors, parameters):
        self.tensors, self.parameters = tensors, parameters

    def failed(self, error):
        self.error = error


async def world(model=None):
    server = InProcessServer(asyncio.get_running_loop().clock)
    scheduler, observer = server.serve(model or FakeModel())
    return scheduler, observer


def test_tensors_in_and_out():
    async def main():
        scheduler, _ = await world()
        client = InnerClient(scheduler)
        told = [Told() for _ in range(3)]
        for number, one in enumerate(told):
            call = client.send([row(number, 1)], make_request(), one.done, one.failed)
            assert call.under_way is not None
        await asyncio.sleep(1)
        for number, one in enumerate(told):
            (tensor,) = one.tensors
            assert (tensor.name, tensor.datatype, tensor.shape) == (scheduler.signature.outputs[0].name, "FP32", (1, 2))
            assert np.frombuffer(tensor.data, np.float32).tolist() == [number, 1]
            assert one.parameters == b""
        assert repr(client).endswith("1 looks>")

    run_virtual(main())


def test_inputs_in_any_order_and_some_of_the_outputs():
    async def main():
        scheduler, _ = await world(
            FakeModel(PAIR, lambda inputs: [inputs[0], inputs[0] + inputs[1][:, None].astype(np.float32)])
        )
        told = Told()
        n = Tensor("n", "INT64", (1,), np.array([5]).tobytes())
        InnerClient(scheduler, ["y"]).send([n, row(1, 2)], make_request(), told.done, told.failed)
        await asyncio.sleep(1)
        assert [tensor.name for tensor in told.tensors] == ["y"]
        assert np.frombuffer(told.tensors[0].data, np.float32).tolist() == [6, 7]

    run_virtual(main())


def test_the_deadline_and_the_timing_are_those_of_the_whole():
    async def main():
        scheduler, _ = await world()
        told, late = Told(), Told()
        client = InnerClient(scheduler)
        client.send([row(1, 2)], make_request(timing=True), told.done, told.failed)
        now = asyncio.get_running_loop().clock()
        client.send([row(1, 2)], make_request(now=now, rpc_deadline=now), late.done, late.failed)
        await asyncio.sleep(1)
        assert b"headrace_execute_us" in told.parameters
        assert type(late.error) is DeadlineExceeded
        assert repr(client).endswith("2 looks>")

    run_virtual(main())


def test_what_does_not_fit_the_model():
    async def main():
        scheduler, _ = await world()
        told = Told()
        with pytest.raises(InvalidRequest, match="unexpected shape for input 'x'"):
            InnerClient(scheduler).send([row(1, 2, 3)], make_request(), told.done, told.failed)

    run_virtual(main())


def test_the_queue_policies_of_the_model_hold():
    levels = {"1": LevelConfig(timeout_us=2000), "2": LevelConfig(max_level_requests=1)}
    config = ModelConfig(priority_levels=2, queue=QueueConfig(levels=levels))

    async def main():
        server = InProcessServer(asyncio.get_running_loop().clock)
        scheduler, _ = server.serve(FakeModel(latency_ns=10_000_000), config=config)
        client = InnerClient(scheduler)
        first, urgent, second, third = (Told() for _ in range(4))
        for one, priority in ((first, 0), (urgent, 0), (second, 1), (third, 1)):
            client.send([row(1, 1)], make_request(now=server.clock(), priority=priority), one.done, one.failed)
            await asyncio.sleep(0)
        await asyncio.sleep(1)
        assert first.tensors is not None
        assert type(urgent.error) is QueueTimeout
        assert second.tensors is not None
        assert type(third.error) is QueueFull

    run_virtual(main())


def test_the_sequence_is_that_of_the_whole():
    async def main():
        server = InProcessServer(asyncio.get_running_loop().clock)
        signature = Signature((X, TensorSpec("before", "FP32", (2,))), (X, TensorSpec("after", "FP32", (2,))), 4)
        state = SequenceState(input="before", output="after")
        model = FakeModel(signature, lambda inputs: [inputs[0] + inputs[1]] * 2)
        scheduler, _ = server.serve_stateful(model, ModelConfig(sequence=SequenceConfig(state=(state,))))
        client = InnerClient(scheduler)
        told = {}
        for name, start in (("a", True), ("b", True), ("a", False)):
            one = told.setdefault((name, start), Told())
            whole = make_request(sequence=SequenceFlags(name, start))
            client.send([row(1, 2)], whole, one.done, one.failed)
            await asyncio.sleep(0.1)
        found = {key: np.frombuffer(one.tensors[0].data, np.float32).tolist() for key, one in told.items()}
        assert found == {("a", True): [1, 2], ("b", True): [1, 2], ("a", False): [2, 4]}
        assert repr(client).endswith("1 looks>")

    run_virtual(main())
