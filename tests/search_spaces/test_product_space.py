"""Products of independent decisions and their texts."""

import jax
import numpy as np
import pytest

from jaxnas.search_spaces import Product
from jaxnas.search_spaces.product import read_integers


def test_size_text_and_name():
    space = Product((4, 1, 12), name="toy")
    assert space.size == 48 and space.name == "toy" and Product((2,)).name == "product"
    assert space.decode(np.array([3, 0, 11])) == "3-0-11"
    np.testing.assert_array_equal(space.encode("3-0-11"), [3, 0, 11])


def test_samples_are_uniform():
    space = Product((2, 3))
    archs = jax.jit(jax.vmap(space.sample))(jax.random.split(jax.random.key(0), 6000))
    counts = np.bincount(np.asarray(archs) @ [3, 1], minlength=6)
    assert np.abs(counts - 1000).max() < 5 * (6000 * 1 / 6 * 5 / 6) ** 0.5


def test_an_arch_is_its_own_class():
    arch = np.array([1, 2])
    np.testing.assert_array_equal(Product((2, 3)).canonical(arch), arch)


@pytest.mark.parametrize("num_choices", [(), (0,), (2, -1), (2, 65537), (2.0,), ("2",), [2, 3], 5])
def test_wrong_numbers_of_choices(num_choices):
    with pytest.raises(ValueError, match="num_choices must be a tuple"):
        Product(num_choices)


@pytest.mark.parametrize("text, message", [
    ("1-2", "3 numbers with '-' between, got 2"), ("0-0-0-0", "got 4"), ("0-0-3", "0 to 2"),
    ("0--1", "number 1 .* got ''"), ("00-0-0", "got '00'"), ("+1-0-0", "got"), ("0- 0-0", "got"),
    ("0-0-0\n", "got"), ("0-0-" + "1" * 9999, "number 2 must be 0 to 2, got '1{39}")])
def test_wrong_texts(text, message):
    with pytest.raises(ValueError, match=message):
        Product((3, 3, 3)).encode(text)


def test_integers_with_steps_and_single_digits():
    np.testing.assert_array_equal(read_integers("10:6", ":", (range(4, 12, 2),) * 2), [3, 1])
    np.testing.assert_array_equal(read_integers("102", "", (range(3),) * 3), [1, 0, 2])
    with pytest.raises(ValueError, match="4 to 10 in steps of 2, got '5'"):
        read_integers("10:5", ":", (range(4, 12, 2),) * 2)
