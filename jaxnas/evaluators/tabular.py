"""Evaluation by looking up a table of architectures that somebody has trained."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import encodings
from jaxnas.base import Evaluator

MAX_DENSE_SIZE = 1 << 24  # combinations; a larger space is looked up by bisection
MAX_DENSE_DECISIONS = 255  # all of them out of range add up to less than 2 ** 32


def tabular(archs: np.ndarray, metrics: Mapping[str, np.ndarray],
            num_choices: tuple[int, ...]) -> Evaluator:
    """Look metrics up; an architecture that the table does not hold has failed (NaN).

    A space of up to 2 ** 24 combinations becomes a dense array, and a lookup one gather; a larger
    one is searched in its sorted rows, log2(N) steps.

    Args:
      archs: [N, L] integers, rows distinct.
      metrics: name -> [N] numbers; NaN where missing.
      num_choices: [L] of the space; decision l of every row is in [0, num_choices[l]).

    Returns:
      An evaluator, deterministic and traceable.

    Raises:
      ValueError: no metric, a shape that does not fit, a decision out of range, a row twice.
    """
    archs = np.asarray(archs)
    if archs.ndim != 2 or archs.shape[1] != len(num_choices) or archs.dtype.kind not in "iu":
        raise ValueError(
            f"archs must be integers [N, {len(num_choices)}], got {archs.dtype} {archs.shape}."
        )
    if not archs.size or (archs < 0).any() or (archs >= np.asarray(num_choices)).any():
        raise ValueError(f"archs must hold rows with decision l in [0, {num_choices}[l]).")
    if not metrics:
        raise ValueError("metrics must hold one array at least.")
    for name, values in metrics.items():
        if np.shape(values) != (len(archs),):
            raise ValueError(f"{name} must be [{len(archs)}], got {np.shape(values)}.")
    if len(np.unique(archs, axis=0)) < len(archs):
        raise ValueError("archs holds a row twice; keep one of them, or their mean.")
    columns = {name: np.asarray(values, np.float32) for name, values in metrics.items()}
    dense = (encodings.space_size(num_choices) <= MAX_DENSE_SIZE
             and len(num_choices) <= MAX_DENSE_DECISIONS)
    find = (_dense if dense else _sorted)(archs.astype(np.int32), columns, num_choices)

    def evaluate(key, archs):
        del key  # deterministic
        return find(archs)

    return evaluate


def _dense(rows, columns, num_choices):
    size = encodings.space_size(num_choices)
    index = np.ravel_multi_index(rows.T, num_choices)
    tables = {}
    for name, values in columns.items():
        table = np.full(size, np.nan, np.float32)
        table[index] = values
        tables[name] = table
    strides = np.cumprod((1, *num_choices[:0:-1]))[::-1].astype(np.int32)
    limits = np.asarray(num_choices, np.uint32)

    def find(archs):
        # What is out of range leaves the table in the one sum there is: XLA's reduction of the
        # booleans alone took half of a search's time on a CPU.
        inside = archs.astype(jnp.uint32) < limits
        terms = jnp.where(inside, archs * strides, MAX_DENSE_SIZE)
        index = jnp.minimum(jnp.sum(terms.astype(jnp.uint32), axis=-1), size).astype(jnp.int32)
        return {name: jnp.asarray(table).at[index].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
            for name, table in tables.items()}

    return find


def _sorted(rows, columns, num_choices):
    words = np.asarray(jax.jit(encodings.words, static_argnums=1)(rows, num_choices))
    order = np.lexsort(words.T[::-1])
    words = words[order]
    columns = {name: values[order] for name, values in columns.items()}
    steps = max(1, int(np.ceil(np.log2(len(words) + 1))))

    def find(archs):
        wanted = encodings.words(archs, num_choices)  # [B, W]
        keys = jnp.asarray(words)

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) // 2
            less = _less(keys[jnp.minimum(middle, len(words) - 1)], wanted) & (low < high)
            return jnp.where(less, middle + 1, low), jnp.where(less | (low >= high), high, middle)

        bounds = (jnp.zeros(wanted.shape[:-1], jnp.int32),
                  jnp.full(wanted.shape[:-1], len(words), jnp.int32))
        place = jnp.minimum(jax.lax.fori_loop(0, steps, halve, bounds)[0], len(words) - 1)
        inside = jnp.all((archs >= 0) & (archs < np.asarray(num_choices, np.int32)), axis=-1)
        found = inside & jnp.all(keys[place] == wanted, axis=-1)
        return {name: jnp.where(found, jnp.asarray(values)[place], jnp.nan)
                for name, values in columns.items()}

    return find


def _less(first: jax.Array, second: jax.Array) -> jax.Array:
    """Compare word by word, the first different one deciding: [..., W], [..., W] -> [...]."""
    less = jnp.zeros(first.shape[:-1], bool)
    equal = jnp.ones(first.shape[:-1], bool)
    for word in range(first.shape[-1]):
        less = less | (equal & (first[..., word] < second[..., word]))
        equal = equal & (first[..., word] == second[..., word])
    return less
