import numpy as np
import pytest

from headrace.quantize.data import Dataset
from headrace.quantize.errors import QuantizeError
from headrace.quantize.evaluate import choose_task, output_error, prepare_evaluation

PROBABILITIES = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], np.float32)
SCORES = np.array([[9.0, 1, 0], [2, 8, 0], [0, 5, 6]], np.float32)
NUMBER = np.array([[1.0], [2], [4]], np.float32)
CLASSES = np.array([0, 1, 2])


class Session:
    """Answers with rows of given arrays, by the number that a row's input has."""

    def __init__(self, **outputs):
        self.outputs = outputs

    def run(self, names, feeds):
        return [self.outputs[name][feeds["x"]] for name in names]


def data_of(rows, labels=None):
    return Dataset({"x": np.arange(rows)}, labels, rows)


def scores_of(task_arguments, source, result, labels=None):
    task = choose_task({"y": source}, labels, *task_arguments)
    known = prepare_evaluation(Session(y=source), data_of(len(source), labels), task)
    return task, known.source.tolist(), known.scores(Session(y=result)).tolist()


@pytest.mark.parametrize(
    ("outputs", "labels", "found"),
    [
        ({"p": SCORES}, CLASSES, ("accuracy", True, "p", False)),
        ({"p": SCORES}, CLASSES[:, None].astype(float), ("accuracy", True, "p", False)),  # a column of a table
        ({"l": CLASSES, "p": SCORES}, CLASSES, ("accuracy", True, "l", True)),
        ({"p": NUMBER}, np.array([1.0, 2, 4]), ("r2", True, "p", False)),
        ({"p": SCORES}, SCORES + 0.5, ("r2", True, "p", False)),
        ({"t": np.zeros((3, 5, 7), np.float32)}, np.ones((3, 5)), ("accuracy", True, "t", False)),  # a class a token
        ({"p": PROBABILITIES}, None, ("top1_agreement", False, "p", False)),
        ({"p": SCORES}, None, ("cosine", False, "p", False)),
        ({"p": SCORES, "l": CLASSES}, None, ("top1_agreement", False, "l", True)),
        ({"p": NUMBER}, None, ("r2", False, "p", False)),
        ({"l": CLASSES, "n": NUMBER}, None, ("r2", False, "n", False)),
    ],
)
def test_what_is_measured_is_what_fits(outputs, labels, found):
    task = choose_task(outputs, labels, None, "")
    assert (task.metric, task.labelled, task.output, task.classes) == found


def test_labels_in_the_order_of_their_classes_are_classes():
    """The rows that are looked at are all of the first one."""
    first = np.zeros(3, np.int64)
    assert choose_task({"p": SCORES}, first, None, "", np.array([0, 0, 0, 1, 2])).metric == "accuracy"
    for every in ([0, 0, 0, 3], [0, 0, 0, -1], [0, 0, 0, 0.5]):
        with pytest.raises(QuantizeError, match="no output fits"):
            choose_task({"p": SCORES}, first, None, "", np.array(every))


def test_a_user_knows_better():
    assert choose_task({"p": SCORES}, None, "top1_agreement", "").metric == "top1_agreement"
    assert choose_task({"p": SCORES, "q": SCORES}, None, None, "q").output == "q"


@pytest.mark.parametrize(
    ("outputs", "labels", "metric", "output", "said"),
    [
        ({"p": SCORES}, None, "accuracy", "", "accuracy is of labels"),
        ({"p": SCORES}, CLASSES, "cosine", "", "without labels"),
        ({"p": SCORES}, CLASSES, None, "q", "no output 'q', but p"),
        ({"p": SCORES}, CLASSES + 1, None, "", r"no output fits for labels int64 \[3\]"),
        ({"p": SCORES}, CLASSES - 1, "accuracy", "", "no output fits accuracy"),
        ({"p": SCORES}, np.array([0.5, 1, 2]), None, "", "no output fits"),
    ],
)
def test_what_does_not_fit_is_said(outputs, labels, metric, output, said):
    with pytest.raises(QuantizeError, match=said):
        choose_task(outputs, labels, metric, output)


