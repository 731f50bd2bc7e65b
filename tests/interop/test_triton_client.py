"""The newest tritonclient, on gRPC and HTTP; older ones are in tests/e2e."""

import pytest
from e2e.rest_calls import address
from interop.conftest import Busy
from interop.peers import CLIENTS, PYTHON, needs, report

pytestmark = needs(PYTHON)


@pytest.fixture(scope="module")
def seen(server):
    """What it saw, by case."""
    with Busy(server):
        return report(PYTHON, CLIENTS / "triton_client.py", server.address, address(server))


NUMBERS = [[number, number + 1] for number in range(50)]
UNKNOWN = "Request for unknown model: 'nobody' is not found"
SHAPE = "[request id: <id_unknown>] unexpected shape for input 'x' for model 'echo_fp32'. Expected [-1,4], got [1,3]."


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_unary(seen, protocol):
    assert seen[f"{protocol}_unary"] == {
        "live": True, "ready": True, "model": True, "name": "headrace", "inputs": ["a", "b"], "max_batch_size": 64,
        "statistics": "pair", "index": ["broken", "echo_bytes", "echo_fp32", "free", "held", "pair", "queue"],
        "sum": [[3], [7]], "twice": [[0, 2, 4], [6, 8, 10]], "id": "7", "version": "1", "text": ["", "a", "ä", '"\\'],
        "class": ["4.000000:3"], "large": True,
    }  # fmt: skip


def test_errors(seen):
    unknown, shape, late = seen["grpc_errors"]
    assert unknown == ["StatusCode.NOT_FOUND", UNKNOWN]
    assert (shape[0], shape[1].startswith(SHAPE)) == ("StatusCode.INVALID_ARGUMENT", True)
    assert late == "StatusCode.DEADLINE_EXCEEDED"
    unknown, shape, late = seen["http_errors"]
    assert unknown == ["404", UNKNOWN]
    assert (shape[0], shape[1].startswith(SHAPE)) == ("400", True)
    assert late == ["503", "Request timeout expired"]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_many_at_once(seen, protocol):
    assert seen[f"{protocol}_callbacks"] == NUMBERS
    assert seen[f"{protocol}_asyncio"] == [value for _, value in NUMBERS]


def test_streams(seen):
    told, final = seen["grpc_stream"]
    assert told[10] == UNKNOWN
    assert told[:10] + told[11:] == [[str(n), n + 1] for n in range(20) if n != 10]
    assert final is True
    assert seen["grpc_asyncio_stream"] == list(range(1, 21))


@pytest.mark.parametrize(("protocol", "status"), [("grpc", "StatusCode.NOT_FOUND"), ("http", "404")])
def test_shared_memory(seen, protocol, status):
    assert seen[f"{protocol}_shared_memory"] == [[[1, 2, 3, 4]], status, 0]


def test_forms_of_tensors(seen):
    assert seen["http_forms"] == [[[1, 2, 3, 4]]] * 4
