import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headrace.guard.comparison import compare
from headrace.guard.record import Record
from headrace.guard.settings import GuardSettings

NAN, INF = float("nan"), float("inf")


def settings(kind, **more):
    return GuardSettings("y", kind, **more)


def classes(found, expected):
    return compare(settings("classes"), np.array(found, np.float32), np.array(expected, np.float32))


def test_top_1_of_probabilities():
    compared = classes([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]], [[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]])
    assert compared.agreement.tolist() == [1, 0]
    assert compared.error == pytest.approx([0.1, 0.2], abs=1e-6), "total variation"
    assert compared.margin == pytest.approx([0.5, 0.05], abs=1e-6)
    assert compared.absolute == pytest.approx([0.2 / 3, 0.4 / 3], abs=1e-6)
    assert compared.largest == pytest.approx([0.1, 0.2], abs=1e-6)


def test_scores_go_through_a_softmax():
    compared = classes([[2.0, -1.0]], [[3.0, -1.0]])
    p, q = 1 / (1 + np.exp(-4)), 1 / (1 + np.exp(-3))
    assert compared.error == pytest.approx([p - q])
    assert compared.margin == pytest.approx([2 * p - 1])


def test_of_equal_scores_any_is_right():
    assert classes([[0.0, 1.0, 0.0], [0, 0, 1]], [[0.4, 0.4, 0.2], [0.4, 0.4, 0.2]]).agreement.tolist() == [1, 0]


def test_places_of_a_row_are_counted_one_by_one():
    found = [[[1, 0], [0, 1], [0, 1], [0, 1]]]
    expected = [[[1, 0], [0, 1], [1, 0], [0, 1]]]
    assert classes(found, expected).agreement.tolist() == [0.75]


def test_what_is_not_finite_is_wrong_unless_the_reference_is_so_too():
    compared = classes([[NAN, 0.0], [0.5, 0.5], [NAN, 2.0], [INF, 1.0]], [[1.0, 0.0], [INF, 0], [NAN, 1.0], [INF, 1.0]])
    assert compared.agreement.tolist() == [0, 0, 1, 1]
    assert compared.error.tolist()[:2] == [1, 1]
    assert np.isfinite([*compared.error, *compared.margin]).all()


def test_classes_that_both_have_masked_out_do_not_hide_what_the_others_are():
    found, expected = [[-INF, -6.0, -5.0], [-INF, 1.0, 0.0]], [[-INF, -3.0, -5.0], [-INF, 1.0, 0.0]]
    compared = classes(found, expected)
    p, q = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(1))
    assert compared.agreement.tolist() == [0, 1]
    assert compared.error == pytest.approx([p - q, 0])
    assert compared.margin[0] == pytest.approx(2 * p - 1)


def test_one_row_that_is_not_finite_makes_no_scores_of_the_others_probabilities():
    compared = classes([[0.5, 0.5], [NAN, 1.0], [INF, 0.0]], [[0.9, 0.1], [NAN, 1.0], [INF, 0.0]])
    assert compared.error == pytest.approx([0.4, 0, 0])
    assert compared.margin[0] == pytest.approx(0.8)


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_of_what_is_not_finite_there_is_no_difference_but_a_count(kind):
    found = np.array([[NAN, 0.25], [INF, NAN], [INF, 0.5], [1.0, 0.0], [NAN, NAN]], np.float32)
    expected = np.array([[1.0, 0.5], [1.0, 0.0], [INF, 0.5], [NAN, 1.0], [NAN, 1.0]], np.float32)
    compared = compare(settings(kind), found, expected)
    assert compared.strange.tolist() == [1, 2, 0, 1, 1]
    np.testing.assert_equal(compared.largest, [0.25, NAN, 0, 1, NAN])
    np.testing.assert_equal(compared.absolute, [0.25, NAN, 0, 1, NAN], "of the elements that are finite in both")
    assert compared.agreement.tolist() == [0, 0, 1, 0, 0]
    assert compared.error[[0, 1, 3, 4]].tolist() == [1, 1, 1, 1]


