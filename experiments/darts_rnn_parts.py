"""The search of experiments.darts_rnn: a recurrent cell with all its choices, on text."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.language_retraining import dropout
from experiments.programs import Programs
from experiments.searching import Recorded, random_key
from jaxnas import data, training
from jaxnas.base import BilevelOptimizer
from jaxnas.data import TextDataset
from jaxnas.networks import LanguageModel
from jaxnas.recurrent_training import next_token_loss, regularization
from jaxnas.search_spaces import DARTSRNN
from jaxnas.searchers import BilevelState, bilevel


def search_model(config: Any, space: DARTSRNN, vocabulary_size: int) -> LanguageModel:
    """Build the model whose cell is searched."""
    cell = space.mixed_cell(hidden_size=config.hidden_size)
    return LanguageModel(cell, vocabulary_size, dropout(config), remat=config.remat)


class Task(NamedTuple):
    """What a search needs; every function is pure."""

    optimizer: BilevelOptimizer
    batches: Callable[..., Any]  # (search, hidden, step) -> train batch, valid batch, hidden
    init: Callable[[], BilevelState]
    hidden: Any                  # hidden states of both levels before the first step
    epoch_ends: tuple[int, ...]  # [epochs] steps behind every epoch
    total_steps: int


def make_task(config: Any, space: DARTSRNN, text: TextDataset, programs: Programs) -> Task:
    """Build the search of a configuration and register its programs.

    The weights see the training part, the alphas the validation part, as published. Hidden states
    are carried in both; those after a window come from a pass of their own, with the weights before
    the step. Slowness is penalised at the weights' level, and so in their look-ahead too. All
    windows have the same length, since a step of the optimiser cannot be scaled by it here.
    """
    model = search_model(config, space, len(text.vocabulary.symbols))
    weights_text = data.columns(text.train[:config.limit], config.batch_size, config.bptt)
    alphas_text = data.columns(text.valid, config.batch_size, config.bptt)
    found = data.windows(len(weights_text), config.bptt)
    per_epoch = len(found.starts)
    inner = training.sgd(config.weights_lr, momentum=0.0, weight_decay=config.weight_decay,
                         clip_norm=config.clip_norm)
    outer = training.adam(config.alphas_lr, b1=0.9, b2=0.999,
                          weight_decay=config.alphas_weight_decay)

    def loss_fn(weights, alphas, batch):
        out = model.apply(weights, batch["tokens"], batch["hidden"], space.weights(alphas),
                          key=batch["key"], length=batch["length"])
        return next_token_loss(out.logits, batch["targets"], batch["length"]) + regularization(
            out, batch["length"], 0.0, batch["slowness"])

    optimizer = bilevel(
        loss_fn, inner, outer, gradient=config.gradient,
        reuse_gradient=config.gradient == "first_order",  # compiles less; alphas cost little
        program=functools.partial(Recorded, programs, jax.local_devices()[:1]))
    key = random_key(config.seed)

    def initial() -> BilevelState:
        weights_key, alphas_key = jax.random.split(jax.random.fold_in(key, 0))
        return optimizer.init(model.init(weights_key), space.init_alphas(alphas_key))

    def batches(weights, alphas, hidden, train, valid, step, start, length):
        # Windows of the alphas begin anywhere they fit; the states are carried all the same.
        places = (start, start % (len(valid) - config.bptt))
        taken = [data.take_window(part, place, config.bptt)
                 for part, place in zip((train, valid), places)]
        tokens, targets = (jnp.stack(rows) for rows in zip(*taken))
        keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 1), step))

        def read(tokens, states, key):
            return model.apply(weights, tokens, states, space.weights(alphas), key=key,
                               length=length).states

        after = jax.vmap(read)(tokens, hidden, keys)  # hidden: both levels, stacked
        both = {"tokens": tokens, "targets": targets, "hidden": hidden, "key": keys,
                "slowness": jnp.array([config.slowness, 0.0], jnp.float32)}
        made = [{"length": length, **jax.tree.map(lambda leaf: leaf[level], both)}
                for level in range(2)]
        return made[0], made[1], after

    shapes = jax.eval_shape(initial)
    hidden = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2),
                          model.initial_states(config.batch_size))
    texts = (jnp.asarray(weights_text), jnp.asarray(alphas_text))
    number = jax.ShapeDtypeStruct((), jnp.int32)
    example = (shapes.weights, shapes.alphas, hidden, *texts, number, number, number)
    init_program = programs.add("initial_state", jax.jit(initial))
    batch_program = programs.add("batches", jax.jit(batches), *example)
    train_batch, valid_batch, _ = jax.eval_shape(batches, *example)
    jax.eval_shape(optimizer.update, shapes, train_batch, valid_batch)  # notes all shapes

    def next_batches(search: BilevelState, hidden: Any, step: int):
        place = step % per_epoch
        if place == 0:  # a new epoch begins with empty states
            hidden = jax.tree.map(jnp.zeros_like, hidden)
        window = (jnp.int32(found.starts[place]), jnp.int32(found.lengths[place]))
        return batch_program(search.weights, search.alphas, hidden, *texts, jnp.int32(step),
                             *window)

    ends = tuple(per_epoch * (epoch + 1) for epoch in range(config.epochs))
    return Task(optimizer, next_batches, init_program, hidden, ends, ends[-1])
