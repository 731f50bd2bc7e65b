"""Cases of the newest tritonclient, run in its own environment: triton_client.py GRPC HTTP REPOSITORY -> JSON."""

import asyncio
import json
import queue
import sys
import uuid

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as grpcaio
import tritonclient.http as httpclient
import tritonclient.http.aio as httpaio
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

GRPC, HTTP = sys.argv[1:3]
SECONDS = 20
ROW = np.array([[1, 2, 3, 4]], np.float32)


def given(kind, name, array, datatype="FP32"):
    made = kind.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def failure(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return "no failure"


def described(client, as_json=None):
    """What a client learns before it infers."""
    more = {} if as_json is None else {"as_json": as_json}
    config = client.get_model_config("pair", **more)
    statistics = client.get_inference_statistics("pair", **more)
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model": client.is_model_ready("pair"),
        "name": client.get_server_metadata(**more)["name"],
        "inputs": [one["name"] for one in client.get_model_metadata("pair", **more)["inputs"]],
        "max_batch_size": (config.get("config") or config)["max_batch_size"],
        "statistics": statistics["model_stats"][0]["name"],
        "index": sorted({one["name"] for one in index(client.get_model_repository_index(**more))}),
    }


def index(reply):
    return reply["models"] if isinstance(reply, dict) else reply


def inferred(kind, client):
    """Values, id and version through two inputs and outputs, text, classification, and a large tensor."""
    a, b = np.array([[1, 2], [3, 4]], np.float32), np.arange(6, dtype=np.int32).reshape(2, 3)
    both = client.infer("pair", [given(kind, "a", a), given(kind, "b", b, "INT32")], request_id="7")
    texts = np.array([["", "a", "\u00e4", '"\\']], object)
    text = client.infer("echo_bytes", [given(kind, "x", texts, "BYTES")]).as_numpy("y")
    classes = client.infer(
        "echo_fp32", [given(kind, "x", ROW)], outputs=[kind.InferRequestedOutput("y", class_count=1)]
    )
    large = np.random.default_rng(0).random((64, 50_000), np.float32)
    response = both.get_response()
    response = response if isinstance(response, dict) else {"id": response.id, "model_version": response.model_version}
    return {
        "sum": both.as_numpy("sum").tolist(),
        "twice": both.as_numpy("twice").tolist(),
        "id": response["id"],
        "version": response["model_version"],
        "text": [one.decode() for one in text.ravel()],
        "class": [one.decode() for one in classes.as_numpy("y").ravel()],
        "large": bool((client.infer("free", [given(kind, "x", large)]).as_numpy("y") == 3 * large).all()),
    }


def grpc_unary():
    with grpcclient.InferenceServerClient(GRPC) as client:
        return described(client, as_json=True) | inferred(grpcclient, client)


def http_unary():
    with httpclient.InferenceServerClient(HTTP) as client:
        return described(client) | inferred(httpclient, client)


def grpc_errors():
    with grpcclient.InferenceServerClient(GRPC) as client:
        return [
            failure(client.infer, "nobody", [given(grpcclient, "x", ROW)]),
            failure(client.infer, "echo_fp32", [given(grpcclient, "x", ROW[:, :3])]),
            failure(client.infer, "held", [given(grpcclient, "x", ROW[:, :1])], client_timeout=0.1)[0],
        ]


def http_errors():
    with httpclient.InferenceServerClient(HTTP) as client:
        return [
            failure(client.infer, "nobody", [given(httpclient, "x", ROW)]),
            failure(client.infer, "echo_fp32", [given(httpclient, "x", ROW[:, :3])]),
            failure(client.infer, "held", [given(httpclient, "x", ROW[:, :1])], timeout=100_000),
        ]


def grpc_callbacks():
    answers = queue.Queue()
    with grpcclient.InferenceServerClient(GRPC) as client:
        for number in range(50):
            client.async_infer(
                "echo_fp32", [given(grpcclient, "x", ROW + number)], lambda result, error: answers.put((result, error)),
                request_id=str(number),
            )  # fmt: skip
        got = [answers.get(timeout=SECONDS) for _ in range(50)]
    assert not any(error for _, error in got)
    return sorted([int(result.get_response().id), result.as_numpy("y")[0, 0].item()] for result, _ in got)


def http_callbacks():
    with httpclient.InferenceServerClient(HTTP, concurrency=8) as client:
        calls = [
            client.async_infer("echo_fp32", [given(httpclient, "x", ROW + n)], request_id=str(n)) for n in range(50)
        ]
        got = [call.get_result(timeout=SECONDS) for call in calls]
    return [[int(result.get_response()["id"]), result.as_numpy("y")[0, 0].item()] for result in got]


