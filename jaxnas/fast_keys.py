"""Random keys whose bits cost a seventh to a tenth of Threefry's on a CPU, for searches of tables.

    key = fast_keys.key(0)            # in place of jax.random.key(0); all of jax.random takes it

A search of a table draws some ten words to look one number up, and JAX's default generator spends
110 operations a word, in a loop that XLA's CPU compiler neither unrolls nor fuses. This one hashes
(key, counter) with three rounds of a 32-bit mixer, 21 operations that fuse with what uses them.
It is counter-based like Threefry: the same under jit, vmap and sharding. Not for cryptography, and
not shown to pass a battery of tests as Threefry is; tests/test_fast_keys.py holds what was checked.

The mixer is lowbias32 with the constants that C. Wellons found by search (hash-prospector, public
domain, https://nullprogram.com/blog/2018/07/31/), of measured avalanche bias 0.11 (times 1e-3).
"""

import math

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np

GOLDEN = np.uint32(0x9E3779B9)  # 2 ** 32 / golden ratio: steps that stay far apart
# What a hash is for, so that no two uses of one key see the same words.
BITS, SPLIT, FOLD = np.uint32(0), np.uint32(1), np.uint32(3)  # a derived key takes two


def key(seed: int | jax.Array) -> jax.Array:
    """Return a key [] of this generator; `seed` is any integer of up to 32 bits."""
    return jax.random.key(seed, impl=IMPLEMENTATION)


def mix(word: jax.Array) -> jax.Array:
    """Permute the 32-bit words so that every bit depends on every other; uint32, any shape."""
    word = (word ^ (word >> 16)) * np.uint32(0x21F0AAAD)
    word = (word ^ (word >> 15)) * np.uint32(0x735A2D97)
    return word ^ (word >> 15)


def _hash(key: jax.Array, counter: jax.Array, purpose: np.ndarray | np.uint32) -> jax.Array:
    word = mix(counter + key[0])
    word = mix(word ^ key[1])
    turned = (key[0] << 16) | (key[0] >> 16)  # twice, or equal words would mean equal keys
    return mix((word ^ turned) + purpose * GOLDEN)


def _seed(seed: jax.Array) -> jax.Array:
    return mix(jnp.asarray(seed).astype(jnp.uint32) ^ np.array([0x243F6A88, 0x85A308D3], np.uint32))


def _derive(key: jax.Array, counter: jax.Array, purpose: np.uint32) -> jax.Array:
    # The second word hashes the key's words in the other order: from one hash alone both would
    # follow, and of a million derived keys a hundred would be equal.
    words = jnp.stack([key, key[::-1]])
    return _hash(words, counter[..., None], purpose + np.arange(2, dtype=np.uint32))


def _counters(shape: tuple[int, ...]) -> jax.Array:
    return jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return _derive(key, _counters(shape), SPLIT)


def _fold_in(key: jax.Array, data: int | jax.Array) -> jax.Array:
    return _derive(key, jnp.asarray(data).astype(jnp.uint32), FOLD)


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    if bit_width == 64:  # only with jax_enable_x64
        high, low = jnp.moveaxis(_random_bits(key, 32, (*shape, 2)), -1, 0)
        return (high.astype(jnp.uint64) << 32) | low.astype(jnp.uint64)
    bits = _hash(key, _counters(shape), BITS)
    return bits if bit_width == 32 else (bits >> (32 - bit_width)).astype(f"uint{bit_width}")


IMPLEMENTATION = jax.extend.random.define_prng_impl(
    key_shape=(2,), seed=_seed, split=_split, random_bits=_random_bits, fold_in=_fold_in,
    name="jaxnas_mix", tag="mix",
)
