"""Tree cells of NAS with RL: TensorFlow's NASCell by hand, and one program for all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.networks import recurrent
from jaxnas.networks.recurrent_tree import NAS_CELL, FixedTree, TracedTree
from jaxnas.search_spaces import NASRLRNN

T, B, E, H = 4, 3, 5, 6
unroll = jax.jit(recurrent.unroll, static_argnames="cell")
KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (T, B, E))
H0, C0 = jax.random.normal(jax.random.key(2), (2, B, H))


def parameters(cell, scale):
    """Large enough for the activations to matter."""
    return jax.tree.map(lambda p: scale * p, cell.init(KEY, E))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def nas_cell(params, x, h, c):
    """TensorFlow's NASCell, line by line as in its code."""
    a = np.split(np.asarray(x @ params["input"], np.float64), 8, -1)
    m = np.split(np.asarray(h @ params["recurrent"], np.float64), 8, -1)
    relu = lambda v: np.maximum(v, 0)  # noqa: E731
    l1 = [sigmoid(a[0] + m[0]), relu(a[1] + m[1]), sigmoid(a[2] + m[2]), relu(a[3] * m[3]),
          np.tanh(a[4] + m[4]), sigmoid(a[5] + m[5]), np.tanh(a[6] + m[6]), sigmoid(a[7] + m[7])]
    l2 = [np.tanh(l1[0] * l1[1]), np.tanh(l1[2] + l1[3]), np.tanh(l1[4] * l1[5]),
          sigmoid(l1[6] + l1[7])]
    l2[0] = np.tanh(l2[0] + c)
    new_c = l2[0] * l2[1]
    return np.tanh(new_c * np.tanh(l2[2] + l2[3])), new_c


def test_nas_cell_is_its_equations():
    cell = FixedTree(NAS_CELL, H)
    params = parameters(cell, 1.2)
    state, outputs = unroll(cell, params, X, (H0, C0))
    h, c = np.asarray(H0, np.float64), np.asarray(C0, np.float64)
    for t in range(T):
        h, c = nas_cell(params, np.asarray(X[t]), h, c)
        np.testing.assert_allclose(outputs[t], h, atol=5e-6)
    np.testing.assert_allclose(state[1], c, atol=5e-6)


def test_one_program_for_all_trees():
    space, traced = NASRLRNN(), TracedTree(H)
    params = parameters(traced, 0.4)
    archs = jax.vmap(space.sample)(jax.random.split(KEY, 3)).at[0].set(jnp.array(NAS_CELL))
    archs = archs.at[1, -2:].set(0)  # injected into node 0, the second state from it
    found = jax.jit(jax.vmap(
        lambda arch: unroll(traced, params, X, (H0, C0), inputs=(arch,))))(archs)
    for number, arch in enumerate(archs):
        wanted = unroll(space.cell(arch, hidden_size=H), params, X, (H0, C0))
        np.testing.assert_allclose(found[1][number], wanted[1], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found[0][1][number], wanted[0][1], rtol=1e-3, atol=1e-4)


def test_two_leaves_by_hand():
    # leaves sigmoid(x + h) and tanh(x * h), root relu of the sum; c is added to leaf 1, then tanh;
    # the root's sum is the new c
    arch = (0, 2, 1, 1, 0, 3, 0, 1, 1, 2)
    traced = TracedTree(H, 2)
    params = traced.init(KEY, E)
    state, _ = unroll(traced, params, X[:1], (H0, C0), inputs=(jnp.array(arch),))
    x = np.split(np.asarray(X[0] @ params["input"]), 2, -1)
    m = np.split(np.asarray(H0 @ params["recurrent"]), 2, -1)
    leaf = np.tanh(np.tanh(x[1] * m[1]) + np.asarray(C0))
    total = sigmoid(x[0] + m[0]) + leaf
    for h, c in (state, unroll(FixedTree(arch, H), params, X[:1], (H0, C0))[0]):
        np.testing.assert_allclose(c, total, atol=1e-5)
        np.testing.assert_allclose(h, np.maximum(total, 0), atol=1e-5)


@pytest.mark.parametrize("make, message", [
    (lambda: TracedTree(-1), "hidden_size"), (lambda: TracedTree(4, 3), "num_leaves"),
    (lambda: FixedTree(NAS_CELL[1:], 4), "10, 18, 34"),
    (lambda: FixedTree((*NAS_CELL[:-1], 15), 4), "10, 18, 34")])
def test_wrong_cells_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
