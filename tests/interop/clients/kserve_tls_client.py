"""KServe's clients over TLS: kserve_tls_client.py GRPC HTTP CA CHAIN KEY -> JSON. CHAIN and KEY: '-' for none."""

import asyncio
import json
import ssl
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

GRPC, HTTP, CA, CHAIN, KEY = (None if each == "-" else each for each in sys.argv[1:])


def request():
    one = InferInput("x", [1, 4], "FP32")
    one.set_data_from_numpy(np.array([[1, 2, 3, 4]], np.float32), binary_data=True)
    return InferRequest("one", [one])


async def over_grpc():
    async with InferenceGRPCClient(
        GRPC, use_ssl=True, root_certificates=CA, private_key=KEY, certificate_chain=CHAIN
    ) as client:
        return (await client.infer(request())).outputs[0].as_numpy().tolist()


async def over_rest():
    trust = ssl.create_default_context(cafile=CA)
    if CHAIN:
        trust.load_cert_chain(CHAIN, KEY)
    client = InferenceRESTClient(RESTConfig(protocol="v2", verify=trust))
    reply = await client.infer(f"https://{HTTP}", request(), model_name="one")
    await client.close()
    return reply.outputs[0].as_numpy().tolist()


print(json.dumps({"grpc": asyncio.run(over_grpc()), "http": asyncio.run(over_rest())}))
