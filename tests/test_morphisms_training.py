"""Morphisms in the middle of a training: accuracy stays, momentum goes along, the loss goes on."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import conv_chains, data, morphisms, training
from jaxnas.conv_chains import Connect, Deepen, Widen
from jaxnas.morphisms import Morphable
from jaxnas.networks.morphable_slots import MorphableSlots
from jaxnas.networks.morphable_traced import TracedMorphableNetwork

SLOTS = MorphableSlots(2, 2, (3,), (12, 24))
TRACED = TracedMorphableNetwork(SLOTS, 1)
OPTIMIZER = training.sgd(0.1, momentum=0.9)
EPOCHS = 5


def normalize(x):
    return x / 8.0 - 1


def through(function, optimizer_state, params):
    """Apply a function to every tree of an optimiser's state that is like the parameters."""
    return morphisms.replace_moments(
        optimizer_state, params, map(function, morphisms.moments(optimizer_state, params)))


@pytest.mark.slow  # half a minute; test_morphisms.py proves that nothing changes
def test_accuracy_stays_and_training_goes_on():
    digits = data.load("digits")
    images, labels = jnp.asarray(digits.train_images[:640]), jnp.asarray(digits.train_labels[:640])
    train = training.make_train_epoch(TRACED.apply, OPTIMIZER, lambda _, x: normalize(x))

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    @chex.assert_max_traces(n=1)  # one program for all children
    def epoch(state, arch, number):
        """Train an epoch; accuracy on all images before and after, losses between."""
        def accuracy(state):
            return training.evaluate(
                TRACED.apply, training.network_variables(state.params, state.batch_stats), images,
                labels, 128, normalize_fn=normalize, inputs=(arch,))["accuracy"]

        before = accuracy(state)
        batches = data.epoch_batches(jax.random.key(0), number, 640, 32)
        state, info = train(jax.random.key(0), state, images, labels, batches, inputs=(arch,))
        return state, info["loss"], before

    chain = conv_chains.initial_chain(num_stages=2, width=12)
    arch = SLOTS.arch(chain)
    state = training.init_state(
        TRACED.lazy_init(jax.random.key(1), jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32),
                         jax.ShapeDtypeStruct(arch.shape, jnp.int32), train=False), OPTIMIZER)
    for number in range(EPOCHS):
        state, losses, _ = epoch(state, arch, number)

    def compact(tree, kind="params"):
        return TRACED.extract({kind: jax.tree.map(np.asarray, tree)}, arch)[kind]

    parent = Morphable(chain, compact(state.params), compact(state.batch_stats, "batch_stats"),
                       through(compact, state.optimizer_state, state.params))
    _, on, accuracy = epoch(state, arch, EPOCHS)
    assert accuracy > 0.8
    for operation in (Deepen(0, 3), Deepen(1, 3), Widen(0, 24), Widen(1, 24),
                      Connect(0, 1, "add"), Connect(0, 1, "concat")):
        child = morphisms.morph(jax.random.key(2), parent, operation, noise=1e-4)

        def slots_of(tree, kind="params"):
            return TRACED.insert({kind: tree}, child.chain)[kind]

        grown = state._replace(
            params=slots_of(child.params), batch_stats=slots_of(child.batch_stats, "batch_stats"),
            optimizer_state=through(slots_of, child.optimizer_state, child.params))
        _, next_losses, kept = epoch(grown, SLOTS.arch(child.chain), EPOCHS)
        assert abs(kept - accuracy) < 2 / 640, operation
        assert np.isfinite(next_losses).all()
        # The same images come: the first loss is the parent's, but for statistics of the batch.
        assert abs(next_losses[0] - on[0]) < 0.15, operation
        assert next_losses[:5].mean() < losses[-5:].mean() + 0.2, operation
