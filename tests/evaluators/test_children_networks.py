"""The networks of the library that take an architecture, trained side by side and in turn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import data
from jaxnas.evaluators import children, recipes
from jaxnas.evaluators.populations import compile_population
from jaxnas.networks import NASBench201Network
from jaxnas.networks.chain_layout import FilterChoices
from jaxnas.search_spaces.nasbench201 import NASBench201
from jaxnas.search_spaces.nasnet import NASNet
from jaxnas.search_spaces.nasrl import NASRL


def real_network(name):
    if name == "nasrl":
        space = NASRL(2, FilterChoices((1, 3), (1,), (3, 4)))
        return space, space.traced_network(), None
    if name == "nasbench201":
        return NASBench201(), NASBench201Network(features=2, cells=1), lambda arch: {
            "weights": jax.nn.one_hot(arch, 5)}
    space = NASNet(num_blocks=1, operations=("skip_connect", "sep_conv_3x3", "max_pool_3x3"))
    return space, space.traced_network(features=2, cells_per_stage=1), lambda arch: {
        "arch": space.rows(arch)}


@pytest.mark.parametrize("name", ["nasrl", pytest.param("nasbench201", marks=pytest.mark.slow),
                                  pytest.param("nasnet", marks=pytest.mark.slow)])
def test_networks_of_the_library_in_every_form(name):
    space, network, inputs = real_network(name)
    archs = np.asarray(jax.vmap(space.sample)(jax.random.split(jax.random.key(0), 3)))
    keys = children.member_keys(jax.random.key(1), jnp.asarray(archs))
    recipe = recipes.Recipe(epochs=2, batch_size=16, learning_rate=0.05)
    dataset = data.load("digits")
    examples = children.examples(dataset, data.split_validation(dataset, fraction=0.5, limit=64))
    results = []
    for form in children.FORMS:
        trainer = children.train_children(
            network, recipe, inputs=inputs, form=form, augment=lambda key, x: x / 16.0,
            normalize=lambda x: x / 16.0)
        population = compile_population(trainer, 3, archs.shape[1:], examples)
        results.append(population.run(keys, archs, np.ones(3, bool)))
    assert np.isfinite(results[0]["valid_loss"]).all()
    for curve, values in results[0].items():
        np.testing.assert_allclose(results[1][curve], values, rtol=1e-5, err_msg=curve)
