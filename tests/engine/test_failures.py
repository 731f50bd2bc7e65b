"""What is logged of a model that fails, however often its callers have it fail."""

from headrace.engine.failures import FailureLog
from headrace.sparing import KINDS


def log():
    now = [10**12]
    return FailureLog("m", "2", lambda: now[0]), now


def test_one_traceback_a_second_of_each_class_whose_id_all_callers_of_the_second_get(caplog):
    failures, now = log()
    told = [failures.request(ValueError(f"idx={n}"), "") for n in range(40)]
    assert len({str(failure) for failure in told}) == 1
    assert [failure.detail for failure in told[:2]] == ["idx=0", "idx=1"]
    assert str(failures.request(TypeError("x"), "ab")) != str(told[0])
    now[0] += 10**9
    assert str(failures.request(ValueError("idx=40"), "")) != str(told[0])
    first, other, last = caplog.records
    assert [record.exc_info[1].args for record in caplog.records] == [("idx=0",), ("x",), ("idx=40",)]
    assert first.getMessage() == f"version 2 of {told[0]}"
    assert last.getMessage().endswith("; 39 more like it were not logged")
    assert [(record.model, record.version) for record in caplog.records] == [("m", "2")] * 3
    assert (other.trace_id, first.correlation_id) == ("ab", str(told[0]).rpartition(" ")[2])


def test_batches_that_are_run_again_are_told_as_sparingly(caplog):
    failures, now = log()
    for requests in (3, 4, 5):
        failures.batch(ValueError("no"), requests)
    now[0] += 10**9
    failures.batch(ValueError("no"), 6)
    said = "model m version 2 failed a batch of %d requests, which are run one by one: no"
    assert caplog.messages == [said % 3, said % 6 + "; 2 more like it were not logged"]


def test_ids_of_many_classes_are_not_kept_for_ever(caplog):
    failures, _ = log()
    for n in range(2 * KINDS):
        error = type(f"Error{n}", (Exception,), {})()
        assert str(failures.request(error, "")) == str(failures.request(error, ""))
    assert len(failures._told) <= KINDS
