"""Cases of KServe's inference clients, run in their own environment: kserve_client.py GRPC HTTP REPOSITORY -> JSON.

The model `held` is busy, `queue` is busy and full.
"""

import asyncio
import json
import logging
import sys
import time

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

GRPC, HTTP = sys.argv[1], f"http://{sys.argv[2]}"
SECONDS = 20
ROW = np.array([[1, 2, 3, 4]], np.float32)


def request(model, array=ROW, binary=True, **more):
    one = InferInput("x", list(array.shape), "FP32")
    one.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model, [one], **more)


async def grpc_state():
    async with InferenceGRPCClient(GRPC) as client:
        try:
            unknown = await client.is_model_ready("nobody")
        except grpc.RpcError as error:
            unknown = error.code().name
        return (
            await client.is_server_ready(),
            await client.is_server_live(),
            await client.is_model_ready("pair"),
            unknown,
        )


async def rest_state():
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    models = [await client.is_model_ready(HTTP, name) for name in ("pair", "nobody", "broken")]
    told = [await client.is_server_ready(HTTP), await client.is_server_live(HTTP), *models]
    await client.close()
    return told


async def grpc_infer():
    async with InferenceGRPCClient(GRPC) as client:
        got = []
        for binary in (True, False):
            reply = await client.infer(request("echo_fp32", binary=binary, request_id="7"))
            got.append([reply.id, reply.model_name, reply.outputs[0].as_numpy().tolist()])
        many = await asyncio.gather(*(client.infer(request("echo_fp32", ROW + n)) for n in range(50)))
        return got, [reply.outputs[0].as_numpy()[0, 0].item() for reply in many]


async def rest_infer():
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    got = []
    for binary in (True, False):
        made = request("echo_fp32", binary=binary, request_id="7", parameters={"binary_data_output": binary})
        reply = await client.infer(HTTP, made, model_name="echo_fp32")
        got.append([reply.id, reply.model_name, reply.outputs[0].as_numpy().tolist()])
    many = await asyncio.gather(*(client.infer(HTTP, request("echo_fp32", ROW + n), "echo_fp32") for n in range(50)))
    await client.close()
    return got, [reply.outputs[0].as_numpy()[0, 0].item() for reply in many]


async def grpc_error():
    async with InferenceGRPCClient(GRPC) as client:
        return await failure(client, request("echo_fp32", ROW[:, :3]))


async def rest_error():
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    try:
        await client.infer(HTTP, request("echo_fp32", ROW[:, :3]), model_name="echo_fp32")
    except httpx.HTTPStatusError as error:
        return error.response.status_code, str(error)
    finally:
        await client.close()


async def failure(client, made):
    try:
        await client.infer(made)
    except grpc.RpcError as error:
        trailers = dict(error.trailing_metadata())
        return error.code().name, error.details(), trailers["headrace-reason"], trailers.get("grpc-retry-pushback-ms")


async def deadline():
    async with InferenceGRPCClient(GRPC) as client:
        try:
            await client.infer(request("held", ROW[:, :1]), timeout=0.1)
        except grpc.RpcError as error:
            return error.code().name


async def full_queue():
    """Its own retry policy: three attempts, 0.1 s and 0.2 s apart where a server does not say otherwise."""
    async with InferenceGRPCClient(GRPC) as client:
        began = time.monotonic()
        return await failure(client, request("queue", ROW[:, :1])), time.monotonic() - began


async def queue_timeout():
    async with InferenceGRPCClient(GRPC) as client:
        return await failure(client, request("held", ROW[:, :1], parameters={"timeout": 100_000}))


CASES = [grpc_state, rest_state, grpc_infer, rest_infer, grpc_error, rest_error, deadline, full_queue, queue_timeout]


async def main():
    report = {}
    for case in CASES:
        try:
            report[case.__name__] = await asyncio.wait_for(case(), SECONDS)
        except Exception as error:
            report[case.__name__] = f"{type(error).__name__}: {error}"
    return report


logging.disable(logging.ERROR)  # it logs what it raises
print(json.dumps(asyncio.run(main())))
