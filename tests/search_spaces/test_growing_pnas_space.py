"""Cells of up to B blocks in one length: counts, round trips, and the network for all sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.search_spaces import PNAS, GrowingPNAS
from jaxnas.search_spaces.pnas import OPERATIONS


def grow(growing):
    """Return all cells of every size, by expansion."""
    expand = jax.jit(lambda archs: jax.lax.map(growing.expand, archs))
    levels = [np.asarray(growing.smallest()[0])]
    for _ in range(growing.num_sizes - 1):
        archs, valid = map(np.asarray, expand(jnp.asarray(levels[-1])))
        levels.append(np.unique(archs[valid], axis=0))
    return levels


# As tests/search_spaces/test_pnas_space.py counts them by other means.
@pytest.mark.parametrize("operations, counts", [
    (8, [136, 31_620]), (2, [10, 165, 3_840]), (1, [3, 15, 97, 807])])
def test_growth_reaches_every_cell_once(operations, counts):
    growing = GrowingPNAS(PNAS(len(counts), OPERATIONS[:operations]))
    levels = grow(growing)
    assert [len(level) for level in levels] == counts
    for size, cells in enumerate(levels, start=1):
        space = growing.space(size)
        canonical = jax.jit(jax.vmap(space.canonical))(jnp.asarray(cells[:, :4 * size]))
        np.testing.assert_array_equal(canonical, cells[:, :4 * size])  # and so are distinct
        np.testing.assert_array_equal(growing.pad(cells[:, :4 * size]), cells)


def test_numbers_of_the_paper():
    growing = GrowingPNAS()
    assert growing.num_sizes == 5 and growing.absent == 8
    assert growing.num_choices[:4] == (2, 9, 2, 9) and growing.num_choices[-4:] == (6, 9, 6, 9)
    archs, valid = jax.eval_shape(growing.expand, jnp.zeros(20, jnp.int32))
    assert archs.shape == (1176, 20) and valid.shape == (1176,)  # 48 * 49 / 2
    full = growing.sample(jax.random.key(0))
    assert not np.asarray(growing.expand(full)[1]).any()  # of five blocks nothing grows
    np.testing.assert_array_equal(full, growing.largest.canonical(full))


@pytest.mark.slow
def test_one_network_for_cells_of_every_size():
    growing = GrowingPNAS(PNAS(2, ("skip_connect", "conv_3x3")))
    network = growing.traced_network(features=4, cells_per_stage=1)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    arch = jnp.array([0, 1, 1, 0, 1, 1, 0, 1])
    variables = network.init(jax.random.key(0), x, growing.rows(arch), train=False)

    @jax.jit
    def gradient(arch):
        def loss(params):
            logits = network.apply({**variables, "params": params}, x, growing.rows(arch),
                                   train=True, mutable=["batch_stats"])[0]
            return jnp.sum(logits ** 2)
        return jax.grad(loss)(variables["params"])

    def of_edges(gradients):  # [4] of a cell's four edges, over all cells and weights
        leaves = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
                  if any(getattr(part, "key", "") == "edges" for part in path)]
        return sum(np.abs(leaf).sum(axis=tuple(range(2, leaf.ndim))).sum(0) for leaf in leaves)

    # Edges 1 and 2 are identities; a missing block's edges have no part in the result.
    whole = of_edges(gradient(arch))
    part = of_edges(gradient(jnp.asarray(growing.pad(arch[None, :4])[0])))
    assert whole[0] > 0 and whole[2] > 0 and whole[3] > 0
    assert part[0] > 0 and part[2] == part[3] == 0
    plain = growing.largest.traced_network(features=4, cells_per_stage=1)
    expected = plain.apply(variables, x, growing.largest.rows(arch), train=False)
    logits = network.apply(variables, x, growing.rows(arch), train=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
