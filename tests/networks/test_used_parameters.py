"""The masks of used parameters equal what `extract` reads, found by transposing it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.networks.used_parameters import used_parameters
from jaxnas.search_spaces.enas_macro import ENASMacro
from jaxnas.search_spaces.enas_micro import ENASMicro
from jaxnas.search_spaces.nasnet import NASNet
from jaxnas.search_spaces.pnas import PNAS


def macro():
    space = ENASMacro(6)
    return space, space.traced_network(features=2, num_classes=3), lambda arch: arch


def pair(space, **options):
    return space, space.traced_network(features=2, num_classes=3, **options), space.rows


NETWORKS = {
    "macro": macro,
    "micro": lambda: pair(ENASMicro(3), cells_per_stage=2),
    "micro_of_one_block": lambda: pair(ENASMicro(1), cells_per_stage=1),
    "nasnet": lambda: pair(NASNet(2), cells_per_stage=3),  # a wide first state, output layers
    "pnas": lambda: pair(PNAS(2), cells_per_stage=2),
}  # fmt: skip


def shapes_of(network, arch):
    image = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    return jax.eval_shape(
        lambda: network.lazy_init(jax.random.key(0), image, arch, train=False))["params"]


@pytest.mark.parametrize("name", [
    "macro", "micro", *(pytest.param(name, marks=pytest.mark.slow)
                        for name in ("micro_of_one_block", "nasnet", "pnas"))])
def test_masks_are_what_extract_reads(name):
    space, network, of = NETWORKS[name]()
    archs = np.array(jax.jit(jax.vmap(space.sample))(jax.random.split(jax.random.key(1), 4)))
    params = shapes_of(network, of(archs[0]))
    masks_of = jax.jit(lambda arch: used_parameters(network, params, of(arch)))
    leaves, structure = jax.tree.flatten(params)
    ends = np.cumsum([0, *(leaf.size for leaf in leaves)])
    numbered = jax.tree.unflatten(structure, [
        np.arange(start, start + leaf.size, dtype=np.int32).reshape(leaf.shape)
        for start, leaf in zip(ends, leaves)])
    for arch in archs:
        masks = masks_of(arch)
        assert jax.tree.structure(masks) == structure
        # The numbers of every entry go through `extract`; those that arrive are used.
        found = network.extract({"params": numbered}, np.asarray(of(arch)))["params"]
        arrived = np.zeros(ends[-1], bool)
        for leaf in jax.tree.leaves(found):
            arrived[np.asarray(leaf).ravel()] = True
        flat = np.concatenate([
            np.broadcast_to(mask, leaf.shape).ravel()
            for mask, leaf in zip(jax.tree.leaves(masks), leaves)])
        np.testing.assert_array_equal(flat, arrived)
        assert 0 < flat.sum() < flat.size


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="network must be"):
        used_parameters(object(), {}, jnp.zeros(3, jnp.int32))
