"""A search step of the supernet on several devices equals the step on one."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import parallel, training
from jaxnas.search_spaces import DARTS
from jaxnas.searchers import bilevel

SPACE = DARTS(num_nodes=2, operations=("none", "skip_connect", "sep_conv_3x3"))
POOLS = DARTS(num_nodes=2, operations=("none", "skip_connect", "avg_pool_3x3"))  # compile sooner
COUNT = 2


def make(gradient, bn_axis, axis_name, program, space=SPACE):
    """The step of experiments.darts, small; float64, so that only real differences are left."""
    net = space.supernet(
        features=2, num_layers=3, num_classes=3, axis_name=bn_axis, scan_edges=True, remat=True
    )

    def loss_fn(weights, alphas, batch, net=net):
        logits = net.apply(weights, batch["images"], space.weights(alphas))
        return training.cross_entropy(logits, batch["labels"])

    forward = functools.partial(loss_fn, net=net.clone(forward_mode=True))
    return bilevel(
        loss_fn, training.sgd(0.05, clip_norm=0.5), training.adam(3e-3), gradient=gradient,
        axis_name=axis_name, program=program, reuse_gradient=gradient == "first_order",
        forward_loss_fn=forward if gradient == "hessian_vector" else None,
    )


def start(space=SPACE):
    keys = jax.random.split(jax.random.key(0), 4)
    image = jnp.zeros((2, 8, 8, 1))
    alphas = space.init_alphas(keys[0])
    net = space.supernet(features=2, num_layers=3, num_classes=3)
    weights = net.lazy_init(keys[1], jax.ShapeDtypeStruct(image.shape, image.dtype),
                            jax.ShapeDtypeStruct(alphas.shape, alphas.dtype))

    def batch(key):
        return {"images": jax.random.normal(key, (8, 8, 8, 1)), "labels": jnp.arange(8) % 3}

    cast = jax.tree.map(
        lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a,
        (weights, alphas, batch(keys[2]), batch(keys[3])),
    )
    return cast


@pytest.mark.parametrize("gradient, mapped, space", [
    ("first_order", parallel.mapped, POOLS),
    pytest.param("first_order", parallel.mapped, SPACE, marks=pytest.mark.slow),
    pytest.param("hessian_vector", parallel.mapped, SPACE, marks=pytest.mark.slow),
    pytest.param("hessian_vector", parallel.shard_mapped, SPACE, marks=pytest.mark.slow)])
def test_devices_equal_one(gradient, mapped, space):
    with jax.enable_x64(True):
        weights, alphas, train, valid = start(space)
        devices = parallel.available_devices(COUNT)
        one = make(gradient, None, None, lambda name, f: jax.jit(f), space)
        many = make(
            gradient, parallel.AXIS, parallel.AXIS, lambda name, f: mapped(f, devices),
            space,
        )
        state = one.init(weights, alphas)
        copies = parallel.replicate(state, devices)
        shards = [parallel.shard_batch(batch, COUNT) for batch in (train, valid)]
        for _ in range(3):
            state, info = one.update(state, train, valid)
            copies, infos = many.update(copies, *shards)
        for device in range(COUNT):
            chex.assert_trees_all_close(
                jax.tree.map(lambda a: np.asarray(a)[device], copies),
                jax.tree.map(np.asarray, state), rtol=1e-7, atol=1e-9,
            )
        np.testing.assert_allclose(infos["train_loss"][0], info["train_loss"], rtol=1e-8)
        # one genotype comes out, whichever device is asked
        arch = space.discretize(parallel.unreplicate(copies).alphas)
        np.testing.assert_array_equal(arch, space.discretize(state.alphas))


@pytest.mark.slow
def test_statistics_per_replica_are_another_function():
    with jax.enable_x64(True):
        weights, alphas, train, valid = start()
        devices = parallel.available_devices(COUNT)

        def program(name, f):
            return jax.pmap(f, axis_name=parallel.AXIS, devices=devices)

        replica = make("first_order", None, parallel.AXIS, program)
        one = make("first_order", None, None, lambda name, f: jax.jit(f))
        state = one.init(weights, alphas)
        _, info = one.update(state, train, valid)
        shards = [parallel.shard_batch(batch, COUNT) for batch in (train, valid)]
        _, infos = replica.update(parallel.replicate(state, devices), *shards)
        assert abs(float(infos["train_loss"][0] - info["train_loss"])) > 1e-4
