"""tritonclient over TLS: triton_tls_client.py GRPC HTTP CA CHAIN KEY -> JSON. CHAIN and KEY: "-" for none."""

import json
import sys

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

GRPC, HTTP, CA, CHAIN, KEY = (None if each == "-" else each for each in sys.argv[1:])
ROW = np.array([[1, 2, 3, 4]], np.float32)


def doubled(kind, client):
    given = kind.InferInput("x", [1, 4], "FP32")
    given.set_data_from_numpy(ROW)
    return client.infer("one", [given]).as_numpy("y").tolist()


def over_grpc():
    with grpcclient.InferenceServerClient(
        GRPC, ssl=True, root_certificates=CA, private_key=KEY, certificate_chain=CHAIN
    ) as client:
        return doubled(grpcclient, client)


def over_http():
    options = {"ca_certs": CA} | ({"certfile": CHAIN, "keyfile": KEY} if CHAIN else {})
    with httpclient.InferenceServerClient(HTTP, ssl=True, ssl_options=options) as client:
        return doubled(httpclient, client)


print(json.dumps({"grpc": over_grpc(), "http": over_http()}))