def test_where_nothing_is_subtracted_there_is_no_difference():
    for compared in (
        compare(settings("equal"), np.array([[1], [2]]), np.array([[1], [1]])),
        compare(settings("values"), np.ones((2, 3)), np.ones((2, 4))),
        compare(settings("values"), np.ones((2, 0)), np.ones((2, 0))),
    ):
        assert np.isnan([*compared.absolute, *compared.largest]).all()
        assert compared.strange.tolist() == [0, 0]


def test_values_by_their_relative_error():
    expected = np.array([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], np.float32)
    found = np.array([[3.0, 4.1], [3.0, 5.0], [0.0, 0.0], [1.0, 0.0], [NAN, 0.0]], np.float32)
    compared = compare(settings("values", tolerance=0.05), found, expected)
    assert compared.agreement.tolist() == [1, 0, 1, 0, 0]
    assert compared.error == pytest.approx([0.02, 0.2, 0, 1, 1], abs=1e-6)
    assert compared.cosine[:4] == pytest.approx([0.9999, 0.9947, 1, 0], abs=1e-4)
    assert compared.margin is None


def test_one_value_is_a_vector_too():
    compared = compare(settings("values"), np.array([[103.0], [110.0]]), np.array([[100.0], [100.0]]))
    assert compared.agreement.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("found", "expected", "agreement"),
    [
        (np.array([[1, 2], [1, 3]]), np.array([[1, 2], [1, 2]]), [1, 0.5]),
        (np.array([[b"a"], [b"b"]], object), np.array([[b"a"], [b"a"]], object), [1, 0]),
        (np.array([[True], [False]]), np.array([[True], [True]]), [1, 0]),
        (np.array([[NAN, 1.0]]), np.array([[NAN, 1.0]]), [1]),
        (np.array([1, 2]), np.array([1, 1]), [1, 0]),
    ],
)
def test_equal_element_by_element(found, expected, agreement):
    compared = compare(settings("equal"), found, expected)
    assert compared.agreement.tolist() == agreement
    assert compared.error.tolist() == [1 - one for one in agreement]


def test_rows_of_other_dimensions_agree_in_nothing():
    compared = compare(settings("values"), np.ones((2, 3)), np.ones((2, 4)))
    assert (compared.agreement.tolist(), compared.error.tolist()) == ([0, 0], [1, 1])


def test_rows_without_elements_agree():
    assert compare(settings("values"), np.ones((2, 0)), np.ones((2, 0))).agreement.tolist() == [1, 1]


ANY = arrays(np.float32, (3, 4), elements=st.floats(width=32))


@given(ANY, ANY, st.sampled_from(["classes", "values", "equal"]))
def test_whatever_comes_all_is_a_share(found, expected, kind):
    compared = compare(settings(kind), found, expected)
    for values in (compared.agreement, compared.error, compared.margin):
        if values is not None:
            assert ((values >= 0) & (values <= 1)).all()
    assert not np.isinf([*compared.absolute, *compared.largest]).any()
    assert ((compared.strange >= 0) & (compared.strange <= 4)).all()


@given(ANY, st.sampled_from(["classes", "values", "equal"]))
def test_the_same_agrees(found, kind):
    compared = compare(settings(kind), found, found.copy())
    assert compared.agreement.tolist() == [1, 1, 1]
    assert compared.error == pytest.approx([0, 0, 0], abs=1e-12)


@pytest.mark.parametrize("size", [1e200, 1e-170, 5e-324, 8e307])
def test_vectors_whose_squares_no_double_holds(size):
    compared = compare(settings("values"), np.array([[2 * size, 0.0], [0.0, size]]), np.array([[size, 0.0]] * 2))
    assert compared.agreement.tolist() == [0, 0]
    assert compared.error.tolist() == [1, 1]
    assert compared.cosine.tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["classes", "values"])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_what_overflows_is_no_warning_on_the_servers_standard_error(kind, dtype):
    """Warnings are errors in these tests."""
    most = float(np.finfo(dtype).max)
    found, expected = (
        np.array([[most, -most, INF], [NAN] * 3], dtype),
        np.array([[-most, most, -INF], [1, 2, 3]], dtype),
    )
    compared = compare(settings(kind), found, expected)
    assert compared.agreement.tolist() == [0, 0]
    assert compared.error.tolist() == [1, 1]
    Record(settings(kind)).add(compared, [1, 1])
