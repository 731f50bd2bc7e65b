import numpy as np
import pytest
from drift.conftest import SALT, watch

from headrace.drift.errors import DriftError
from headrace.drift.extract import Extractor


def extract(rows, salt=SALT, **options):
    return Extractor(watch(**options), salt)(rows)


def test_numbers_of_chosen_elements():
    rows = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    assert extract(rows, shape=(2, 3), columns=(5, 0)).numbers.tolist() == [[5, 0], [11, 6]]
    assert extract(np.array([1.5, 2.5]), shape=()).numbers.tolist() == [[1.5], [2.5]]


def test_bf16_comes_as_bit_patterns():
    assert extract(np.array([[0x3F80, 0xC000]], np.uint16), shape=(2,), datatype="BF16").numbers.tolist() == [[1, -2]]


def test_summaries_of_rows_of_any_size():
    rows = np.array([[1, 2, 3, 4], [0, 0, 0, 0]], np.float32)
    found = extract(rows, shape=(-1,)).numbers
    assert found.tolist() == [[2.5, pytest.approx(1.25**0.5), 1, 4, 4], [0, 0, 0, 0, 4]]
    assert np.isnan(extract(np.zeros((1, 0), np.float32), shape=(-1,)).numbers[0, :4]).all()


def test_images_channels_brightness_contrast():
    image = np.zeros((1, 10, 10, 3), np.uint8)
    image[..., 0] = 100
    image[:, :5, :, 1] = 50
    names = watch((10, 10, 3), "UINT8").features
    found = dict(zip(names, extract(image, shape=(10, 10, 3), datatype="UINT8").numbers[0].tolist(), strict=True))
    assert (found["mean_0"], found["mean_1"], found["mean_2"]) == (100, 25, 0)
    assert (found["deviation_0"], found["deviation_1"], found["deviation_2"]) == (0, 25, 0)
    assert found["brightness"] == pytest.approx(0.299 * 100 + 0.587 * 25)
    assert found["contrast"] == pytest.approx(0.587 * 25)


def test_both_layouts_of_an_image_say_the_same(random):
    image = random.random((4, 9, 12, 3), np.float32)
    last = extract(image, shape=(9, 12, 3))
    first = extract(np.moveaxis(image, -1, 1), shape=(3, 9, 12))
    np.testing.assert_allclose(first.numbers, last.numbers)


def test_a_blurred_image_is_less_sharp(random):
    sharp = random.random((1, 32, 32, 1), np.float32)
    blurred = (sharp + np.roll(sharp, 1, 1) + np.roll(sharp, 1, 2)) / 3
    values = [extract(image, shape=(32, 32, 1)).numbers[0, -1] for image in (sharp, blurred)]
    assert values[1] < values[0] / 3


def test_a_large_image_is_looked_at_in_part():
    image = np.zeros((1, 2000, 1500, 1), np.uint8)
    image[:, 900:1100, 700:800] = 255
    found = extract(image, shape=(-1, -1, 1), datatype="UINT8").numbers[0]
    assert found[0] == pytest.approx(image.mean(), rel=0.1)
    assert found[-1] > 0


def test_an_image_without_pixels_has_no_statistics():
    assert np.isnan(extract(np.zeros((2, 0, 0, 1), np.float32), shape=(-1, -1, 1)).numbers).all()
    tiny = extract(np.ones((1, 2, 2, 1), np.float32), shape=(-1, -1, 1)).numbers[0]
    assert tiny.tolist() == [1, 0, 1, 0, 0]


def test_projections_are_the_same_wherever_the_salt_is(random):
    rows = random.normal(size=(5, 300)).astype(np.float32)
    once, again = (extract(rows, shape=(300,)).numbers for _ in range(2))
    other = extract(rows, salt=bytes(16), shape=(300,)).numbers
    np.testing.assert_array_equal(once, again)
    assert not np.allclose(once[:, 0], other[:, 0])
    np.testing.assert_allclose(once[:, -1], np.linalg.norm(rows, axis=1), rtol=1e-5)


def test_an_embedding_of_each_token_is_its_mean(random):
    rows = random.normal(size=(2, 7, 300))
    np.testing.assert_allclose(
        extract(rows, shape=(-1, 300)).numbers, extract(rows.mean(axis=1), shape=(300,), kind="embedding").numbers
    )


