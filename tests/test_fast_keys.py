"""The cheap generator: uniform bits, unrelated streams, distinct keys, and all of jax.random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxnas import checkpoints, fast_keys, parallel

N = 1 << 17  # words of a stream
INPUT_BITS = np.uint32(1) << np.arange(32, dtype=np.uint32)


def word(key):
    return jax.random.bits(key)


@pytest.fixture(scope="module")
def streams():
    """Words [N] that should look random, by where they come from."""
    def make():
        key, numbers = fast_keys.key(0), jnp.arange(N)
        children = jax.random.split(key, N)
        folded = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)
        # as search.step_keys: 512 seeds of 256 steps
        steps = jax.vmap(lambda seed: jax.vmap(lambda t: jax.random.fold_in(seed, t))(
            jnp.arange(N // 512)))(children[:512]).reshape(N)
        bits, next_bits = jax.random.bits(key, (N,)), jax.random.bits(fast_keys.key(1), (N,))
        seeds = jax.vmap(word)(jax.vmap(fast_keys.key)(numbers))
        of_children, of_folded = jax.vmap(word)(children), jax.vmap(word)(folded)
        child_words, folded_words = map(jax.random.key_data, (children, folded))
        return {
            "successive": bits, "seeds": seeds, "children": of_children, "folded": of_folded,
            "steps": jax.vmap(word)(steps),
            "grandchildren": jax.vmap(lambda key: word(jax.random.split(key)[1]))(children),
            "child word 0": child_words[:, 0], "child word 1": child_words[:, 1],
            "folded word 0": folded_words[:, 0], "folded word 1": folded_words[:, 1],
            # Two streams are unrelated if they differ in random bits.
            "successive, differences": bits ^ jnp.roll(bits, 1),
            "seeds, differences": seeds ^ jnp.roll(seeds, 1),
            "children, differences": of_children ^ jnp.roll(of_children, 1),
            "folded, differences": of_folded ^ jnp.roll(of_folded, 1),
            "two seeds": bits ^ next_bits, "parent and children": bits ^ of_children,
            "parent and folded": bits ^ of_folded, "children and folded": of_children ^ of_folded,
            "parent's words and child's 0": bits ^ child_words[:, 0],
            "parent's words and child's 1": bits ^ child_words[:, 1],
            "a child's two words": child_words[:, 0] ^ child_words[:, 1],
            "child's and folded": child_words[:, 0] ^ folded_words[:, 0]}

    return jax.tree.map(np.asarray, jax.jit(make)())


def test_bits_bytes_and_pairs_are_uniform(streams):
    smallest = {}
    for name, words in streams.items():
        assert words.shape == (N,) and words.dtype == np.uint32
        bits = (words[:, None] & INPUT_BITS) > 0
        # Every bit is a fair coin, and so is the difference of any two bits of one word.
        signs = 1 - 2 * bits.astype(np.float32)
        pairs = (signs.T @ signs)[np.triu_indices(32, 1)]
        scores = np.abs(np.concatenate([signs.sum(0), pairs])) / N ** 0.5
        p_values = [min(1, 2 * stats.norm.sf(scores.max()) * scores.size)]
        octets = words.view(np.uint8).reshape(N, 4)
        p_values += [stats.chisquare(np.bincount(column, minlength=256)).pvalue
                     for column in octets.T]
        # A word's top byte beside the next word's: 65,536 cells.
        joint = octets[:-1, 3].astype(np.int64) << 8 | octets[1:, 3]
        p_values.append(stats.chisquare(np.bincount(joint, minlength=1 << 16)).pvalue)
        smallest[name] = min(p_values)
    # 22 streams with 6 statistics each: true randomness would fail once in 750 times.
    assert len(smallest) == 22 and min(smallest.values()) > 1e-5, smallest


def test_no_two_of_a_million_derived_keys_are_equal():
    @jax.jit
    def derived():
        root = fast_keys.key(7)
        children = jax.random.split(root, 250_000)
        seeds = jax.vmap(fast_keys.key)(jnp.arange(100_000))
        folded = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.arange(150_000))
        steps = jax.vmap(lambda key: jax.vmap(lambda t: jax.random.fold_in(key, t))(
            jnp.arange(500)))(children[:500])
        grandchildren = jax.vmap(lambda key: jax.random.split(key, 2))(children[:125_000])
        keys = [jnp.ravel(keys) for keys in (children, seeds, folded, steps, grandchildren)]
        return jax.random.key_data(jnp.concatenate(keys))

    words = np.asarray(derived()).astype(np.uint64)
    assert words.shape == (1_000_000, 2)
    assert np.unique(words[:, 0] << np.uint64(32) | words[:, 1]).size == 1_000_000


def flips(first, second):
    """Return how often each output bit [32] differs between uint32 [T, ...] arrays."""
    changed = np.asarray(first) ^ np.asarray(second)
    return ((changed[..., None] & INPUT_BITS) > 0).mean(axis=0)


def test_every_bit_of_key_and_counter_reaches_every_bit():
    trials = 1 << 14
    rng = np.random.default_rng(0)
    words = rng.integers(0, 1 << 32, (trials, 2), dtype=np.uint32)
    data = rng.integers(0, 1 << 32, trials, dtype=np.uint32)

    @jax.jit
    def outputs(words, data):
        key = jax.random.wrap_key_data(words, impl=fast_keys.IMPLEMENTATION)
        derived = jax.vmap(jax.random.fold_in)(key, data)
        child = jax.vmap(lambda key: jax.random.split(key, 3)[2])(key)
        return jnp.concatenate([jax.random.key_data(derived), jax.random.key_data(child),
                                jax.vmap(word)(key)[:, None]], axis=1)  # [T, 5]

    plain = outputs(words, data)
    for position in range(2):
        for bit in INPUT_BITS:
            flipped = words.copy()
            flipped[:, position] ^= bit
            rates = flips(plain, outputs(flipped, data))
            assert np.abs(rates - 0.5).max() < 0.02, (position, bit)
    for bit in INPUT_BITS:
        rates = flips(plain[:, :2], outputs(words, data ^ bit)[:, :2])
        assert np.abs(rates - 0.5).max() < 0.02, bit
    # The counter of a stream: position i beside position i ^ bit.
    stream = np.asarray(jax.jit(lambda: jax.random.bits(fast_keys.key(3), (1 << 16,)))())
    for bit in range(16):
        rates = flips(stream, stream[np.arange(1 << 16) ^ (1 << bit)])
        assert np.abs(rates - 0.5).max() < 0.02


def test_the_mixer_is_a_permutation():
    def unshift(word, shift):  # inverts w ^ (w >> shift), shift >= 11
        return word ^ (word >> shift) ^ (word >> 2 * shift)

    def unmix(word):  # with the inverses of odd factors modulo 2 ** 32
        word = unshift(word, 15) * np.uint32(pow(0x735A2D97, -1, 1 << 32))
        return unshift(unshift(word, 15) * np.uint32(pow(0x21F0AAAD, -1, 1 << 32)), 16)

    words = np.random.default_rng(1).integers(0, 1 << 32, 1 << 20, dtype=np.uint32)
    words[:3] = 0, 1, 2 ** 32 - 1
    mix = jax.jit(fast_keys.mix)
    np.testing.assert_array_equal(mix(unmix(words)), words)
    np.testing.assert_array_equal(unmix(np.asarray(mix(words))), words)
    assert np.unique(mix(np.arange(1 << 20, dtype=np.uint32))).size == 1 << 20


def test_the_same_jitted_vectorised_and_sharded():
    keys = jax.random.split(fast_keys.key(5), 16)

    def draw(key):
        left, right = jax.random.split(key)
        return jax.random.bits(left, (5,)), jax.random.key_data(jax.random.fold_in(right, 9))

    together = jax.jit(jax.vmap(draw))(keys)
    for number in (0, 11):
        for found in (draw(keys[number]), jax.jit(draw)(keys[number])):
            jax.tree.map(lambda whole, one: np.testing.assert_array_equal(whole[number], one),
                         together, found)
    placement = parallel.sharding(parallel.available_devices(8))
    spread = jax.jit(jax.vmap(draw), out_shardings=placement)(jax.device_put(keys, placement))
    mapped = jax.pmap(jax.vmap(draw))(keys.reshape(8, 2))
    for found in (spread, jax.tree.map(lambda x: x.reshape(16, *x.shape[2:]), mapped)):
        jax.tree.map(np.testing.assert_array_equal, together, found)
    # A prefix is a prefix, whatever its length.
    np.testing.assert_array_equal(jax.random.bits(keys[0], (40,))[:7],
                                  jax.random.bits(keys[0], (7,)))


def test_all_of_jax_random_takes_it():
    count = 20_000

    @jax.jit
    def draw():
        keys = iter(jax.random.split(fast_keys.key(2), 12))
        return {
            "uniform": jax.random.uniform(next(keys), (count,)),
            "normal": jax.random.normal(next(keys), (count,)),
            "exponential": jax.random.exponential(next(keys), (count,)),
            "half": jax.random.uniform(next(keys), (count,), jnp.bfloat16),
            "randint": jax.random.randint(next(keys), (count,), -3, 9),
            "permutation": jax.random.permutation(next(keys), 1000),
            "choice": jax.random.choice(next(keys), 1000, (500,), replace=False),
            "categorical": jax.random.categorical(
                next(keys), jnp.log(jnp.array([0.1, 0.2, 0.7])), shape=(count,)),
            "bernoulli": jax.random.bernoulli(next(keys), 0.3, (count,)),
            "gumbel": jax.random.gumbel(next(keys), (count,))}

    found = jax.tree.map(np.asarray, draw())
    for name, distribution in (("uniform", "uniform"), ("normal", "norm"),
                               ("exponential", "expon"), ("gumbel", "gumbel_r")):
        assert stats.kstest(found[name], distribution).pvalue > 1e-3, name
    assert abs(found["half"].astype(np.float32).mean() - 0.5) < 0.01
    assert stats.chisquare(np.bincount(found["randint"] + 3, minlength=12)).pvalue > 1e-3
    np.testing.assert_array_equal(np.sort(found["permutation"]), np.arange(1000))
    moved = np.corrcoef(found["permutation"], np.arange(1000))[0, 1]
    assert abs(moved) < 0.13  # four deviations
    assert np.unique(found["choice"]).size == 500
    frequencies = np.bincount(found["categorical"], minlength=3)
    assert stats.chisquare(frequencies, count * np.array([0.1, 0.2, 0.7])).pvalue > 1e-3
    assert abs(found["bernoulli"].mean() - 0.3) < 0.013


@pytest.mark.parametrize("width", [8, 16])
def test_narrow_words_are_the_high_bits(width):
    key = fast_keys.key(4)
    narrow = jax.random.bits(key, (300,), f"uint{width}")
    assert narrow.dtype == f"uint{width}"
    np.testing.assert_array_equal(narrow, jax.random.bits(key, (300,)) >> (32 - width))


def test_wide_words_where_they_are_enabled():
    key = fast_keys.key(4)
    halves = np.asarray(jax.random.bits(key, (300, 2))).astype(np.uint64)
    with jax.enable_x64(True):
        wide = np.asarray(jax.random.bits(key, (300,), "uint64"))
    np.testing.assert_array_equal(wide, halves[:, 0] << np.uint64(32) | halves[:, 1])


def test_seeds_are_integers_of_up_to_32_bits():
    keys = [fast_keys.key(seed) for seed in (0, 1, -1, 2 ** 31 - 1, np.uint32(2 ** 32 - 1))]
    words = [tuple(jax.random.key_data(key).tolist()) for key in keys]
    assert len(set(words[:4])) == 4
    assert words[4] == words[2]  # the same 32 bits
    assert keys[0].shape == () and jax.dtypes.issubdtype(keys[0].dtype, jax.dtypes.prng_key)
    np.testing.assert_array_equal(jax.random.key_data(jax.jit(fast_keys.key)(1)), words[1])


def test_a_checkpoint_keeps_keys(tmp_path):
    state = {"one": fast_keys.key(6), "many": jax.random.split(fast_keys.key(7), 3)}
    checkpoints.save(tmp_path, 1, state, {})
    found = checkpoints.restore(tmp_path, jax.tree.map(lambda key: key, state)).state
    assert found["one"].dtype == state["one"].dtype
    np.testing.assert_array_equal(jax.random.bits(found["one"], (4,)),
                                  jax.random.bits(state["one"], (4,)))
    np.testing.assert_array_equal(jax.random.key_data(found["many"]),
                                  jax.random.key_data(state["many"]))
