import json

import pytest

from headrace.errors import InvalidRequest, QueueFull, ShuttingDown
from headrace.transport.rest.answer import HttpError, Openings, phrase, refusal_of

DATE = b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"  # RFC 9110, 5.6.7
NOW = 784111777.9


def test_the_openings():
    openings = Openings(0)
    openings.refresh(NOW)
    assert openings.ok == b"HTTP/1.1 200 OK\r\n" + DATE
    assert openings.ok_close == openings.ok + b"Connection: close\r\n"
    assert openings.fields == [(b"date", b"Sun, 06 Nov 1994 08:49:37 GMT")]


@pytest.mark.parametrize("close", [False, True])
def test_a_refusal(close):
    answer = Openings(NOW).refusal(503, "ä\ud800", [("Retry-After", "3")], close=close)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert json.loads(body) == {"error": "ä\ud800"}
    assert head == (
        b"HTTP/1.1 503 Service Unavailable\r\n" + DATE + b"Connection: close\r\n" * close + b"Retry-After: 3\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d" % len(body)
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (HttpError(431, "large"), (431, "large", ())),
        (InvalidRequest("no"), (400, "no", (("Headrace-Reason", "invalid_request"),))),
        (QueueFull("full", 1001), (503, "full", (("Headrace-Reason", "queue_full"), ("Retry-After", "2")))),
        (QueueFull("full"), (503, "full", (("Headrace-Reason", "queue_full"),))),
        (ShuttingDown("bye"), (503, "bye", (("Headrace-Reason", "shutting_down"),))),
    ],
)
def test_what_is_said_of_an_error(error, expected):
    assert refusal_of(error) == expected


def test_an_unforeseen_error_is_only_an_id():
    status, message, fields = refusal_of(ZeroDivisionError("secret"))
    assert (status, fields) == (500, ())
    assert message.startswith("internal error, correlation id ")


def test_every_status_has_a_phrase():
    assert (phrase(404), phrase(499)) == (b"Not Found", b"Client Closed Request")
