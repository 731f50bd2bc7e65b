from itertools import pairwise

import numpy as np
import pytest

from headrace.guard.comparison import compare
from headrace.guard.record import MARGINS, Record
from headrace.guard.report import margins_of, proof_of, report_of
from headrace.guard.settings import GuardSettings

SETTINGS = GuardSettings("y", "classes")


def rows(*probabilities):
    return np.array([[p, 1 - p] for p in probabilities])


def counted(settings=SETTINGS):
    record = Record(settings)
    record.add(compare(settings, rows(0.9, 0.4, 0.6), rows(0.9, 0.52, 0.7)), [1, 2])
    record.add(compare(settings, rows(1.0), rows(1.0)), [1])
    return record


def test_a_request_is_one_observation_whatever_its_rows():
    snapshot = counted().snapshot()
    assert (snapshot.overall.requests, snapshot.rows) == (3, 4)
    assert snapshot.overall.mean_agreement == pytest.approx((1 + 0.5 + 1) / 3)
    assert snapshot.overall.mean_error == pytest.approx((0 + 0.11 + 0) / 3)
    assert snapshot.largest == pytest.approx(0.12)
    assert snapshot.absolute == pytest.approx((0.12 + 0.1) / 4)
    assert snapshot.cosine is None


def test_disagreement_by_margin():
    told = margins_of(counted().snapshot())
    assert [(one.low, one.high) for one in told] == list(pairwise(MARGINS))
    assert {one.low: (one.rows, one.disagreement) for one in told if one.rows} == {
        0.0: (1, 1.0), 0.25: (1, 0.0), 0.75: (1, 0.0), 0.9: (1, 0.0)
    }  # fmt: skip
    assert told[2].disagreement == 0.0
    assert told[1].disagreement is None


def test_a_snapshot_stays_as_it_is():
    record = counted()
    before = record.snapshot()
    bounds = before.overall.error_bounds()
    record.add(compare(SETTINGS, rows(0.0), rows(1.0)), [1])
    assert (before.overall.requests, before.rows) == (3, 4)
    assert before.overall.error_bounds() == bounds
    assert record.snapshot().overall.requests == 4
    assert "Record of 5 rows" in repr(record)


def test_vectors_have_a_cosine_and_no_margin():
    settings = GuardSettings("y", "values")
    record = Record(settings)
    record.add(compare(settings, np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]])), [1])
    snapshot = record.snapshot()
    assert (snapshot.cosine, snapshot.margins, margins_of(snapshot)) == (1.0, (), ())


def test_rows_without_a_difference_are_counted_and_no_part_of_its_mean():
    record = Record(SETTINGS)
    nan = np.nan
    record.add(compare(SETTINGS, np.array([[nan, nan], [nan, 0.5]]), rows(1.0, 0.0)), [1, 1])
    told = report(record)
    assert (told.nonfinite_differences, told.max_absolute_error, told.mean_absolute_error) == (3, 0.5, 0.5)
    alone = Record(SETTINGS)
    alone.add(compare(SETTINGS, np.array([[nan, nan]]), rows(1.0)), [1])
    told = report(alone)
    assert (told.nonfinite_differences, told.max_absolute_error, told.mean_absolute_error) == (2, None, None)


def report(record, **more):
    return report_of(
        SETTINGS, record.snapshot(), model="m", version="2", reference="1", state="watching", action="fall_back",
        share=0.01, skipped={"busy": 1}, failed=0, cpu_ns=2_000_000, **{"proof": None} | more,
    )  # fmt: skip


def test_the_report_of_nothing():
    told = report(Record(SETTINGS)).model_dump(mode="json")
    assert told["agreement"] == {"mean": None, "lower": 0.0, "upper": 1.0}
    assert told["error"] == {"mean": None, "lower": 0.0, "upper": 1.0}
    assert told["recent"] == {"requests": 0, "agreement": None, "error": None}
    assert (told["mean_absolute_error"], told["max_absolute_error"], told["margins"]) == (None, None, [])
    assert told["cpu_seconds"] == 0.002


def test_the_report_of_a_proof():
    record = Record(SETTINGS)
    finding = record.add(compare(SETTINGS, rows(*[0.0] * 30), rows(*[1.0] * 30)), [1] * 30)
    told = report(record, proof=proof_of(finding, 30, 1_700_000_000_000))
    assert (told.requests, told.agreement.mean, told.proof.bound < 0.99) == (30, 0.0, True)
    assert told.proof.text == str(finding)
    assert told.model_validate_json(told.model_dump_json()) == told
