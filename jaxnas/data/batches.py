"""Batches as pure functions of (key, epoch) or (key, step): the order is resumable by itself.

The whole data set lives on the device (CIFAR-10 is 184 MB of uint8); a batch is a gather. Nothing
has to be stored to resume but the step. An epoch drops the n % batch_size images at its end, a
different remainder each epoch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def epoch_permutation(key: jax.Array, epoch: jax.Array | int, n: int) -> jax.Array:
    """Return the order of the n images in one epoch: [n] int32.

    Args:
      key: the same for all epochs.
      epoch: [] integer >= 0, may be traced.
      n: number of images, static.
    """
    order = jax.random.permutation(jax.random.fold_in(key, epoch), n)
    return order.astype(jnp.int32)


def epoch_batches(key: jax.Array, epoch: jax.Array | int, n: int, batch_size: int) -> jax.Array:
    """Return all batches of one epoch, [n // batch_size, batch_size] int32: made to be scanned.

    Args:
      key: the same for all epochs.
      epoch: [] integer >= 0, may be traced.
      n: number of images, static.
      batch_size: in [1, n], static.

    Raises:
      ValueError: batch_size out of range.
    """
    steps = steps_per_epoch(n, batch_size)
    order = epoch_permutation(key, epoch, n)
    return order[:steps * batch_size].reshape(steps, batch_size)


def batch_indices(key: jax.Array, step: jax.Array | int, n: int, batch_size: int) -> jax.Array:
    """Return one batch, [batch_size] int32, of step `step` counted over all epochs.

    Equal to `epoch_batches(key, step // s, n, batch_size)[step % s]` with s = n // batch_size, and
    costs a permutation of the whole epoch: for a single batch, or for a test. Loops should scan
    over `epoch_batches`.

    Args:
      key: the same for all steps.
      step: [] integer >= 0, may be traced.
      n: number of images, static.
      batch_size: in [1, n], static.

    Raises:
      ValueError: batch_size out of range.
    """
    steps = steps_per_epoch(n, batch_size)
    order = epoch_permutation(key, step // steps, n)
    return jax.lax.dynamic_slice(order, (step % steps * batch_size,), (batch_size,))


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return n // batch_size, the whole batches in n images.

    Raises:
      ValueError: batch_size not in [1, n].
    """
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size must be in [1, {n}], the number of images, got {batch_size}.")
    return n // batch_size
