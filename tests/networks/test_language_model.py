"""The language model: published counts, dropouts that last a window, states that are carried."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.networks.language_model import (Dropout, LanguageModel, count_parameters, equal_size,
                                            keep_mask, weight_drop)
from jaxnas.networks.recurrent import GRU, LSTM
from jaxnas.networks.recurrent_highway import FixedHighway, published_cell
from jaxnas.networks.recurrent_tree import NAS_CELL, FixedTree
from jaxnas.search_spaces import DARTSRNN

V, H, B = 11, 6, 3
CELL = FixedHighway((("tanh", 0), ("relu", 1)), H)
TOKENS = jax.random.randint(jax.random.key(0), (8, B), 0, V)


def search_model(vocabulary, size):
    return LanguageModel(DARTSRNN().mixed_cell(hidden_size=size), vocabulary)


@pytest.mark.parametrize("model, expected", [
    (search_model(10_000, 300), 4_810_000),  # DARTS, Penn Treebank, search
    (LanguageModel(published_cell("DARTS_RNN_V2", 850), 10_000), 22_960_000),
    (LanguageModel(published_cell("DARTS_RNN_V1", 700), 33_278), 33_127_878),  # WikiText-2
    (LanguageModel(published_cell("ENAS_RNN", 800), 10_000, decoder_bias=False), 20_800_000)])
def test_published_counts(model, expected):
    assert count_parameters(model) == expected


def test_count_of_a_nas_cell():
    params = jax.eval_shape(lambda: FixedTree(NAS_CELL, 400).init(jax.random.key(0), 400))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2_560_000


@pytest.mark.parametrize("make", [LSTM, GRU])
def test_baselines_of_equal_size(make):
    wanted = count_parameters(LanguageModel(published_cell("DARTS_RNN_V2", 32), 65))
    model = lambda size: LanguageModel(make(size), 65)  # noqa: E731
    size = equal_size(model, wanted)
    distances = [abs(count_parameters(model(size + step)) - wanted) for step in (-1, 0, 1)]
    assert distances[1] == min(distances) and distances[1] < 0.02 * wanted
    with pytest.raises(ValueError, match="parameters must be 1"):
        equal_size(model, 0)


def test_windows_with_carried_states_are_one_text():
    model = LanguageModel(CELL, V)
    params = model.init(jax.random.key(1))
    apply = jax.jit(model.apply)
    whole = apply(params, TOKENS, model.initial_states(B))
    first = apply(params, TOKENS[:5], model.initial_states(B))
    second = apply(params, TOKENS[5:], first.states)
    np.testing.assert_allclose(whole.logits, jnp.concatenate([first.logits, second.logits]),
                               atol=1e-6)
    # A window with room for more: same states, same logits where they count.
    padded = jnp.concatenate([TOKENS[:5], jnp.zeros((3, B), jnp.int32)])
    short = apply(params, padded, model.initial_states(B), length=jnp.int32(5))
    np.testing.assert_allclose(short.logits[:5], first.logits, atol=1e-6)
    np.testing.assert_allclose(short.states[0][0], first.states[0][0], atol=1e-6)
    assert whole.logits.shape == (8, B, V) and whole.raw.shape == (8, B, H)


def test_no_gradient_passes_the_start_of_a_window():
    model = LanguageModel(CELL, V)
    params = model.init(jax.random.key(1))
    states = ((jnp.ones((B, H)),),)
    loss = lambda states: jnp.sum(model.apply(params, TOKENS, states).logits ** 2)  # noqa: E731
    assert loss(states) != loss(model.initial_states(B))
    np.testing.assert_array_equal(jax.grad(loss)(states)[0][0], 0)


def test_output_mask_is_constant_over_time_and_differs_between_sequences():
    model = LanguageModel(CELL, V, Dropout(output=0.5))
    params = model.init(jax.random.key(1))
    out = model.apply(params, TOKENS, model.initial_states(B), key=jax.random.key(2))
    ratio = np.asarray(out.dropped / out.raw)
    assert set(np.round(np.unique(ratio), 4)) == {0.0, 2.0}
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1], ratio.shape), rtol=1e-5)
    assert (ratio[0, 0] != ratio[0, 1]).any()
    plain = model.apply(params, TOKENS, model.initial_states(B))
    np.testing.assert_array_equal(plain.dropped, plain.raw)
    np.testing.assert_allclose(out.raw, plain.raw, atol=1e-6)


@pytest.mark.parametrize("rate", [
    name if name in ("hidden", "weights") else pytest.param(name, marks=pytest.mark.slow)
    for name in Dropout._fields])
def test_every_rate_is_used(rate):
    model = LanguageModel(CELL, V, Dropout(**{rate: 0.5}))
    states = ((jnp.ones((B, H)),),)

    @jax.jit
    def logits(keys):
        params = model.init(jax.random.key(1))
        return jax.vmap(lambda key: model.apply(params, TOKENS, states, key=key).logits)(keys)

    keys = jax.random.split(jax.random.key(2))
    first, other, again = logits(keys[np.array([0, 1, 0])])
    assert (first != other).any()
    np.testing.assert_array_equal(first, again)


def test_word_dropout_takes_whole_words_and_scales_the_others():
    kept = keep_mask(jax.random.key(0), (4000, 1), 0.25)
    assert set(np.unique(kept)) == {0.0, np.float32(1 / 0.75)}
    assert 0.70 < np.mean(np.asarray(kept) > 0) < 0.80
    assert keep_mask(jax.random.key(0), (4, 1), 0.0) == 1.0


def test_weight_drop_leaves_inputs_and_biases_alone():
    cell = LSTM(20)
    params = cell.init(jax.random.key(0), 20)
    dropped = weight_drop(jax.random.key(1), cell, params, 0.5)
    np.testing.assert_array_equal(dropped["input"], params["input"])
    np.testing.assert_array_equal(dropped["bias"], params["bias"])
    assert 0.4 < np.mean(np.asarray(dropped["recurrent"]) == 0) < 0.6


def test_decoder_is_the_embedding():
    model = LanguageModel(CELL, V, num_layers=2)
    params = model.init(jax.random.key(1))
    out = model.apply(params, TOKENS, model.initial_states(B))
    np.testing.assert_allclose(out.logits, out.raw @ params["embedding"].T + params["bias"],
                               atol=1e-6)
    assert len(out.states) == len(params["layers"]) == 2


@pytest.mark.parametrize("options, message", [
    ({"dropout": Dropout(hidden=1.0)}, "dropout.hidden"), ({"num_layers": 0}, "num_layers"),
    ({"dropout": Dropout(words=-0.1)}, "dropout.words")])
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LanguageModel(CELL, V, **options)
