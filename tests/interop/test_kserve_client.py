"""KServe's own clients: what they expect differs from Triton's, and the gRPC one retries by itself."""

import pytest
from e2e.rest_calls import address
from interop.conftest import Busy
from interop.peers import CLIENTS, PYTHON, needs, report

pytestmark = needs(PYTHON)


def refused(server, model, reason):
    return server.metric("headrace_refused_total", model=model, reason=reason)


@pytest.fixture(scope="module")
def seen(server):
    """What they saw, by case; and how many attempts the server refused meanwhile, by reason."""
    with Busy(server):
        kinds = {"queue_full": "queue", "queue_timeout": "held"}
        before = {reason: refused(server, model, reason) for reason, model in kinds.items()}
        found = report(PYTHON, CLIENTS / "kserve_client.py", server.address, address(server))
        found["refused"] = {reason: refused(server, kinds[reason], reason) - before[reason] for reason in kinds}
        return found


def test_state(seen):
    assert seen["grpc_state"] == [True, True, True, "NOT_FOUND"]
    assert seen["rest_state"] == [True, True, True, False, False]


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_infer(seen, protocol):
    forms, many = seen[f"{protocol}_infer"]
    assert forms == [["7", "echo_fp32", [[1, 2, 3, 4]]]] * 2
    assert many == list(range(1, 51))


def test_errors(seen):
    text = "unexpected shape for input 'x' for model 'echo_fp32'. Expected [-1,4], got [1,3]."
    code, details, reason, _ = seen["grpc_error"]
    assert (code, text in details, reason) == ("INVALID_ARGUMENT", True, "invalid_request")
    status, details = seen["rest_error"]
    assert (status, text in details) == (400, True)
    assert seen["deadline"] == "DEADLINE_EXCEEDED"


def test_a_full_queue_is_tried_again_when_the_server_says(seen):
    """Three attempts, as its policy has it, the second and third after the delay that the reply before them gave."""
    (code, text, reason, pushback), seconds = seen["full_queue"]
    assert (code, reason) == ("UNAVAILABLE", "queue_full")
    assert text.startswith("Exceeds maximum queue size")
    assert seen["refused"]["queue_full"] == 3
    assert seconds >= 1.5 * int(pushback) / 1000


def test_what_is_not_worth_a_retry_is_not_tried_again(seen):
    code, text, reason, pushback = seen["queue_timeout"]
    assert (code, text, reason, pushback) == ("UNAVAILABLE", "Request timeout expired", "queue_timeout", "-1")
    assert seen["refused"]["queue_timeout"] == 1