def test_tokens_without_padding():
    found = extract(np.array([[5, 6, 0, 0], [5, 0, 0, 0]]), shape=(-1,), datatype="INT64", pad=0)
    assert found.numbers.tolist() == [[2], [1]]
    assert found.items.tolist() == [5, 6, 5]
    assert extract(np.array([[5, 0]]), shape=(-1,), datatype="INT64").items.tolist() == [5, 0]


def test_salted_tokens_tell_nothing_without_the_salt():
    options = {"shape": (-1,), "datatype": "INT64", "salted": True}
    once = extract(np.array([[5, 6, 5]]), **options).items
    assert once[0] == once[2] != once[1]
    assert not set(once.tolist()) & {5, 6}
    assert once.tolist() != extract(np.array([[5, 6, 5]]), salt=bytes(16), **options).items.tolist()


def test_text_is_kept_as_a_hash_and_its_length():
    rows = np.array([[b"anna"], ["\u00fcber"], [b"anna"]], object)
    found = extract(rows, shape=(1,), datatype="BYTES")
    assert found.numbers.tolist() == [[4], [5], [4]]
    assert found.items[0] == found.items[2] != found.items[1]
    assert found.items.tolist() != extract(rows, salt=bytes(16), shape=(1,), datatype="BYTES").items.tolist()


def test_classes_by_score_and_by_label():
    scores = np.array([[0.1, 0.9], [0.7, 0.3], [np.nan, 0.2]], np.float32)
    found = extract(scores, shape=(2,), kind="classes")
    assert found.items.tolist() == [1, 0, 1]
    assert found.numbers[:, 0].tolist() == pytest.approx([0.9, 0.7, 0.2])
    labels = extract(np.array([[4], [2]]), shape=(1,), datatype="INT64", kind="classes")
    assert labels.items.tolist() == [4, 2]
    assert labels.numbers.shape == (2, 0)
    one = extract(np.array([[0.9], [0.2]], np.float32), shape=(1,), kind="classes", labels=("spam",))
    assert (one.items.tolist(), one.numbers[:, 0].tolist()) == ([0, 0], pytest.approx([0.9, 0.2]))


def test_classes_of_several_places_are_told_of_each():
    """Tokens of a text, say, each with scores for its own class."""
    scores = np.array([[[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], [[0.6, 0.4], [0.6, 0.4], [0.6, 0.4]]], np.float32)
    options = {"shape": (3, 2), "kind": "classes", "labels": ("no", "yes")}
    found = extract(scores, **options)
    assert found.items.tolist() == [1, 0, 1, 0, 0, 0]
    assert found.numbers[:, 0].tolist() == pytest.approx([0.8, 0.6])
    logits = extract(np.log(scores / (1 - scores)), logits=True, **options)
    assert logits.items.tolist() == found.items.tolist()
    assert logits.numbers[1, 0] == pytest.approx(1 / (1 + (0.4 / 0.6) ** 2))


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3)])
def test_classes_of_one_place_whatever_dimensions_of_one_there_are(shape):
    labels = ("a", "b", "c")
    found = extract(np.array([[0.1, 0.2, 0.7]]).reshape(1, *shape), shape=shape, kind="classes", labels=labels)
    assert found.items.tolist() == [2]


def test_logits_become_confidences():
    found = extract(np.array([[1000.0, 1000.0], [0.0, np.log(3)]]), shape=(2,), kind="classes", logits=True)
    assert found.numbers[:, 0].tolist() == pytest.approx([0.5, 0.75])


def test_rows_of_another_tensor_are_refused():
    with pytest.raises(DriftError, match=r"x: rows of \[4\], expected \[3\]"):
        extract(np.zeros((1, 4)))


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "summary", "datatype": "FP64", "shape": (3,)},
        {"kind": "image", "datatype": "FP64", "shape": (8, 8, 3)},
        {"kind": "embedding", "datatype": "FP64", "shape": (3,)},
        {"kind": "classes", "datatype": "FP64", "shape": (3,), "logits": True},
    ],
)
@pytest.mark.parametrize("value", [np.inf, -np.inf, 1.7e308])
def test_what_overflows_is_no_warning_on_the_servers_standard_error(options, value):
    """Warnings are errors in these tests."""
    rows = np.zeros((2, *options["shape"]))
    rows[1] = value
    assert np.isfinite(extract(rows, **options).numbers[0]).all()
