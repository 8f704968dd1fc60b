"""Architectures that are the same network, put together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.encodings import group_by_signature
from jaxnas.search_spaces import AmoebaNet, MnasNet


def test_groups_are_the_same_network():
    space = AmoebaNet(2)
    first = np.array([0, 1, 1, 2, 0, 2, 3, 4] * 2, np.int32)
    halves = np.array([1, 0, 2, 1, 0, 2, 3, 4] * 2, np.int32)
    other = np.array([0, 1, 1, 3, 0, 2, 3, 4] * 2, np.int32)
    groups = group_by_signature(np.stack([other, first, halves, other]), space.canonical)
    assert [group.members.tolist() for group in groups] == [[0, 3], [1, 2]]
    np.testing.assert_array_equal(groups[1].arch, space.canonical(jnp.asarray(halves)))
    archs = np.indices((2,) * 8).reshape(8, -1).T  # all
    groups = group_by_signature(archs, AmoebaNet(1, ("skip_connect", "sep_conv_3x3")).canonical)
    # A cell of one block adds two of 2 x 2 (source, operation) pairs, unordered: 10; two cells.
    assert len(groups) == 100 and sum(len(group.members) for group in groups) == 256
    assert group_by_signature(archs[:0], space.canonical) == []
    with pytest.raises(ValueError, match=r"archs must be \[K, L\]"):
        group_by_signature(archs[0], space.canonical)


def test_stages_of_mnasnet_that_round_to_the_same_are_one_network():
    space = MnasNet()
    archs = np.asarray(jax.vmap(space.sample)(jax.random.split(jax.random.key(0), 40)))
    archs = np.concatenate([archs, np.asarray(jax.vmap(space.canonical)(archs))])
    groups = group_by_signature(archs, space.canonical)
    assert sorted(np.concatenate([group.members for group in groups]).tolist()) == list(range(80))
    costs = np.stack([space.num_parameters(archs), space.multiply_adds(archs)], -1)
    for group in groups:
        assert len(np.unique(costs[group.members], axis=0)) == 1
    assert 10 < len(groups) <= 40
