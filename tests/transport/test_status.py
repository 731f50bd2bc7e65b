import logging
import re

import pytest

from headrace import errors
from headrace.errors import HeadraceError
from headrace.transport.status import STATUS, Code, client_message, grpc_status, http_fields, http_status

EXPECTED = {
    "InvalidRequest": (3, 400),
    "RuleBroken": (3, 400),
    "ProtocolError": (13, 400),
    "ModelNotFound": (5, 404),
    "ModelNotReady": (14, 503),
    "ServiceNotFound": (5, 404),
    "ModelControlDisabled": (14, 503),
    "ModelNotInRepository": (13, 500),
    "LoadFailed": (3, 400),
    "RegionNotFound": (5, 404),
    "RegionExists": (6, 400),
    "RegionTooSmall": (13, 500),
    "Unimplemented": (12, 501),
    "MessageTooLarge": (8, 413),
    "Overloaded": (14, 503),
    "QueueFull": (14, 503),
    "StateFull": (14, 503),
    "StateLost": (14, 503),
    "DeadlineUnreachable": (14, 503),
    "ShuttingDown": (14, 503),
    "QueueTimeout": (14, 503),
    "DeadlineExceeded": (4, 504),
    "RequestTooSlow": (4, 408),
    "Cancelled": (1, 499),
    "BackendFailed": (13, 500),
}


def subclasses(cls):
    return [s for direct in cls.__subclasses__() for s in (direct, *subclasses(direct))]


TAXONOMY = [cls for cls in subclasses(HeadraceError) if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", TAXONOMY, ids=lambda cls: cls.__name__)
def test_every_error_has_a_status_and_speaks_to_the_client(cls):
    error = cls("what was wrong")
    status = grpc_status(error)
    assert (status.code, http_status(error)) == EXPECTED[cls.__name__]
    assert status.message == "what was wrong"
    assert status.trailers[0] == ("headrace-reason", cls.reason)
    assert any(base in STATUS for base in cls.__mro__ if base not in {HeadraceError, Exception, BaseException, object})


def test_the_taxonomy_is_what_was_expected_and_reasons_are_distinct():
    assert {cls.__name__ for cls in TAXONOMY} == EXPECTED.keys()
    assert len({cls.reason for cls in TAXONOMY}) == len(TAXONOMY)


def test_a_subclass_from_elsewhere_takes_the_status_of_its_base():
    class OutOfCredit(errors.QueueFull):
        reason = "out_of_credit"

    status = grpc_status(OutOfCredit("no", retry_after_ms=7))
    assert status.code == Code.UNAVAILABLE
    assert status.trailers == (("headrace-reason", "out_of_credit"), ("grpc-retry-pushback-ms", "7"))


@pytest.mark.parametrize(
    ("error", "pushback"),
    [
        (errors.QueueFull("full", retry_after_ms=40), "40"),
        (errors.DeadlineUnreachable("late"), "-1"),
        (errors.StateFull("full"), "-1"),
        (errors.ShuttingDown("bye"), "-1"),
        (errors.QueueTimeout("Request timeout expired"), "-1"),
    ],
)
def test_refusals_under_load_say_whether_to_retry(error, pushback):
    assert dict(grpc_status(error).trailers)["grpc-retry-pushback-ms"] == pushback


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (errors.QueueFull("full", retry_after_ms=1), {"Headrace-Reason": "queue_full", "Retry-After": "1"}),
        (errors.QueueFull("full", retry_after_ms=2001), {"Headrace-Reason": "queue_full", "Retry-After": "3"}),
        (errors.QueueFull("full"), {"Headrace-Reason": "queue_full"}),
        (errors.ShuttingDown("bye"), {"Headrace-Reason": "shutting_down"}),
        (errors.InvalidRequest("bad"), {"Headrace-Reason": "invalid_request"}),
        (KeyError("secret"), {}),
    ],
)
def test_over_http_a_retry_is_asked_for_only_where_it_helps(error, fields):
    assert dict(http_fields(error)) == fields


@pytest.mark.parametrize("error", [errors.ModelNotReady("loading"), errors.InvalidRequest("bad")])
def test_other_errors_leave_retrying_to_the_client(error):
    assert "grpc-retry-pushback-ms" not in dict(grpc_status(error).trailers)


def test_an_unforeseen_error_is_logged_and_not_told(caplog):
    try:
        raise KeyError("the secret path")
    except KeyError as raised:
        error = raised
    with caplog.at_level(logging.ERROR):
        status = grpc_status(error)
    assert (status.code, http_status(error), status.trailers) == (13, 500, ())
    match = re.fullmatch(r"internal error, correlation id ([0-9a-f]{16})", status.message)
    assert match
    assert match[1] in caplog.text
    assert "the secret path" in caplog.text
    assert client_message(error) != status.message, "each occurrence has an id of its own"


def test_a_failed_backend_keeps_its_detail_to_the_log():
    status = grpc_status(errors.BackendFailed("the model failed to run", detail="/models/m/1: CUDA error 700"))
    assert status == (13, "the model failed to run", (("headrace-reason", "backend_failed"),))


def test_a_message_that_quotes_half_a_request_is_cut():
    assert grpc_status(errors.InvalidRequest("x" * 4096)).message == "x" * 4096
    assert grpc_status(errors.InvalidRequest("x" * 10_000_000)).message == "x" * 4093 + "..."
