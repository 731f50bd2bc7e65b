"""Intake with requests that are numbers: who is taken together, and who is answered with what."""

import pytest

from headrace.errors import InvalidRequest, ModelNotFound
from headrace.testing.client import ClientCall
from headrace.testing.loop import VirtualTimeLoop
from headrace.testing.observer import RecordingObserver
from headrace.testing.requests import FakeTemplate
from headrace.transport import intake
from headrace.transport.intake import Intake


class Catalog:
    generation = 1

    def __init__(self, served):
        self.served = served

    def resolve(self, name, version):
        if name != "m":
            raise ModelNotFound("no")
        return self.served


class Owner:
    """A scheduler that keeps what it is given."""

    def __init__(self):
        self.submitted = []
        self.observer = RecordingObserver()

    def submit(self, requests):
        self.submitted.append([bytes(request.parts[0]) for request in requests])


class Turn:
    def __init__(self, loop):
        self.loop = loop

    def take(self, step):
        self.loop.call_soon(step)


class ByFirstOctet(Intake):
    """The first octet of a message is its look; `!` is refused, `?` a bug of ours. The second one is the model."""

    def __init__(self, loop, owner):
        self.reasons = []
        super().__init__(Catalog(owner), Turn(loop), self.reasons.append)
        self.owner = owner
        self.templates = {}
        self.forgotten = 0

    def _open(self, message, call):
        look = message[:1]
        if look == b"!":
            raise InvalidRequest("no")
        if look == b"?":
            raise ZeroDivisionError
        template = self.templates.setdefault(look, FakeTemplate(owner=self.owner))
        template.total = 0
        return template, [message], b"id"

    def _named(self, message, call):
        return message[1:2].decode(), ""

    def _forget(self):
        self.forgotten += 1


@pytest.fixture
def loop():
    made = VirtualTimeLoop()
    yield made
    made.close()


@pytest.fixture
def service(loop):
    return ByFirstOctet(loop, Owner())


def send(service, *messages):
    calls = [ClientCall(message) for message in messages]
    for call in calls:
        service(call)
    return calls


def test_what_arrives_in_a_turn_is_taken_at_its_end_in_runs_of_one_look(service, loop):
    send(service, b"a1", b"a2", b"b1", b"a3")
    assert service.owner.submitted == []
    loop.run_until_idle()
    assert service.owner.submitted == [[b"a1", b"a2"], [b"b1"], [b"a3"]]
    send(service, b"a4")
    loop.run_until_idle()
    assert service.owner.submitted[3:] == [[b"a4"]]


def test_one_that_is_refused_does_not_part_the_others(service, loop):
    first, refused, bug, last = send(service, b"a1", b"!", b"?", b"a2")
    loop.run_until_idle()
    assert service.owner.submitted == [[b"a1", b"a2"]]
    assert (type(refused.error), type(bug.error)) == (InvalidRequest, ZeroDivisionError)
    assert service.reasons == ["invalid_request", "internal"]
    assert not first.ended
    assert not last.ended


def test_what_cannot_be_opened_counts_for_the_model_that_it_names(service, loop):
    unrouted = []
    service.failed = lambda sink, received, reason: unrouted.append((received, reason))
    calls = send(service, b"!m", b"?m", b"!x", b"!")
    loop.run_until_idle()
    assert all(call.error for call in calls)
    assert service.owner.observer.reasons == {"invalid_request": 1, "internal": 1}
    assert service.reasons == ["invalid_request", "invalid_request"]
    assert unrouted == [(0, "invalid_request"), (0, "invalid_request")]


def test_one_whose_caller_has_gone_away_is_left_out(service, loop):
    _, gone, _ = send(service, b"a1", b"a2", b"a3")
    gone.cancel()
    loop.run_until_idle()
    assert service.owner.submitted == [[b"a1", b"a3"]]


def test_a_large_one_is_taken_at_once_with_those_before_it(service, monkeypatch):
    monkeypatch.setattr(intake, "_LARGE", 4)
    send(service, b"a1", b"a234")
    assert service.owner.submitted == [[b"a1", b"a234"]]


def test_a_large_one_from_another_process_waits_for_the_turns_end(service, loop, monkeypatch):
    monkeypatch.setattr(intake, "_LARGE", 4)
    for message in (b"a234", b"a1"):
        service.gather(ClientCall(message))
    assert service.owner.submitted == []
    loop.run_until_idle()
    assert service.owner.submitted == [[b"a234", b"a1"]]


def test_a_scheduler_that_fails_is_an_error_of_its_calls(service, loop):
    service.owner.submit = lambda requests: 1 / 0
    calls = send(service, b"a1", b"a2")
    loop.run_until_idle()
    assert [type(call.error) for call in calls] == [ZeroDivisionError] * 2
    assert service.owner.observer.reasons == {"internal": 2}
    assert service.reasons == []


def test_looks_are_forgotten_when_the_models_change(service, loop):
    send(service, b"a1")
    loop.run_until_idle()
    assert service.forgotten == 0
    service._catalog.generation += 1
    for _ in range(2):
        send(service, b"a1")
        loop.run_until_idle()
    assert service.forgotten == 1
