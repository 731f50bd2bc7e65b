import logging

from headrace.telemetry.guard import ObserverGuard


class Broken:
    """An observer and model observer that raises whatever it is told to."""

    def __init__(self, **errors):
        self.errors = errors
        self.calls = []

    def _call(self, name, *args):
        self.calls.append((name, *args))
        if name in self.errors:
            raise self.errors[name]

    def model(self, name, version, queue_depth):
        self._call("model", name, version)
        return self

    def forget(self, name, version):
        self._call("forget", name, version)

    def batch(self, record):
        self._call("batch", record)

    def refused(self, reason, requests=1, request=None, record=None):
        self._call("refused", reason, requests, request, record)

    def unfit(self, sink, received, reason):
        self._call("unfit", sink, received, reason)

    def trace_id(self, request):
        self._call("trace_id", request)
        return "abc"

    def wasted(self, rows, execute_ns):
        self._call("wasted", rows, execute_ns)

    def padded(self, elements, padding):
        self._call("padded", elements, padding)

    def rule_broken(self, name, rule, policy, requests):
        self._call("rule_broken", name, rule, policy, requests)

    def sequences_expired(self, sequences):
        self._call("sequences_expired", sequences)

    def fell_back(self, backend, to, reason):
        self._call("fell_back", backend, to, reason)

    def instances_lost(self, instances):
        self._call("instances_lost", instances)

    def rerun(self, requests):
        self._call("rerun", requests)


def drive(observer):
    guard = ObserverGuard(observer)
    model = guard.model("m", "1", lambda: (0, 0))
    for _ in range(2):
        model.batch("record")
        model.refused("queue_full")
        model.refused("cancelled", 3)
        model.refused("cancelled", request="request", record="record")
        model.unfit("sink", 7, "invalid_request")
        assert model.trace_id("request") in ("abc", "")
        model.wasted(1, 2)
        model.padded(3, 4)
        model.rule_broken("x", "range", "count", 5)
        model.sequences_expired(4)
        model.fell_back("fast", "safe", "lost")
        model.instances_lost(5)
        model.rerun(6)
    guard.forget("m", "1")
    return guard


def kinds(caplog):
    return [(record.method, record.error) for record in caplog.records]


def test_everything_is_passed_on(caplog):
    observer = Broken()
    drive(observer)
    turn = [
        ("batch", "record"), ("refused", "queue_full", 1, None, None), ("refused", "cancelled", 3, None, None),
        ("refused", "cancelled", 1, "request", "record"), ("unfit", "sink", 7, "invalid_request"),
        ("trace_id", "request"), ("wasted", 1, 2), ("padded", 3, 4),
        ("rule_broken", "x", "range", "count", 5), ("sequences_expired", 4), ("fell_back", "fast", "safe", "lost"),
        ("instances_lost", 5), ("rerun", 6),
    ]  # fmt: skip
    assert observer.calls == [("model", "m", "1"), *turn, *turn, ("forget", "m", "1")]
    assert caplog.records == []


def test_each_kind_is_logged_once_and_nothing_is_raised(caplog):
    error = ValueError("x")
    observer = Broken(
        batch=error,
        refused=error,
        unfit=error,
        trace_id=error,
        wasted=KeyError("y"),
        padded=error,
        rule_broken=error,
        sequences_expired=error,
        fell_back=error,
        instances_lost=error,
        rerun=error,
        forget=error,
    )
    guard = drive(observer)
    assert kinds(caplog) == [
        ("batch", "ValueError"), ("refused", "ValueError"), ("unfit", "ValueError"), ("trace_id", "ValueError"),
        ("wasted", "KeyError"), ("padded", "ValueError"), ("rule_broken", "ValueError"),
        ("sequences_expired", "ValueError"), ("fell_back", "ValueError"), ("instances_lost", "ValueError"),
        ("rerun", "ValueError"), ("forget", "ValueError"),
    ]  # fmt: skip
    assert all(record.levelno == logging.ERROR and record.exc_info[1] for record in caplog.records)
    assert len(observer.calls) == 28  # it is called again after it has failed
    observer.errors["forget"] = TypeError("z")
    guard.forget("m", "1")
    assert kinds(caplog)[12:] == [("forget", "TypeError")]


def test_a_model_without_observer_hears_nothing(caplog):
    observer = Broken(model=RuntimeError("x"))
    drive(observer)
    assert observer.calls == [("model", "m", "1"), ("forget", "m", "1")]
    assert kinds(caplog) == [("model", "RuntimeError")]


def test_a_function_is_guarded_too(caplog):
    heard = []
    guard = ObserverGuard(Broken())

    def fails(*arguments):
        heard.append(arguments)
        raise ValueError("x")

    for _ in range(2):
        guard.guarded("unrouted", fails)(1, 2)
    assert heard == [(1, 2), (1, 2)]
    assert kinds(caplog) == [("unrouted", "ValueError")]
