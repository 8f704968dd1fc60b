"""ENAS macro: encoding, texts, size, costs by closed form, and the published architecture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.networks.chain import MACRO_FORMS
from jaxnas.search_spaces import enas_macro
from jaxnas.search_spaces.enas_macro import PUBLISHED, ENASMacro

SMALL = ENASMacro(4)
FOUND = np.array(PUBLISHED["ENAS_MACRO"])


@pytest.fixture(scope="module")
def archs():
    keys = jax.random.split(jax.random.key(0), 1000)
    mutate = jax.jit(jax.vmap(lambda key: (
        parent := SMALL.sample(key), SMALL.mutate(jax.random.fold_in(key, 1), parent))))
    return [np.asarray(a) for a in mutate(keys)]


def built(network, shape=(32, 32, 3)):
    variables = jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_lengths_and_size_of_the_paper():
    assert len(ENASMacro(12).num_choices) == 78 and len(ENASMacro(24).num_choices) == 300
    assert ENASMacro(12).size == 6 ** 12 * 2 ** 66 == pytest.approx(1.6e29, rel=0.01)
    assert SMALL.num_choices == (6, 6, 2, 6, 2, 2, 6, 2, 2, 2)


def test_thousand_archs_make_round_trips_and_mutations_stay_valid(archs):
    parents, children = archs
    valid = jax.jit(jax.vmap(SMALL.is_valid))
    assert valid(parents).all() and valid(children).all()
    np.testing.assert_array_equal((parents != children).sum(1), 1)
    for arch in parents:
        np.testing.assert_array_equal(SMALL.encode(SMALL.decode(arch)), arch)
    assert len(np.unique(parents, axis=0)) > 950  # of 82,944
    for position, count in enumerate(SMALL.num_choices):
        seen = np.bincount(parents[:, position], minlength=count)
        assert len(seen) == count and seen.min() > 0.7 * 1000 / count


def test_text_is_readable():
    text = "conv_3x3|sep_conv_5x5:0|max_pool_3x3:10|avg_pool_3x3:011"
    np.testing.assert_array_equal(SMALL.encode(text), [0, 3, 0, 5, 1, 0, 4, 0, 1, 1])
    assert SMALL.decode(SMALL.encode(text)) == text


@pytest.mark.parametrize("text, message", [
    ("", "4 layers"), ("conv_3x3|conv_3x3:0|conv_3x3:00", "4 layers"),
    ("conv_3x3:|conv_3x3:0|conv_3x3:00|conv_3x3:000", "layer 0 must end"),
    ("conv_3x3|conv_3x3|conv_3x3:00|conv_3x3:000", "layer 1 must end in 1 bits"),
    ("conv_3x3|conv_3x3:2|conv_3x3:00|conv_3x3:000", "layer 1 must end in 1 bits"),
    ("conv_3x3|conv_3x3:0|conv_3x3:00|conv_7x7:000", "layer 3 must begin like 'conv_3x3'"),
    (None, "must be text")])
def test_wrong_texts_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        SMALL.encode(text)


def test_published_architecture():
    space = ENASMacro(24)
    assert len(FOUND) == 300 and bool(space.is_valid(FOUND))
    own = np.array([len(layer.split(":")[-1]) if ":" in layer else 0
                    for layer in space.decode(FOUND).split("|")])
    np.testing.assert_array_equal(own, range(24))
    bits = [text.strip().partition(":")[2] for text in enas_macro.PUBLISHED_TEXT.split("|")]
    assert "".join(bits).count("1") == 98 and len("".join(bits)) == 276
    np.testing.assert_array_equal(space.encode(space.decode(FOUND)), FOUND)


@pytest.mark.parametrize("features, compat, true", [
    (96, 42_559_392, 30_947_424), (64, 18_927_552, 13_774_912), (36, 5_997_852, 4_373_604)])
def test_published_counts(features, compat, true):
    space = ENASMacro(24)
    for form, expected in (("compat", compat), ("true", true)):
        assert space.num_parameters(FOUND, features=features, form=form) == expected
        assert built(space.network(FOUND, features=features, form=form)) == expected
        traced = jax.jit(lambda a, f=form: space.num_parameters(a, features=features, form=f))
        assert float(traced(FOUND)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("form", MACRO_FORMS)
def test_closed_forms_agree_with_networks_and_with_each_other(archs, form):
    options = {"features": 6, "form": form, "num_classes": 7}
    shape = (16, 8, 2)

    def both(arch):
        return (SMALL.num_parameters(arch, channels=2, **options),
                SMALL.multiply_adds(arch, shape=shape, **options))

    traced = jax.jit(jax.vmap(both))(archs[0])
    host = np.array([both(arch) for arch in archs[0]]).T
    assert host.dtype == np.int64
    np.testing.assert_allclose(traced, host, rtol=1e-6)
    for arch, parameters, multiply_adds in zip(archs[0][:5], *host):
        network = SMALL.network(arch, **options)
        costs = [cost for _, cost in network.costs(shape)]
        assert sum(cost.parameters for cost in costs) == parameters == built(network, shape)
        assert sum(cost.multiply_adds for cost in costs) == multiply_adds


def test_multiply_adds_worked_by_hand():
    space = ENASMacro(1)  # stem 3x3, 1x1, 3x3 on 4x4 pixels, dense
    expected = 16 * (9 * 3 * 2 + 2 * 2 + 9 * 2 * 2) + 2 * 10
    assert space.multiply_adds(np.array([0]), features=2, shape=(4, 4, 3)) == expected


@pytest.mark.parametrize("num_layers", [0, 65, 2.0, True])
def test_bad_numbers_of_layers_are_named(num_layers):
    with pytest.raises(ValueError, match="num_layers must be an integer in"):
        ENASMacro(num_layers)


@pytest.mark.parametrize("options", [{"form": "final"}, {"features": 5}, {"num_classes": 0},
                                     {"shape": (0, 1, 3)}])
def test_bad_costs_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SMALL.multiply_adds(np.zeros(10, np.int32), **options)
