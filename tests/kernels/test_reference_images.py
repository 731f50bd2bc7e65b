"""The reference for images: against Pillow, whose filter it is, and against arithmetic written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from headrace_kernels.images import PLACEMENT, ImageTransform, pack, placements
from headrace_kernels.reference.images import image_batch, taps, transform_images


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def levels(image, transform):
    """One image through a transform that leaves pixel values as they are: [height, width, channels]."""
    return transform_images([image], transform)[0].transpose(1, 2, 0)


@given(st.tuples(*[st.integers(1, 70)] * 4), st.integers(0, 9))
def test_resizes_as_pillow_does(sizes, seed):
    """Pillow rounds to whole levels after each of its two passes: half a level each, and a little more."""
    height, width, tall, wide = sizes
    image = noise(height, width, seed=seed)
    expected = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.BILINEAR), np.float32)
    resized = levels(image, ImageTransform(tall, wide, scale=1.0))
    assert np.abs(resized - expected).max() < 1.1


def test_plain_interpolation_looks_at_the_nearest_pixels_alone():
    row = np.array([0, 10, 20, 30, 40, 50, 60, 70], np.uint8).reshape(1, 8, 1)
    plain = ImageTransform(1, 2, channels=1, scale=1.0, antialias=False)
    assert levels(row, plain).reshape(-1).tolist() == [15, 55]  # between the centres 1 and 2, and 5 and 6
    assert levels(row, ImageTransform(1, 16, channels=1, scale=1.0)).reshape(-1)[:4].tolist() == [0, 2.5, 7.5, 12.5]


@given(st.integers(1, 3000), st.integers(1, 3000), st.booleans())
def test_weights_are_positive_and_sum_to_one(source, resized, antialias):
    start, weights = taps(source, resized, 0, min(resized, 50), antialias)
    assert (start >= 0).all()
    assert (start < source).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    assert (weights >= 0).all()
    beyond = start[:, None] + np.arange(weights.shape[1]) >= source
    assert (weights[beyond] == 0).all()


def test_the_far_end_of_a_large_image_is_as_exact_as_the_near_one():
    """Against the same filter in FP64: with FP32 positions of 30,000 pixels weights would be off by a thousandth."""
    start, weights = taps(30000, 7001, 6000, 500, antialias=True)
    shrinks = 30000 / 7001
    centre = (np.arange(6000, 6500)[:, None] + 0.5) * shrinks
    at = start[:, None] + np.arange(weights.shape[1])
    expected = np.maximum(1 - np.abs(at + 0.5 - centre) / shrinks, 0)
    np.testing.assert_allclose(weights, expected / expected.sum(axis=1, keepdims=True), atol=3e-7, rtol=0)


def test_normalises_each_channel_and_swaps_them():
    image = noise(4, 5)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    expected = (image.astype(np.float32) / 255 - mean) / std
    result = transform_images([image], ImageTransform(4, 5, mean=mean, std=std))
    np.testing.assert_allclose(result[0].transpose(1, 2, 0), expected, rtol=1e-5, atol=1e-6)
    swapped = transform_images([image], ImageTransform(4, 5, mean=mean, std=std, swap=True))
    expected = (image[:, :, ::-1].astype(np.float32) / 255 - mean) / std
    np.testing.assert_allclose(swapped[0].transpose(1, 2, 0), expected, rtol=1e-5, atol=1e-6)


def test_float16_is_the_rounded_float32():
    image = noise(30, 41)
    wide = transform_images([image], ImageTransform(9, 8))
    assert (transform_images([image], ImageTransform(9, 8, dtype="float16")) == wide.astype(np.float16)).all()


def test_letterbox_keeps_the_aspect_and_pads():
    image = np.full((10, 20, 1), 200, np.uint8)
    centred = levels(image, ImageTransform(8, 8, channels=1, fit="letterbox", scale=1.0, pad=114))[:, :, 0]
    np.testing.assert_allclose(centred[2:6], 200, rtol=1e-6)
    assert (centred[[0, 1, 6, 7]] == 114).all()
    corner = ImageTransform(8, 8, channels=1, fit="letterbox", centre=False, scale=1.0, pad=114)
    np.testing.assert_allclose(levels(image, corner)[:4, :, 0], 200, rtol=1e-6)


@pytest.mark.parametrize("size", [(256, 300), (300, 256), (97, 41), (224, 224), (33, 500)])
def test_crop_is_what_torchvision_crops(size):
    """Resize(40) of the shorter side, int() of the longer; CenterCrop(32) at int(round((size - 32) / 2))."""
    image = noise(*size)
    height, width = size
    tall, wide = (40, int(40 * width / height)) if height <= width else (int(40 * height / width), 40)
    resized = levels(image, ImageTransform(tall, wide, scale=1.0))
    top, left = round((tall - 32) / 2), round((wide - 32) / 2)
    cropped = levels(image, ImageTransform(32, 32, fit="crop", shorter=40, scale=1.0))
    np.testing.assert_allclose(cropped, resized[top : top + 32, left : left + 32], atol=1e-3)


def test_crop_of_an_image_that_stays_smaller_is_padded():
    image = np.full((4, 4, 1), 9, np.uint8)
    found = levels(image, ImageTransform(7, 7, channels=1, fit="crop", shorter=4, scale=1.0, pad=1))[:, :, 0]
    assert (found[1:5, 1:5] == 9).all()
    assert found.sum() == 16 * 9 + 33


@given(
    st.tuples(*[st.integers(1, 40)] * 4),
    st.sampled_from([{"fit": "letterbox"}, {"fit": "crop"}, {"fit": "stretch"}]),
)
def test_every_fit_covers_what_it_should(sizes, fit):
    height, width, tall, wide = sizes
    transform = ImageTransform(tall, wide, channels=1, scale=1.0, pad=0, **fit)
    found = levels(np.full((height, width, 1), 255, np.uint8), transform)[:, :, 0] > 128
    covered = found.any(axis=1).sum(), found.any(axis=0).sum()
    if fit["fit"] == "letterbox":
        assert tall == covered[0] or wide == covered[1]
    else:
        assert covered == (tall, wide)


def test_a_batch_of_one_buffer_equals_one_of_arrays():
    images = [noise(5, 9, seed=1), noise(31, 7, seed=2), noise(1, 1, seed=3)]
    transform = ImageTransform(6, 8, fit="letterbox", pad=30)
    pixels, sizes = pack(images)
    table = placements(sizes, transform, rows=5)
    batch = image_batch(pixels, table, transform)
    assert batch.shape == (5, 3, 6, 8)
    np.testing.assert_array_equal(batch[:3], transform_images(images, transform))
    np.testing.assert_allclose(batch[3:], 30 / 255, rtol=1e-6)
    out = np.empty_like(batch)
    assert image_batch(pixels, table, transform, out) is out


def test_no_images():
    transform = ImageTransform(3, 4)
    assert transform_images([], transform).shape == (0, 3, 3, 4)
    pixels, sizes = pack([])
    assert image_batch(pixels, placements(sizes, transform), transform).shape == (0, 3, 3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "1 to 32767 pixels"),
        ({"channels": 4}, "1 or 3 channels, not 4"),
        ({"fit": "squeeze"}, "not 'squeeze'"),
        ({"shorter": 3}, "shorter is for fit='crop'"),
        ({"dtype": "float64"}, "not float64"),
        ({"mean": (1.0, 2.0)}, "for each of 3 channels, not 2"),
        ({"std": (1.0, 0.0, 1.0)}, "std must not be 0"),
    ],
)
def test_refuses_a_transform_that_is_none(change, message):
    with pytest.raises(ValueError, match=message):
        ImageTransform(**{"height": 2, "width": 2, **change})


@pytest.mark.parametrize(
    ("column", "value"), [("offset", -1), ("offset", 4), ("height", 4), ("width", -2), ("resized_width", 0)]
)
def test_refuses_a_table_that_leaves_the_buffer(column, value):
    transform = ImageTransform(2, 2, channels=1)
    table = placements([(3, 3)], transform)
    table[0, PLACEMENT.index(column)] = value
    with pytest.raises(ValueError, match="row 0 of the placement table"):
        image_batch(np.zeros(10, np.uint8), table, transform)


def test_refuses_what_is_no_image_and_what_is_too_large():
    transform = ImageTransform(2, 2)
    with pytest.raises(ValueError, match=r"image 0 is uint8 \[2, 2\]"):
        transform_images([np.zeros((2, 2), np.uint8)], transform)
    with pytest.raises(ValueError, match="would be resized to"):
        placements([(1, 40000)], transform)
    with pytest.raises(ValueError, match="out is float32"):
        transform_images([noise(2, 2)], transform, np.empty((1, 3, 2, 3), np.float32))
    with pytest.raises(ValueError, match="a placement table is int64"):
        image_batch(np.zeros(1, np.uint8), np.zeros((1, 3), np.int64), transform)
