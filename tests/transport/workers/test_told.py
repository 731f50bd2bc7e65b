import logging

import pytest

from headrace import errors
from headrace.errors import HeadraceError, Told, reason_of
from headrace.transport.status import client_message, grpc_status
from headrace.transport.workers.records import Malformed
from headrace.transport.workers.told import tell, told

KINDS = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, HeadraceError)]


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
def test_a_caller_sees_the_same(cls):
    error = cls("what was wrong ☃ \ud800")
    heard = told(tell(error))
    assert type(heard) is Told
    assert grpc_status(heard) == grpc_status(error)
    assert reason_of(heard) == reason_of(error)
    assert client_message(heard) == client_message(error)


def test_when_to_come_back_is_told():
    assert ("grpc-retry-pushback-ms", "250") in grpc_status(told(tell(errors.QueueFull("full", 250)))).trailers


def test_what_was_not_foreseen_is_logged_where_it_happened(caplog):
    octets = tell(RuntimeError("a secret"))
    (line,) = caplog.records
    assert line.levelno == logging.ERROR
    caplog.clear()

    heard = told(octets)
    status = grpc_status(heard)
    assert (status.code, status.trailers, reason_of(heard)) == (13, (), "internal")
    assert status.message == line.getMessage() == client_message(heard)
    assert not caplog.records


@pytest.mark.parametrize("octets", [b"", b"{", b"[]", b"[1]", b'["x", "", [], ""]', b'[1, "", [1], ""]', b"\xff"])
def test_an_error_that_is_none(octets):
    with pytest.raises(Malformed):
        told(octets)