async def gathered(kind, client):
    async with client:
        calls = (client.infer("echo_fp32", [given(kind, "x", ROW + n)], request_id=str(n)) for n in range(50))
        return [result.as_numpy("y")[0, 0].item() for result in await asyncio.gather(*calls)]


def grpc_asyncio():
    return asyncio.run(asyncio.wait_for(_grpc_asyncio(), SECONDS))


async def _grpc_asyncio():
    return await gathered(grpcclient, grpcaio.InferenceServerClient(GRPC))


def http_asyncio():
    return asyncio.run(asyncio.wait_for(_http_asyncio(), SECONDS))


async def _http_asyncio():
    return await gathered(httpclient, httpaio.InferenceServerClient(HTTP))


def grpc_stream():
    answers = queue.Queue()
    with grpcclient.InferenceServerClient(GRPC) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(20):
            model = "nobody" if number == 10 else "echo_fp32"
            client.async_stream_infer(
                model, [given(grpcclient, "x", ROW + number)], request_id=str(number),
                enable_empty_final_response=number == 19,
            )  # fmt: skip
        got = [answers.get(timeout=SECONDS) for _ in range(20)]
        client.stop_stream()
    told = [error.message() if error else [r.get_response().id, r.as_numpy("y")[0, 0].item()] for r, error in got]
    return told, got[-1][0].get_response().parameters["triton_final_response"].bool_param


def grpc_asyncio_stream():
    async def requests():
        for number in range(20):
            yield {"model_name": "echo_fp32", "inputs": [given(grpcclient, "x", ROW + number)]}

    async def main():
        async with grpcaio.InferenceServerClient(GRPC) as client:
            return [result.as_numpy("y")[0, 0].item() async for result, _ in client.stream_infer(requests())]

    return asyncio.run(asyncio.wait_for(main(), SECONDS))


def in_shared_memory(kind, client):
    """Input and output in regions that tritonclient's own module makes."""
    names = [f"/headrace_{uuid.uuid4().hex}" for _ in range(2)]
    regions = [shm.create_shared_memory_region(f"r{n}", name, 64) for n, name in enumerate(names)]
    try:
        for number, name in enumerate(names):
            client.register_system_shared_memory(f"r{number}", name, 64)
        shm.set_shared_memory_region(regions[0], [ROW])
        one = kind.InferInput("x", [1, 4], "FP32")
        one.set_shared_memory("r0", 16)
        output = kind.InferRequestedOutput("y")
        output.set_shared_memory("r1", 16)
        client.infer("echo_fp32", [one], outputs=[output])
        got = shm.get_contents_as_numpy(regions[1], np.float32, [1, 4]).tolist()
        client.unregister_system_shared_memory()
        left = client.get_system_shared_memory_status()
        return got, failure(client.infer, "echo_fp32", [one])[0], len(left if isinstance(left, list) else left.regions)
    finally:
        for region in regions:
            shm.destroy_shared_memory_region(region)


def grpc_shared_memory():
    with grpcclient.InferenceServerClient(GRPC) as client:
        return in_shared_memory(grpcclient, client)


def http_shared_memory():
    with httpclient.InferenceServerClient(HTTP) as client:
        return in_shared_memory(httpclient, client)


def http_forms():
    """JSON and binary both ways, and compression."""
    with httpclient.InferenceServerClient(HTTP) as client:
        got = []
        for binary, coding in ((True, None), (False, None), (True, "gzip"), (False, "deflate")):
            one = httpclient.InferInput("x", [1, 4], "FP32")
            one.set_data_from_numpy(ROW, binary_data=binary)
            output = httpclient.InferRequestedOutput("y", binary_data=not binary)
            result = client.infer(
                "echo_fp32", [one], outputs=[output], request_compression_algorithm=coding,
                response_compression_algorithm=coding,
            )  # fmt: skip
            got.append(result.as_numpy("y").tolist())
        return got


CASES = [
    grpc_unary, http_unary, grpc_errors, http_errors, grpc_callbacks, http_callbacks, grpc_asyncio, http_asyncio,
    grpc_stream, grpc_asyncio_stream, grpc_shared_memory, http_shared_memory, http_forms,
]  # fmt: skip

report = {}
for case in CASES:
    try:
        report[case.__name__] = case()
    except Exception as error:
        report[case.__name__] = f"{type(error).__name__}: {error}"
print(json.dumps(report))
