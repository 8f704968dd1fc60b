"""Several independent searches side by side as one searcher, in one program."""

import jax
import jax.numpy as jnp

from jaxnas.base import Searcher


def islands(searcher: Searcher, count: int) -> Searcher:
    """Run `count` copies of a searcher that differ in their random numbers and their fitness.

    With an objective whose parameter is an array, one entry an architecture, every copy looks for
    something else: MnasNet's reward at several targets, say, so that one search gives a network for
    each of them.

        targets = np.tile([50.0, 75.0, 100.0], evolution.batch_size)
        run(key, islands(evolution, 3), evaluator, mnasnet_reward("accuracy", "ms", target=targets))

    Args:
      searcher: asks for b architectures.
      count: K, how many copies.

    Returns:
      A searcher with batch_size b * K and K times the capacity. The copies take turns, copy k in
      rows k, K + k, 2 K + k and so on: a budget that ends within a batch is fair. Its info is the
      mean over the copies.

    Raises:
      ValueError: count is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be 1 or more, got {count}.")

    def apart(rows):  # [b * K, ...] -> [b, K, ...]
        return rows.reshape(searcher.batch_size, count, *rows.shape[1:])

    def init(key):
        return jax.vmap(searcher.init)(jax.random.split(key, count))

    def ask(key, state):
        archs = jax.vmap(searcher.ask, out_axes=1)(jax.random.split(key, count), state)
        return archs.reshape(-1, archs.shape[-1])

    def tell(key, state, archs, fitness):
        state, info = jax.vmap(searcher.tell, (0, 0, 1, 1))(
            jax.random.split(key, count), state, apart(archs), apart(fitness))
        return state, jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), info)

    capacity = None if searcher.capacity is None else count * searcher.capacity
    return Searcher(init, ask, tell, count * searcher.batch_size, capacity)
