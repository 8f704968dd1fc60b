"""The search of experiments.enas_rnn: shared weights of all cells, their controller, its programs.

Alternates as google-research's enas_lm does: a pass of the shared weights over the training text,
with an architecture of the controller for every window; then steps of the controller by REINFORCE.
The reward of an architecture is c / perplexity on one window of the validation text. One program
serves all architectures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.language_controller import inverse_perplexity
from experiments.language_retraining import dropout
from experiments.programs import Programs
from experiments.searching import random_key
from jaxnas import data, search, training
from jaxnas.base import Metrics, PyTree
from jaxnas.data import TextDataset, Windows
from jaxnas.networks import LanguageModel
from jaxnas.networks.recurrent_controller import enas_rnn_controller
from jaxnas.recurrent_training import LanguageState, language_trainer, next_token_loss
from jaxnas.search_spaces import ENASRNN
from jaxnas.searchers import PolicyGradientState, reinforce


class EnasState(NamedTuple):
    """All that changes in a search."""

    shared: LanguageState
    controller: PolicyGradientState


class Task(NamedTuple):
    """What a search needs: programs, once `Programs.compile_all` has run.

    Attributes:
      init: () -> state.
      epoch: (state, epoch) -> state, {"train_loss" nats, "reward", "perplexity", "baseline",
        "entropy" nats: [] float32, means over the epoch; baseline and entropy at its end}.
      derive: (state) -> archs [n, L] of the controller, losses [n] nats by shared weights.
      length: L.
      windows: of an epoch, at most.
    """

    init: Callable[[], EnasState]
    epoch: Callable[[EnasState, int], tuple[EnasState, dict[str, jax.Array]]]
    derive: Callable[[EnasState], tuple[jax.Array, jax.Array]]
    length: int
    windows: int


def used_l2(model: LanguageModel, weight: float) -> Callable[..., jax.Array]:
    """Return (params, *inputs) -> [], weight times the sum of squares of what an arch uses."""

    def penalty(params: PyTree, *inputs: jax.Array) -> jax.Array:
        layers = [model.cell.select(layer, *inputs) for layer in params["layers"]]
        leaves = jax.tree.leaves({**params, "layers": layers})
        return weight * jnp.sum(jnp.stack([jnp.sum(leaf ** 2) for leaf in leaves]))

    return penalty


def make_task(config: Any, space: ENASRNN, text: TextDataset, programs: Programs) -> Task:
    """Build the search of a configuration and register its programs.

    Everything random follows from (seed, epoch), so a resumed search goes on as if it had not
    stopped. A window of validation is read from empty hidden states and without dropout. Where
    training is no longer finite it goes on from the end of the last epoch.
    """
    model = LanguageModel(
        space.shared_cell(hidden_size=config.hidden_size), len(text.vocabulary.symbols),
        dropout(config, config.dropout_words), decoder_bias=False, remat=config.remat)
    bptt, deviation, batch = config.bptt, config.deviation, config.batch_size
    trainer = language_trainer(
        model, training.sgd(config.weights_lr, momentum=0.0, weight_decay=0.0,
                            clip_norm=config.clip_norm),
        batch_size=batch, bptt=bptt, deviation=deviation, slowness_penalty=config.slowness,
        weight_penalty=used_l2(model, config.weights_l2))
    policy = enas_rnn_controller(space.num_nodes, len(space.activations),
                                 hidden_size=config.controller_size)
    searcher = reinforce(
        policy, optimizer=optax.adam(config.controller_lr), batch_size=config.controller_samples,
        baseline_decay=config.baseline_decay, baseline_init="zero", baseline_first=True,
        entropy_weight=config.entropy_weight)
    train_text = jnp.asarray(data.columns(text.train[:config.limit], batch, bptt))
    valid_text = jnp.asarray(data.columns(text.valid, batch, bptt))
    room = data.most_windows(len(train_text), bptt, deviation)
    key = random_key(config.seed)

    def initial(key: jax.Array) -> EnasState:
        weights_key, controller_key = jax.random.split(jax.random.fold_in(key, 0))
        return EnasState(trainer.init(weights_key), searcher.init(controller_key))

    def sample(key: jax.Array, params: PyTree, count: int) -> jax.Array:
        return jax.vmap(policy.sample, (0, None))(jax.random.split(key, count), params)

    def epoch(key, state: EnasState, number, windows: Windows, text, valid):
        arch_key, step_key = jax.random.split(jax.random.fold_in(key, 1))
        archs = sample(jax.random.fold_in(arch_key, number), state.controller.params, room)

        def step(shared, xs):
            arch, *window = xs
            one = Windows(*(part[None] for part in window))
            shared, info = trainer.train(step_key, shared, text, one, *space.split(arch))
            return shared, info["loss"][0] * window[1]

        shared, losses = jax.lax.scan(step, trainer.start_epoch(state.shared), (archs, *windows))
        shared = trainer.end_epoch(shared, -number, jnp.zeros((), bool))  # always the best: latest

        def score(key: jax.Array, arch: jax.Array) -> jax.Array:
            start = jax.random.randint(key, (), 0, len(valid) - bptt)
            tokens, targets = data.take_window(valid, start, bptt)
            out = model.apply(shared.params, tokens, model.initial_states(batch),
                              *space.split(arch))
            return jnp.exp(next_token_loss(out.logits, targets, jnp.int32(bptt)))

        def evaluator(key: jax.Array, archs: jax.Array) -> Metrics:
            keys = jax.random.split(key, len(archs))
            return {"perplexity": jax.lax.map(lambda xs: score(*xs), (keys, archs))}

        begin = search.SearchState(jax.random.fold_in(key, 2), number * config.controller_steps,
                                   state.controller)
        end, history = search.advance(begin, searcher, evaluator,
                                      inverse_perplexity(config.reward_scale),
                                      num_steps=config.controller_steps)
        return EnasState(shared, end.searcher), {
            "train_loss": losses.sum() / windows.lengths.sum(), "reward": history.fitness.mean(),
            "perplexity": history.metrics["perplexity"].mean(),
            "baseline": history.info["baseline"][-1], "entropy": history.info["entropy"][-1]}

    def derive(key, state: EnasState, valid):
        archs = sample(jax.random.fold_in(key, 3), state.controller.params,
                       config.derive_samples)
        return archs, jax.lax.map(
            lambda arch: trainer.evaluate(state.shared.params, valid, *space.split(arch)), archs)

    def epoch_windows(number: int) -> Windows:
        found = data.windows(len(train_text), bptt, seed=(config.seed, number),
                             deviation=deviation)
        return jax.tree.map(jnp.asarray, next(data.chunks(found, room)))

    shapes = jax.eval_shape(initial, key)
    init_program = programs.add("initial_state", jax.jit(initial), key)
    epoch_program = programs.add("search_epoch", jax.jit(epoch), key, shapes, jnp.int32(0),
                                 epoch_windows(0), train_text, valid_text)
    scored = valid_text[:derive_rows(config, len(valid_text))]
    derive_program = programs.add("derive", jax.jit(derive), key, shapes, scored)
    return Task(
        lambda: init_program(key),
        lambda state, number: epoch_program(key, state, jnp.int32(number), epoch_windows(number),
                                            train_text, valid_text),
        lambda state: derive_program(key, state, scored),
        len(space.num_choices), room)


def derive_rows(config: Any, rows: int) -> int:
    """Return how many of the rows of the validation columns score derived architectures."""
    if config.derive_tokens is None:
        return rows
    return int(np.clip(config.derive_tokens // config.batch_size, config.bptt + 1, rows))


def cost(config: Any, text: TextDataset) -> dict[str, int]:
    """Count what a run does, in tokens read, for `--dry-run`."""
    train = len(text.train[:config.limit])
    rows = len(text.valid) // config.batch_size
    window = config.batch_size * config.bptt
    return {
        "tokens_of_weights": config.epochs * train,
        "tokens_of_controller": (config.epochs * config.controller_steps
                                 * config.controller_samples * window),
        "tokens_of_derivation": (config.derive_samples * config.batch_size
                                 * derive_rows(config, rows)),
        "tokens_of_retraining": (4 * config.num_seeds * config.retrain_epochs
                                 * (train + len(text.valid) + len(text.test)))}
