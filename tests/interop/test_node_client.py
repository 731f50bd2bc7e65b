"""gRPC for Node: an HTTP/2 and a protobuf that are nobody else's."""

import shutil
from pathlib import Path

import pytest
from e2e.server_process import eventually
from interop.conftest import Busy
from interop.peers import CLIENTS, NODE_MODULES, needs, report

NODE = shutil.which("node")
PROTOS = Path(__file__).parents[2] / "protos"

pytestmark = needs(NODE, NODE_MODULES)


@pytest.fixture(scope="module")
def seen(server):
    """What it saw, by case; and how many requests had been cancelled when it was done."""

    def cancelled():
        return server.metric("headrace_refused_total", model="held", reason="cancelled")

    with Busy(server):
        before = cancelled()
        found = report(NODE, CLIENTS / "node_client.js", server.address, PROTOS, NODE_PATH=str(NODE_MODULES))
        eventually(lambda: server.waiting("held") == 0)
        found["cancelled"] = cancelled() - before
        return found


def test_state(seen):
    assert seen["state"] == {
        "live": True, "ready": True, "inputs": [["a", "FP32", [-1, 2]], ["b", "INT32", [-1, 3]]], "max_batch_size": 64,
    }  # fmt: skip


def test_health(seen):
    known, first, unknown = seen["health"]
    assert known == first == 1
    assert (unknown[0], unknown[2]) == ("NOT_FOUND", "service_not_found")


def test_unary(seen):
    assert seen["unary"] == ["7", "1", [1, 4], [1, 2, 3, 4]]
    assert seen["typed_contents"] == [5, 2, 3, 4]


def test_a_large_message(seen):
    assert seen["large"] is True


def test_errors(seen):
    unknown, shape, late = seen["errors"]
    assert unknown == ["NOT_FOUND", "Request for unknown model: 'nobody' is not found", "model_not_found"]
    assert (shape[0], "got [1,3]" in shape[1], shape[2]) == ("INVALID_ARGUMENT", True, "invalid_request")
    assert late == ["UNAVAILABLE", "Request timeout expired", "queue_timeout"]


def test_deadline_and_cancellation(seen):
    assert seen["deadline"] == "DEADLINE_EXCEEDED"
    assert seen["cancellation"] == "CANCELLED"
    assert seen["stream_that_is_cancelled"] == "CANCELLED"
    assert seen["cancelled"] >= 1


def test_many_at_once(seen):
    assert seen["concurrent"] == [[number, number] for number in range(500)]


def test_a_stream(seen):
    expected = [[str(number), number] for number in range(100)]
    expected[50] = "Request for unknown model: 'nobody' is not found"
    assert seen["stream"] == expected
