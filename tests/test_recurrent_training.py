"""Training of language models: steps by hand, averages, roll-backs, one program, real text."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas import data, training
from jaxnas.data.windows import Windows
from jaxnas.networks.language_model import Dropout, LanguageModel
from jaxnas.networks.recurrent_highway import FixedHighway
from jaxnas.recurrent_training import (bits, language_trainer, next_token_loss, perplexity,
                                       regularization, should_average)

V, H, B, BPTT = 7, 4, 2, 5
MODEL = LanguageModel(FixedHighway((("tanh", 0), ("relu", 1)), H), V)
TEXT = jnp.asarray(data.columns(np.tile(np.arange(V, dtype=np.int32), 12), B))  # [42, 2]
KEY = jax.random.key(0)


def make(rate=1.0, model=MODEL, **options):
    optimizer = training.sgd(rate, momentum=0.0, weight_decay=0.0, clip_norm=0.25)
    return language_trainer(model, optimizer, batch_size=B, bptt=BPTT, **options)


def test_a_step_is_clipped_sgd_in_proportion_to_the_length():
    trainer = make(2.0, slowness_penalty=0.5, activation_penalty=0.25)
    state = jax.jit(trainer.init)(KEY)
    found, info = jax.jit(trainer.train)(KEY, state, TEXT, Windows(np.array([3]), np.array([4])))

    def loss(params):
        out = MODEL.apply(params, TEXT[3:7], MODEL.initial_states(B))
        chosen = jnp.take_along_axis(jax.nn.log_softmax(out.logits), TEXT[4:8, :, None], -1)
        moved = jnp.mean((out.raw[1:] - out.raw[:-1]) ** 2)
        plain = -chosen.mean()
        return plain + 0.25 * jnp.mean(out.raw ** 2) + 0.5 * moved, (plain, out.states)

    (_, (plain, states)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        state.params)
    scale = min(1.0, 0.25 / float(optax.tree.norm(grads))) * 2.0 * 4 / BPTT
    wanted = jax.tree.map(lambda p, g: p - scale * g, state.params, grads)
    chex.assert_trees_all_close(found.params, wanted, atol=1e-6)
    chex.assert_trees_all_close(found.states, states, atol=1e-6)
    np.testing.assert_allclose(info["loss"], [plain], rtol=1e-6)
    assert int(found.step) == 1 and int(found.rollbacks) == 0


def test_one_program_for_all_lengths_and_chunks_are_the_whole():
    trainer = make(model=LanguageModel(MODEL.cell, V, Dropout(output=0.2, words=0.1)),
                   deviation=5.0)
    found = data.windows(len(TEXT), BPTT, seed=1, deviation=5.0)
    assert len(set(found.lengths.tolist())) > 2
    train = jax.jit(chex.assert_max_traces(trainer.train, n=1))
    state = trainer.init(KEY)
    losses = []
    for chunk in data.chunks(found, 2):
        state, info = train(KEY, state, TEXT, chunk)
        losses += np.asarray(info["loss"])[np.asarray(info["length"]) > 0].tolist()
    whole, info = jax.jit(trainer.train)(KEY, trainer.init(KEY), TEXT, found)
    chex.assert_trees_all_close(state, whole, atol=1e-6)
    np.testing.assert_allclose(losses, info["loss"], rtol=1e-5)
    assert int(state.step) == len(found.starts) == len(losses)


def test_average_is_the_mean_of_the_steps_after_the_switch():
    trainer = make()
    train, windows = jax.jit(trainer.train), data.windows(len(TEXT), BPTT)
    state, _ = train(KEY, trainer.init(KEY), TEXT, windows)
    chex.assert_trees_all_equal(trainer.weights(state), state.params)
    state = trainer.end_epoch(state, jnp.float32(1.0), jnp.asarray(True))
    chex.assert_trees_all_equal(trainer.weights(state), state.params)  # nothing averaged yet
    seen = []
    for start, length in zip(*windows):
        state, _ = train(KEY, state, TEXT, Windows(np.full(9, start), np.array([length] + [0] * 8)))
        seen.append(state.params)
    mean = jax.tree.map(lambda *leaves: jnp.stack(leaves).mean(0), *seen)
    chex.assert_trees_all_close(trainer.weights(state), mean, atol=1e-6)
    assert int(state.num_averaged) == len(windows.starts) == 9


def test_what_is_not_finite_goes_back_to_the_best_weights():
    trainer = make()
    train, windows = jax.jit(trainer.train), data.windows(len(TEXT), BPTT)
    state, _ = train(KEY, trainer.init(KEY), TEXT, windows)
    best = trainer.end_epoch(state, jnp.float32(1.5), jnp.asarray(False))
    worse = trainer.end_epoch(train(KEY, best, TEXT, windows)[0], jnp.float32(2.0),
                              jnp.asarray(False))
    chex.assert_trees_all_equal(worse.best.params, state.params)
    broken = worse._replace(params={**worse.params, "bias": worse.params["bias"].at[0].set(
        jnp.nan)})
    one = Windows(np.zeros(9, np.int32), np.array([3] + [0] * 8))
    found, info = train(KEY, broken, TEXT, one)
    assert not np.isfinite(info["loss"][0]) and int(found.rollbacks) == 1
    chex.assert_trees_all_equal(found.params, state.params)
    chex.assert_trees_all_equal(found.states, MODEL.initial_states(B))
    again, info = train(KEY, found, TEXT, one)
    assert np.isfinite(info["loss"]).all() and int(again.rollbacks) == 1


def test_states_are_carried_and_cleared():
    trainer = make()
    state, _ = jax.jit(trainer.train)(KEY, trainer.init(KEY), TEXT, data.windows(12, BPTT))
    assert np.abs(state.states[0][0]).max() > 0
    np.testing.assert_array_equal(trainer.start_epoch(state).states[0][0], 0)


def test_evaluation_is_the_loss_of_the_whole_text_at_once():
    trainer = make()
    params = jax.tree.map(lambda p: 20 * p, MODEL.init(KEY))
    out = MODEL.apply(params, TEXT[:-1], MODEL.initial_states(B))
    wanted = next_token_loss(out.logits, TEXT[1:], jnp.int32(len(TEXT) - 1))
    np.testing.assert_allclose(jax.jit(trainer.evaluate)(params, TEXT), wanted, rtol=1e-5)
    assert len(TEXT[1:]) % BPTT  # the last window is shorter
    cut = jax.jit(trainer.evaluate)(params, TEXT, rows=jnp.int32(13))
    np.testing.assert_allclose(
        cut, next_token_loss(out.logits, TEXT[1:], jnp.int32(12)), rtol=1e-5)


def test_penalties_of_a_hand_worked_window():
    raw = jnp.array([1.0, 3.0, 4.0, 99.0]).reshape(4, 1, 1)
    outputs = type("Outputs", (), {"raw": raw, "dropped": 2 * raw})
    found = regularization(outputs, jnp.int32(3), 0.5, 2.0)
    np.testing.assert_allclose(found, 0.5 * 4 * 26 / 3 + 2.0 * 5 / 2)
    np.testing.assert_allclose(next_token_loss(jnp.zeros((4, 1, 8)), jnp.zeros((4, 1), int), 3),
                               math.log(8), rtol=1e-6)


def test_the_trigger():
    falling = [5.0, 4.0, 3.0, 2.0, 1.0]
    assert not should_average([*falling, 9.0], window=5)  # too early
    assert should_average([2.0, *falling, 2.5])
    assert not should_average([2.0, *falling, 1.9])
    with pytest.raises(ValueError, match="window"):
        should_average(falling, 0)


def test_units():
    assert bits(math.log(2)) == 1 and perplexity(math.log(50)) == pytest.approx(50)
    assert perplexity(1e4) == math.inf


def test_a_cycle_is_learned():
    trainer = make(20.0, slowness_penalty=0.0)
    train, state = jax.jit(trainer.train), trainer.init(KEY)
    windows = data.windows(len(TEXT), BPTT)
    evaluate = jax.jit(trainer.evaluate)
    before = float(evaluate(state.params, TEXT))
    for _ in range(40):
        state, _ = train(KEY, trainer.start_epoch(state), TEXT, windows)
    assert before == pytest.approx(math.log(V), abs=0.1)
    assert float(evaluate(state.params, TEXT)) < 0.3


@pytest.mark.parametrize("name, value", [("bptt", 0), ("batch_size", 0),
                                         ("slowness_penalty", -1.0), ("activation_penalty", -1.0)])
def test_wrong_options_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        language_trainer(MODEL, optax.sgd(0.1), **{"batch_size": B, name: value})
