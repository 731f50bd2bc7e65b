import numpy as np
import pytest
from drift.conftest import SALT, watch
from hypothesis import given
from hypothesis import strategies as st

from headrace.drift.errors import DriftError
from headrace.drift.extract import Columns, Extractor
from headrace.drift.plan import draw_plan, plan_from_json, plan_json
from headrace.drift.summary import summary_from_json, summary_json, summary_of
from headrace.drift.tally import BYTES_A_FEATURE, BYTES_OF_ITEMS, Tally


def plan_of(rows, salt=SALT, **options):
    described = watch(rows.shape[1:], **options)
    return draw_plan(described, salt, Extractor(described, salt)(rows))


def tally_of(plan, *parts):
    tally = Tally(plan)
    for rows in parts:
        tally.update(plan.extractor()(rows))
    return tally


@pytest.fixture
def rows(random):
    return random.normal(size=(5000, 3)).astype(np.float32)


@pytest.fixture
def tokens(random):
    return (random.zipf(1.5, size=(2000, 8)) % 1000).astype(np.int64)


def equal(a, b):
    """What two tallies have counted exactly is the same."""
    assert (a.rows, a.item_rows) == (b.rows, b.item_rows)
    for name in ("histogram", "outside", "items"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_allclose(a.moments.mean, b.moments.mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(a.moments.m2, b.moments.m2, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(a.quantiles.seen, b.quantiles.seen)


@given(st.integers(0, 400), st.integers(0, 2**32 - 1))
def test_merged_parts_are_the_whole(cut, seed):
    rows = np.random.default_rng(seed).standard_t(2, size=(400, 2)).astype(np.float32)
    rows[rows > 5] = np.nan
    plan = plan_of(rows[::2])
    whole, merged = tally_of(plan, rows), tally_of(plan, rows[:cut])
    merged.merge(tally_of(plan, rows[cut:]))
    equal(merged, whole)


def test_merged_items_are_the_whole(tokens):
    plan = plan_of(tokens[::2], datatype="INT64", kind="tokens")
    whole, merged = tally_of(plan, tokens), tally_of(plan, tokens[:700])
    merged.merge(tally_of(plan, tokens[700:]))
    equal(merged, whole)
    assert whole.items.sum() == tokens.size


def test_what_lies_outside_the_range_of_the_plan(rows):
    plan = plan_of(rows)
    tally = tally_of(plan, np.array([[0, 0, 0], [99, 0, -99], [np.inf, np.nan, -np.inf]], np.float32))
    assert tally.outside.tolist() == [[0, 2], [0, 0], [2, 0]]
    assert tally.moments.missing.tolist() == [0, 1, 0]
    assert not tally_of(plan, rows).outside.any(), "its least and greatest row are within"


def test_unseen_items_are_those_that_the_plan_did_not_have():
    plan = plan_of(np.repeat(np.arange(100), 20).reshape(-1, 4), datatype="INT64", kind="tokens")
    assert len(plan.items.cells) == 64
    tally = tally_of(plan, np.array([[0, 99, 100, 5000]]))
    known = [int((plan.items.cells == item).any()) for item in (0, 99)]
    assert tally.items[-1] == 2
    assert tally.items[-2] == 2 - sum(known)
    assert tally.items[:-2].sum() == sum(known)


def test_rare_items_have_no_cell_of_their_own():
    items = np.concatenate([np.zeros(50, np.int64), np.arange(1, 51)]).reshape(-1, 10)
    assert plan_of(items, datatype="INT64", kind="tokens").items.cells.tolist() == [0]


def test_other_plans_cannot_be_merged(rows):
    one, other = plan_of(rows), plan_of(rows[:100])
    with pytest.raises(DriftError, match="x: counted by different plans"):
        tally_of(one, rows).merge(tally_of(other, rows))
    tally_of(one, rows).merge(tally_of(plan_of(rows), rows))


@pytest.mark.parametrize("options", [{}, {"kind": "summary"}, {"kind": "classes"}])
def test_plans_are_read_as_written(rows, options):
    plan = plan_of(rows, **options)
    again = plan_from_json(plan_json(plan))
    assert again.fingerprint == plan.fingerprint
    assert again.watch == plan.watch
    equal(tally_of(again, rows), tally_of(plan, rows))
    assert plan_of(rows, salt=bytes(16), **options).fingerprint != plan.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.pop("grid"),
        lambda value: value["grid"].update(step=[0.0, 1.0, 1.0]),
        lambda value: value["grid"].update(origin=[1.0]),
        lambda value: value["grid"]["edges"][0].reverse(),
        lambda value: value.update(salt="xy"),
        lambda value: value["watch"].update(kind="summary"),
        lambda value: value["watch"].update(other=1),
        lambda value: value.update(items={"cells": [], "known": ""}),
    ],
)
def test_what_is_no_plan_is_refused(rows, change):
    value = plan_json(plan_of(rows))
    change(value)
    with pytest.raises(DriftError):
        plan_from_json(value)


def test_tallies_are_read_as_written(rows, tokens):
    for plan, data in ((plan_of(rows), rows), (plan_of(tokens, datatype="INT64", kind="tokens"), tokens)):
        tally = tally_of(plan, data)
        again = Tally.of(plan, tally.arrays())
        equal(again, tally)
        again.merge(tally)
        assert again.rows == 2 * tally.rows


def test_arrays_of_another_plan_are_refused(rows):
    arrays = tally_of(plan_of(rows), rows).arrays()
    with pytest.raises(DriftError, match="histogram is not as the plan has it"):
        Tally.of(plan_of(rows, bins=5), arrays)
    arrays.pop("moments.mean")
    with pytest.raises(DriftError, match=r"moments\.mean is not as the plan has it"):
        Tally.of(plan_of(rows), arrays)


def test_what_was_written_before_infinities_were_counted_is_read(rows):
    plan = plan_of(rows)
    tally = tally_of(plan, rows)
    arrays = tally.arrays()
    assert arrays.pop("moments.infinite").tolist() == [0] * rows.shape[1]
    equal(Tally.of(plan, arrays), tally)
    value = summary_json(summary_of(tally))
    assert value["moments"].pop("infinite") == [0] * rows.shape[1]
    assert summary_from_json(value, plan).moments.infinite.tolist() == [0] * rows.shape[1]


def test_memory_of_a_feature_is_bounded(random, tokens):
    """By what is written of it; in memory it is the same and some overhead."""
    rows = random.normal(size=(50_000, 4))
    tally = tally_of(plan_of(rows), rows)
    assert sum(array.nbytes for array in tally.arrays().values()) / 4 < BYTES_A_FEATURE
    many = random.integers(0, 2**40, size=(3000, 8))
    tally = tally_of(plan_of(many, datatype="INT64", kind="tokens"), many)
    assert sum(array.nbytes for array in tally.arrays().values()) < BYTES_OF_ITEMS


def test_numbers_alone_leave_items_as_they_are(tokens):
    plan = plan_of(tokens, datatype="INT64", kind="tokens")
    tally = Tally(plan)
    tally.update(Columns(np.full((10, 1), 8.0)))
    assert (tally.rows, tally.item_rows, tally.items.sum()) == (10, 0, 0)


def test_no_value_of_a_row_is_kept(random):
    """What is written holds none of the values, nor their text, at any precision that tells one from another."""
    rows = random.normal(size=(3000, 1)) * 1000 + 31.4159
    names = np.array([[f"person-{index % 40}".encode()] for index in range(3000)], object)
    for plan, data in ((plan_of(rows), rows), (plan_of(names, datatype="BYTES"), names)):
        octets = b"".join(array.tobytes() for array in tally_of(plan, data).arrays().values())
        octets += repr(plan_json(plan)).encode() + repr(summary_json(summary_of(tally_of(plan, data)))).encode()
        assert b"person" not in octets
        for value in rows[:, 0]:
            assert value.tobytes() not in octets
            assert np.float32(value).tobytes() not in octets
            assert f"{value:.9g}".encode() not in octets


def test_summaries_are_read_as_written(rows, tokens):
    rows[:, 2] = np.nan
    for plan, data in ((plan_of(rows), rows), (plan_of(tokens, datatype="INT64", kind="tokens"), tokens)):
        summary = summary_of(tally_of(plan, data))
        again = summary_from_json(summary_json(summary), plan)
        assert summary_json(again) == summary_json(summary)
        np.testing.assert_array_equal(again.histogram, summary.histogram)
        np.testing.assert_array_equal(again.moments.minimum, summary.moments.minimum)


def test_rare_items_are_not_named(tokens):
    frequent = summary_of(tally_of(plan_of(tokens, datatype="INT64", kind="tokens"), tokens)).frequent
    assert frequent[0][0] == 1
    assert all(count >= 16 for _, count in frequent)
    assert summary_of(tally_of(plan_of(tokens, datatype="INT64", kind="tokens"), tokens[:1])).frequent == ()
