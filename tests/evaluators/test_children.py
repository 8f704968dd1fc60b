"""Children trained by one program: the same alone, in any population and in either form."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import data
from jaxnas.evaluators import children, recipes
from jaxnas.evaluators.populations import compile_population

RECIPE = recipes.Recipe(epochs=3, batch_size=8, learning_rate=0.05, weight_decay=1e-2)
DIVERGING = (0, 1)


class Tiny(nn.Module):
    """Decision 0: which of three functions of the image; decision 1: whether the logits explode."""

    @nn.compact
    def __call__(self, x, arch, *, train, drop_path_rate=0.0):
        x = x.reshape(x.shape[0], -1)
        x = jax.lax.switch(arch[0], [lambda x: x, jnp.tanh, lambda x: x ** 2], x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(10)(x) * jnp.where(arch[1] == 1, jnp.inf, 1.0)


@functools.cache
def digits():
    """The data set, 64 images of it, and how they are prepared."""
    dataset = data.load("digits")
    split = data.split_validation(dataset, fraction=0.5, limit=64)
    prepare = {"augment": lambda key, x: x / 16.0 + 0.1 * jax.random.normal(key, x.shape),
               "normalize": lambda x: x / 16.0}
    return children.examples(dataset, split), prepare


def members(archs, seed=0):
    archs = np.asarray(archs, np.int32)
    return children.member_keys(jax.random.key(seed), jnp.asarray(archs)), archs


def run(trainer, keys, archs, active=None):
    population = compile_population(trainer, len(archs), archs.shape[1:], digits()[0])
    active = np.ones(len(archs), bool) if active is None else np.asarray(active)
    return jax.tree.map(np.asarray, population.run(keys, archs, active))


def assert_same(result, expected):
    assert result.keys() == expected.keys()
    for name, values in result.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5, err_msg=name)


def test_population_equals_one_by_one_in_every_form():
    keys, archs = members([(i % 3, int(i == 5)) for i in range(16)])
    keys = jax.random.split(jax.random.key(1), 16)
    examples, prepare = digits()
    trainers = {form: children.train_children(Tiny(), RECIPE, form=form, **prepare)
                for form in children.FORMS}
    alone = compile_population(trainers["sequential"], 1, (2,), examples)
    rows = [alone.run(keys[i:i + 1], archs[i:i + 1], np.ones(1, bool)) for i in range(16)]
    expected = {name: np.concatenate([np.asarray(row[name]) for row in rows]) for name in rows[0]}
    assert expected["train_loss"].shape == (16, 3)
    assert len(np.unique(expected["train_loss"][:5, 0])) == 5  # each has its own randomness
    for form, trainer in trainers.items():
        assert_same(run(trainer, keys, archs), expected)


@pytest.mark.parametrize("form", children.FORMS)
def test_a_diverged_member_is_nan_and_the_others_go_on(form):
    examples, prepare = digits()
    trainer = children.train_children(Tiny(), RECIPE, form=form, **prepare)
    keys, archs = members([(0, 0), DIVERGING, (1, 0), (2, 0)])
    result = run(trainer, keys, archs, active=[True, True, True, False])
    assert result["diverged_epoch"].tolist() == [-1, 0, -1, -1]
    for name in children.CURVES:
        assert np.isfinite(result[name][[0, 2]]).all(), name
        assert np.isnan(result[name][[1, 3]]).all(), name
    assert np.isnan(RECIPE.scores(result["valid_accuracy"])).tolist() == [False, True, False, True]


def test_curves_before_the_divergence_stay():
    # Weight decay makes |w| grow 999 times a step, 4 steps an epoch; float32 ends at 3e38.
    recipe = recipes.Recipe(epochs=6, batch_size=8, learning_rate=1.0, momentum=0.0,
                            nesterov=False, weight_decay=1e3)
    result = run(children.train_children(Tiny(), recipe), *members([(0, 0)]))
    epoch = int(result["diverged_epoch"][0])
    assert 0 < epoch < 6
    loss = result["train_loss"][0]
    assert np.isfinite(loss[:epoch]).all() and np.isnan(loss[epoch:]).all()


def test_members_that_ended_cost_no_steps_one_after_the_other():
    examples, prepare = digits()
    steps = []

    def augment(key, images):
        jax.debug.callback(lambda: steps.append(1))
        return prepare["augment"](key, images)

    trainer = children.train_children(Tiny(), RECIPE, augment=augment)
    run(trainer, *members([DIVERGING, (0, 0), (1, 0)]), active=[True, False, True])
    jax.effects_barrier()
    assert len(steps) == 4 * (1 + 0 + 3)  # 32 images in batches of 8; epochs


def test_member_keys_depend_on_the_architecture_alone():
    archs = jnp.asarray([[0, 1], [1, 0], [0, 1], [0, 0]], jnp.int32)
    bits = jax.random.key_data(children.member_keys(jax.random.key(0), archs))
    assert (bits[0] == bits[2]).all()
    assert len(np.unique(bits, axis=0)) == 3
    alone = jax.random.key_data(children.member_keys(jax.random.key(0), archs[1:2]))
    assert (alone[0] == bits[1]).all()
    assert (jax.random.key_data(children.member_keys(jax.random.key(1), archs)) != bits).any()


def test_wrong_arguments_fail_before_compilation():
    with pytest.raises(ValueError, match="form must be one of"):
        children.train_children(Tiny(), RECIPE, form="pmap")
    with pytest.raises(ValueError, match="valid_batch_size"):
        children.train_children(Tiny(), RECIPE, valid_batch_size=0)
    assert [children.default_form(name) for name in ("cpu", "gpu")] == ["sequential", "vmap"]
