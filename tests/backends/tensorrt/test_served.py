"""Requests of clients, batched by the server's engine, through two executors at a time on threads of their own."""

import asyncio

import numpy as np
import pytest
from backends.tensorrt import networks
from backends.tensorrt.test_executor import floats, scaled

from headrace.clock import monotonic_ns
from headrace.engine.worker import Worker
from headrace.errors import BackendFailed
from headrace.repository.model_config import ModelConfig
from headrace.testing.client import InProcessServer


def serve(model, requests, before=lambda: None):
    """The outputs of requests that are sent together, or what they failed with."""

    async def main():
        server = InProcessServer(monotonic_ns)
        config = ModelConfig(instances=model.executors_per_instance)
        scheduler, _ = server.serve(model, config=config, worker=Worker)
        before()
        try:
            return await asyncio.gather(
                *(server.client.infer("m", inputs) for inputs in requests), return_exceptions=True
            )
        finally:
            scheduler.close()

    return asyncio.run(main())


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
def test_every_request_gets_its_own_rows(load, trt, graphs):
    model = load(networks.two_inputs(), max_batch=8, cuda_graphs=graphs)
    rng = np.random.default_rng(0)
    requests = [
        {"a": floats(rows, 2, seed=at), "b": floats(rows, 2, seed=at + 1000)}
        for at, rows in enumerate(rng.integers(1, 9, 200))
    ]
    results = serve(model, requests)
    for request, found in zip(requests, results, strict=True):
        np.testing.assert_array_equal(found["sum"], request["a"] + request["b"])
        np.testing.assert_array_equal(found["difference"], request["a"] - request["b"])
    assert max(len(run["inputs"]["a"]) for run in trt.runs) == 8
    assert len({run["context"] for run in trt.runs}) > 2


def test_a_run_that_fails_is_answered_and_others_go_on(load, trt):
    model = load(scaled(), max_batch=2, cuda_graphs=False)

    def fail():
        trt.fail["execute"] = "as the test wants"

    failed = serve(model, [{"x": floats(1, 4)}] * 4, fail)
    assert {type(one) for one in failed} == {BackendFailed}
    trt.fail.clear()
    (found,) = serve(model, [{"x": floats(1, 4)}])
    np.testing.assert_array_equal(found["y"], floats(1, 4) * 3)
