"""A function split in two is the same function, and its random numbers are all in the first half.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import fast_keys, hoisting

KEYS = {"threefry": lambda seed: jax.random.key(seed, impl="threefry2x32"),
        "rbg": lambda seed: jax.random.key(seed, impl="rbg"),
        "fast": fast_keys.key, "legacy": jax.random.PRNGKey}
CLOSED_OVER = jnp.array([0.5, -1.5, 2.5])
X = jnp.array([0.1, 0.2, 0.3])
INDEX = jnp.int32(2)


def draws(key, x):
    first, second = jax.random.split(key)
    words = jax.random.bits(second, (3,)) >> 9
    return jax.random.normal(first, (3,)) * x + words.astype(jnp.float32)


def closes_over(key, x):
    return jax.random.uniform(key, (3,)) * CLOSED_OVER + np.float32(2) * x + jnp.sum(CLOSED_OVER)


def calls_nested(key, x):
    return jax.nn.relu(jax.jit(jax.random.normal, static_argnums=1)(key, (3,))) + x


def branches(key, x):
    coin = jax.random.bernoulli(key)
    noise = jax.lax.cond(coin, lambda: jax.random.normal(key, (3,)), lambda: jnp.ones(3))
    return jax.lax.select(x > 0.15, noise, x)


def loops(key, x):
    def body(key, _):
        key, used = jax.random.split(key)
        return key, jax.random.uniform(used)

    _, walk = jax.lax.scan(body, key, None, length=3)
    _, sums = jax.lax.scan(lambda total, step: (total + step, total), x.sum(), walk)
    return jax.lax.while_loop(lambda v: v.sum() < 40, lambda v: v * 2 + 1, sums)


def gathers(key, x):
    return x[jax.random.permutation(key, 3)], jax.random.randint(key, (), 0, 3) + x.argmax()


def constants(key, x):
    # what depends on no argument, what ignores the first, and what is returned as it came
    fixed = jax.random.normal(jax.random.key(3), (3,))
    return {"fixed": fixed, "both": fixed + jax.random.uniform(key), "x": x, "seven": 7,
            "array": CLOSED_OVER, "sum": x.sum()}


def returns_key(key, x):
    return key, jax.random.split(key), x


def unused(key, x):
    del key
    return x + 1


FUNCTIONS = (draws, closes_over, calls_nested, branches, loops, gathers, constants, returns_key,
             unused)


def assert_equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second)):
        a, b = jnp.asarray(a), jnp.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def draws_in(function, *args):
    """Count the equations that make random bits, those of called functions included."""
    text = str(jax.make_jaxpr(function)(*args))
    return sum(text.count(name) for name in (
        "random_bits[", "random_split[", "random_fold_in[", "threefry2x32"))


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_the_parts_are_the_function_and_the_first_has_the_random_numbers(function, kind):
    make = KEYS[kind]
    early, late = hoisting.split(function, make(0), X)  # examples: only their shapes count
    computed = early(make(5))
    assert_equal(late(computed, X + 1), function(make(5), X + 1))
    if function is not constants:  # its key is no argument
        assert draws_in(late, computed, X) == 0
    assert (draws_in(early, make(0)) > 0) == (function is not unused)


@pytest.mark.parametrize("kind", KEYS)
def test_many_are_drawn_at_once(kind):
    # What search.advance does. JAX's rbg promises other bits under vmap; the split itself is exact.
    early, late = hoisting.split(draws, KEYS[kind](0), X)
    keys = jax.random.split(KEYS[kind](1), 6)

    @jax.jit
    def split(keys, x):
        return jax.lax.scan(lambda x, drawn: (late(drawn, x),) * 2, x, jax.vmap(early)(keys))[1]

    @jax.jit
    def whole(keys, x):
        return jax.lax.scan(lambda x, key: (draws(key, x),) * 2, x, keys)[1]

    found, expected = split(keys, X), whole(keys, X)
    if kind == "rbg":
        assert found.shape == expected.shape
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_closed_over_tracers():
    def scaled(rate, key, x):
        def function(key, x):
            return jax.random.normal(key, (3,)) * rate + x ** rate

        early, late = hoisting.split(function, key, x)
        return late(early(key), x), function(key, x)

    found, expected = jax.jit(jax.vmap(scaled, (0, None, None)))(
        jnp.array([0.5, 1.0, 2.0]), jax.random.key(0), X)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not np.allclose(found[0], found[1])
    # and of a function that is differentiated
    gradient = jax.grad(lambda rate: scaled(rate, jax.random.key(0), X)[0].sum())(0.7)
    expected = jax.grad(lambda rate: scaled(rate, jax.random.key(0), X)[1].sum())(0.7)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_a_function_that_is_compiled_as_a_whole_stays_whole():
    function = jax.jit(draws)
    early, late = hoisting.split(function, jax.random.key(0), X)
    computed = early(jax.random.key(1))
    assert draws_in(early, jax.random.key(0)) == 0
    assert_equal(late(computed, X), function(jax.random.key(1), X))


def test_little_is_carried():
    # The arithmetic on a draw is cheap and stays behind; the draw alone is carried.
    def function(key, x):
        noise = jax.random.bits(key, (4,))
        return (noise & 1) * x[0], (noise >> 1) + jnp.uint32(7), noise.astype(jnp.float32) * x[1]

    computed = hoisting.split(function, jax.random.key(0), X)[0](jax.random.key(1))
    assert [leaf.shape for leaf in computed] == [(4,)] and computed[0].dtype == jnp.uint32


def test_trees_and_shapes_as_examples():
    def function(first, scale, rest):
        noise = jax.random.uniform(first["key"]) + first["shift"]
        return {"noise": noise * scale, "rest": rest[0] + noise}

    first = {"key": jax.random.key(4), "shift": jnp.float32(0.25)}
    shapes = jax.eval_shape(lambda tree: tree, first)
    early, late = hoisting.split(function, shapes, 1.0, (jnp.zeros(2), None))
    arguments = 3.0, (jnp.array([1.0, 2.0]), None)
    assert_equal(late(early(first), *arguments), function(first, *arguments))
    scalar = hoisting.split(lambda key: jax.random.bits(key), jax.random.key(0))
    assert_equal(scalar[1](scalar[0](first["key"])), jax.random.bits(first["key"]))


def test_effects_stay_where_they_were():
    seen = []

    def function(key, x):
        jax.debug.callback(seen.append, jax.random.bits(key))
        return x + 1

    early, late = hoisting.split(function, jax.random.key(0), X)
    computed = early(jax.random.key(1))
    jax.effects_barrier()
    assert not seen
    late(computed, X)
    jax.effects_barrier()
    assert [int(word) for word in seen] == [int(jax.random.bits(jax.random.key(1)))]


def test_a_key_that_is_no_first_argument_is_not_hoisted():
    early, late = hoisting.split(
        lambda key, other: jax.random.bits(key) ^ jax.random.bits(other),
        jax.random.key(0), jax.random.key(1))
    assert draws_in(early, jax.random.key(0)) == 1
    assert draws_in(late, early(jax.random.key(0)), jax.random.key(1)) == 1
    two = functools.partial(late, early(jax.random.key(2)))
    assert two(jax.random.key(3)) == jax.random.bits(jax.random.key(2)) ^ jax.random.bits(
        jax.random.key(3))
