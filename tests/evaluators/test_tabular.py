"""Tables: both ways to look up against a dictionary, and everything that a table must not be."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.evaluators import tabular

KEY = jax.random.key(0)
SMALL = (3, 1, 4, 2)
SPACES = {
    "small": SMALL,
    "dense, full": (16,) * 6,                     # 2 ** 24 combinations, the most there may be
    "sorted, one more": (16,) * 5 + (17,),
    "forty": (7,) * 40,
    "words of one decision": (60_000, 60_000, 60_000),
    "many": (2,) * 3 + (1,) * 297}                # dense by size, not by length


def table(num_choices, size, seed=0):
    """Return distinct rows [N, L] in no order, with two metrics, and the same as dictionaries."""
    rng = np.random.default_rng(seed)
    rows = np.unique(rng.integers(0, num_choices, (size, len(num_choices))), axis=0)
    rows = rng.permutation(rows)
    metrics = {"accuracy": rng.random(len(rows)), "epochs": rng.integers(0, 9, len(rows))}
    metrics["accuracy"][::7] = np.nan
    lookup = {name: {tuple(row): np.float32(value) for row, value in zip(rows.tolist(), values)}
              for name, values in metrics.items()}
    return rows, metrics, lookup


@pytest.mark.parametrize("name, size", [
    *((name, 333) for name in SPACES), ("small", 1), ("forty", 1), ("forty", 2), ("forty", 64)])
def test_a_lookup_is_a_dictionary(name, size):
    num_choices = SPACES[name]
    rows, metrics, lookup = table(num_choices, size)
    rng = np.random.default_rng(1)
    present = rows[rng.integers(0, len(rows), 200)]
    near = rng.integers(0, num_choices, (200, len(num_choices)))
    near = np.where(rng.random(near.shape) < 1 / len(num_choices), near, present)
    outside = present.copy()
    columns = rng.integers(0, len(num_choices), 200)
    counts = np.array(num_choices)[columns]
    outside[np.arange(200), columns] = np.choose(
        rng.integers(0, 5, 200), [-1, -2 ** 31, 2 ** 31 - 1, counts, counts + 1])
    shifted = present - np.array(num_choices)     # as negative indices they would be members
    far = np.full((1, len(num_choices)), -1), np.full((1, len(num_choices)), 2 ** 30)
    asked = np.concatenate([present, near, outside, shifted, *far]).astype(np.int32)
    found = jax.jit(tabular(rows, metrics, num_choices))(KEY, asked)
    assert found.keys() == metrics.keys()
    for name, values in found.items():
        assert values.dtype == jnp.float32
        expected = [lookup[name].get(arch, np.nan) for arch in map(tuple, asked.tolist())]
        np.testing.assert_array_equal(values, expected)


def test_every_member_of_a_small_space():
    everything = np.array(list(itertools.product(*map(range, SMALL))))
    rows, metrics, lookup = table(SMALL, 12)
    found = tabular(rows, metrics, SMALL)(KEY, jnp.asarray(everything, jnp.int32))
    assert 0 < np.isnan(found["epochs"]).sum() == len(everything) - len(rows)
    np.testing.assert_array_equal(
        found["epochs"], [lookup["epochs"].get(arch, np.nan) for arch in map(tuple, everything)])


@pytest.mark.parametrize("num_choices", [SMALL, (7,) * 40], ids=["dense", "sorted"])
def test_vectorised_jitted_and_traced_once(num_choices):
    rows, metrics, _ = table(num_choices, 50)
    evaluate = tabular(rows, metrics, num_choices)
    once = jax.jit(chex.assert_max_traces(evaluate, n=1))
    archs = jnp.asarray(rows[:6], jnp.int32)
    expected = once(KEY, archs)
    chex.assert_trees_all_equal(once(jax.random.key(1), archs), expected)  # no use for a key
    chex.assert_trees_all_equal(evaluate(KEY, archs), expected)
    by_seed = jax.jit(jax.vmap(evaluate, (None, 0)))(KEY, archs.reshape(3, 2, -1))
    chex.assert_trees_all_equal(jax.tree.map(jnp.ravel, by_seed), expected)


def test_the_table_is_a_copy():
    rows, values = np.array([[0], [1]]), np.array([1.0, 2.0], np.float32)
    evaluate = tabular(rows, {"a": values}, (2,))
    rows[:], values[:] = 0, 9
    found = evaluate(KEY, jnp.array([[0], [1]], jnp.int32))
    np.testing.assert_array_equal(found["a"], [1.0, 2.0])


ROWS = np.array([[0, 1], [2, 0]])
VALUES = {"a": np.ones(2)}


@pytest.mark.parametrize("archs, metrics, message", [
    (ROWS[0], VALUES, r"integers \[N, 2\], got int64 \(2,\)"),
    (ROWS[:, :1], VALUES, r"integers \[N, 2\], got int64 \(2, 1\)"),
    (ROWS.astype(float), VALUES, r"integers \[N, 2\], got float64 \(2, 2\)"),
    (ROWS > 0, VALUES, r"integers \[N, 2\], got bool"),
    (ROWS[:0], {"a": np.ones(0)}, "must hold rows"),
    (ROWS - 1, VALUES, r"decision l in \[0, \(3, 2\)\[l\]\)"),
    (ROWS + 1, VALUES, r"decision l in \[0, \(3, 2\)\[l\]\)"),
    (ROWS, {}, "one array at least"),
    (ROWS, {"a": np.ones(3)}, r"a must be \[2\], got \(3,\)"),
    (ROWS, {"a": np.ones(2), "b": 1.0}, r"b must be \[2\], got \(\)"),
    (ROWS[[0, 0]], VALUES, "holds a row twice")])
def test_what_is_no_table_is_refused(archs, metrics, message):
    with pytest.raises(ValueError, match=message):
        tabular(archs, metrics, (3, 2))
