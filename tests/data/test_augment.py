"""Augmentation: expected values written out, and distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import data

KEY = jax.random.key(0)


def test_normalize_values():
    images = jnp.array([[[[0, 255], [51, 102]]]], jnp.uint8)  # [1, 1, 2, 2]
    got = data.normalize(images, (0.5, 0.2), (0.25, 0.1), 255.0)
    np.testing.assert_allclose(got, [[[[-2.0, 8.0], [-1.2, 2.0]]]], rtol=1e-6)
    assert got.dtype == jnp.float32
    half = data.normalize(images, (0.5, 0.2), (0.25, 0.1), 255.0, dtype=jnp.bfloat16)
    assert half.dtype == jnp.bfloat16


def test_normalized_digits_have_mean_zero_and_deviation_one():
    digits = data.load("digits")
    x = data.normalize(jnp.asarray(digits.train_images), digits.mean, digits.std, digits.max_value)
    np.testing.assert_allclose([x.mean(), x.std()], [0.0, 1.0], atol=1e-4)


def test_crop_is_one_of_the_nine_shifts_each_about_as_often():
    image = jnp.arange(1, 10, dtype=jnp.uint8).reshape(3, 3, 1)
    shifts = {}
    padded = np.pad(np.asarray(image), ((1, 1), (1, 1), (0, 0)))
    for i in range(3):
        for j in range(3):
            shifts[padded[i:i + 3, j:j + 3].tobytes()] = (i, j)
    # by hand: offset (0, 0) moves the image down and right, black comes in at the top and left
    assert shifts[np.array([0, 0, 0, 0, 1, 2, 0, 4, 5], np.uint8).tobytes()] == (0, 0)
    cropped = np.asarray(data.random_crop(KEY, jnp.tile(image, (9000, 1, 1, 1)), 1))
    assert cropped.dtype == np.uint8 and cropped.shape == (9000, 3, 3, 1)
    found = [shifts[c.tobytes()] for c in cropped]
    counts = np.array([found.count(offset) for offset in shifts.values()])
    assert np.all(np.abs(counts - 1000) < 5 * np.sqrt(1000 * 8 / 9))


def test_crop_without_padding_is_the_identity():
    images = jax.random.bits(KEY, (4, 5, 6, 3), jnp.uint8)
    np.testing.assert_array_equal(data.random_crop(KEY, images, 0), images)
    np.testing.assert_array_equal(data.cutout(KEY, images, 0), images)


def test_flip_is_horizontal_and_takes_half_of_the_images():
    image = jnp.arange(6, dtype=jnp.uint8).reshape(2, 3, 1)
    flipped = np.asarray(data.random_flip(KEY, jnp.tile(image, (4000, 1, 1, 1))))
    mirrored = [[2, 1, 0], [5, 4, 3]]
    is_mirrored = (flipped[..., 0] == mirrored).all((1, 2))
    is_same = (flipped == np.asarray(image)).all((1, 2, 3))
    assert np.all(is_mirrored ^ is_same)
    assert abs(is_mirrored.sum() - 2000) < 5 * np.sqrt(1000)


@pytest.mark.parametrize("length, full", [(4, 16), (5, 16), (1, 0), (16, 36)])
def test_cutout_box_area(length, full):
    # 5 // 2 = 2 pixels each side, as in the reference; 16 covers an image of 6x6 unless clipped
    hole = np.asarray(data.cutout(KEY, jnp.ones((3000, 6, 6, 3)), length))[..., 0] == 0
    areas = hole.sum((1, 2))
    assert areas.max() == full
    half = length // 2
    expected = np.zeros((6, 6))
    for y in range(6):
        for x in range(6):
            box = np.zeros((6, 6))
            box[max(y - half, 0):y + half, max(x - half, 0):x + half] = 1
            expected += box / 36
    np.testing.assert_allclose(hole.mean(0), expected, atol=5 * np.sqrt(0.25 / 3000))
    for mask in hole[:50]:  # a rectangle, or nothing
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.sum() == len(rows) * len(columns)


def test_cutout_zeroes_all_channels_and_keeps_the_rest():
    images = jax.random.uniform(KEY, (20, 8, 8, 3), minval=0.5, maxval=1.0)
    cut = np.asarray(data.cutout(KEY, images, 4))
    zero = cut == 0
    assert np.all(zero.all(-1) == zero.any(-1))
    np.testing.assert_array_equal(cut[~zero], np.asarray(images)[~zero])


OPTIONS = {
    "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "max_value": 255.0, "crop_padding": 2,
    "flip": True, "cutout_length": 4,
}


def test_augment_is_deterministic_jittable_and_vmappable():
    images = jax.random.bits(KEY, (6, 8, 8, 3), jnp.uint8)

    def augment(key, images):
        return data.augment(key, images, **OPTIONS)

    plain = augment(KEY, images)
    compiled = jax.jit(augment)
    assert plain.shape == images.shape and plain.dtype == jnp.float32
    np.testing.assert_allclose(plain, compiled(KEY, images), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(compiled(KEY, images), compiled(KEY, images))
    keys = jax.random.split(KEY, 3)
    many = jax.jit(jax.vmap(augment, in_axes=(0, None)))(keys, images)
    for i in range(3):
        np.testing.assert_allclose(many[i], compiled(keys[i], images), rtol=1e-6, atol=1e-6)
    assert not np.array_equal(many[0], many[1])


def test_augment_with_everything_off_only_normalizes():
    images = jax.random.bits(KEY, (6, 8, 8, 3), jnp.uint8)
    options = {name: OPTIONS[name] for name in ("mean", "std", "max_value")}
    np.testing.assert_array_equal(
        data.augment(KEY, images, **options), data.normalize(images, **options))


def test_padding_is_black_before_normalization_and_cutout_zero_after():
    images = jnp.full((200, 8, 8, 1), 255, jnp.uint8)
    got = data.augment(
        KEY, images, mean=(0.25,), std=(0.5,), max_value=255.0, crop_padding=2, cutout_length=4)
    values, counts = np.unique(np.round(np.asarray(got), 5), return_counts=True)
    np.testing.assert_allclose(values, [-0.5, 0.0, 1.5])  # padding, cutout, white
    assert np.all(counts > 100)


def test_negative_sizes():
    images = jnp.zeros((1, 8, 8, 1))
    with pytest.raises(ValueError, match="padding must be >= 0, got -1"):
        data.random_crop(KEY, images, -1)
    with pytest.raises(ValueError, match="length must be >= 0, got -2"):
        data.cutout(KEY, images, -2)