def test_accuracy():
    _, source, result = scores_of((None, ""), SCORES, SCORES[:, ::-1], CLASSES)
    assert (source, result) == ([1, 1, 1], [0, 1, 0])


def test_accuracy_of_tokens_is_a_share_of_each_row():
    source = np.eye(3, dtype=np.float32)[[[0, 1], [2, 2], [1, 0]]]
    _, _, result = scores_of((None, ""), source, source[:, ::-1], np.array([[0, 1], [2, 2], [1, 1]]))
    assert result == [0, 1, 0.5]


def test_r2_is_the_mean_of_what_rows_contribute():
    truth = np.array([0.0, 1, 2, 5])
    _, source, result = scores_of((None, ""), truth[:, None].astype(np.float32), np.full((4, 1), 2, np.float32), truth)
    assert np.mean(source) == 1
    assert np.mean(result) == pytest.approx(0)  # the mean explains nothing


def test_cosine_by_row():
    source = np.array([[1.0, 0], [1, 1], [0, 0], [0, 0]], np.float32)
    got = np.array([[0.0, 2], [2, 2], [0, 0], [0, 1]], np.float32)
    _, _, result = scores_of(("cosine", ""), source, got)
    assert result == [0, pytest.approx(1), 1, 0]


@pytest.mark.parametrize("metric", ["cosine", "top1_agreement", "r2"])
def test_a_single_output_that_is_no_number_is_worth_nothing(metric):
    """Else a thousand rows would hide it."""
    broken = SCORES.copy()
    broken[1, 1] = np.nan
    _, source, result = scores_of((metric, ""), SCORES, broken)
    assert np.mean(source) == pytest.approx(1)
    assert result == [0, 0, 0]


def test_a_source_that_gives_no_numbers_is_no_reference():
    with pytest.raises(QuantizeError, match="not finite"):
        scores_of(("cosine", ""), np.full_like(SCORES, np.inf), SCORES)
    with pytest.raises(QuantizeError, match="all the same"):
        scores_of(("r2", ""), NUMBER * 0, NUMBER)


def test_outputs_without_a_row_for_each_of_the_inputs():
    class Summing(Session):
        def run(self, names, feeds):
            return [super(Summing, self).run([name], feeds)[0].sum(axis=0, keepdims=True) for name in names]

    with pytest.raises(QuantizeError, match="1 rows for 3"):
        prepare_evaluation(Summing(y=SCORES), data_of(3), choose_task({"y": SCORES}, None, None, ""))


def test_a_run_that_fails_is_said_in_a_line():
    class Failing(Session):
        def run(self, names, feeds):
            raise RuntimeError("no\nluck")

    with pytest.raises(QuantizeError, match=r"rows 0 to 2 fails: no luck"):
        prepare_evaluation(Failing(y=SCORES), data_of(3), choose_task({"y": SCORES}, None, None, ""))


def test_the_error_of_outputs():
    assert output_error({"y": SCORES}, {"y": SCORES}) == 0
    assert output_error({"y": SCORES}, {"y": SCORES * 1.5}) == pytest.approx(0.5)
    assert output_error({"y": SCORES, "z": NUMBER}, {"y": SCORES, "z": -NUMBER}) == pytest.approx(2)
    assert output_error({"l": CLASSES}, {"l": CLASSES * 0}) == pytest.approx(2 / 3)
    assert output_error({"y": SCORES, "l": CLASSES}, {"y": SCORES, "l": -CLASSES}) == 0  # floats decide
    assert output_error({"y": SCORES}, {"y": SCORES * np.nan}) == np.inf
    assert output_error({"y": SCORES}, {"y": SCORES[:1]}) == np.inf
    assert output_error({"y": SCORES * 0}, {"y": SCORES}) == 1
