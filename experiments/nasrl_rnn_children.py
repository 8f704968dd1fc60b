"""The children of experiments.nasrl_rnn: language models trained from scratch by one program."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import child_search, common
from experiments.child_trials import Kind, Train
from experiments.language_retraining import CellSpace, dropout
from experiments.programs import Programs
from jaxnas import data, training
from jaxnas.base import Objective
from jaxnas.data import TextDataset, Windows
from jaxnas.networks import LanguageModel
from jaxnas.recurrent_training import language_trainer, perplexity

NAMES = ("perplexity", "valid_loss", "train_loss", "diverged_epoch")
# What changes a child's metrics, besides the text, its architecture and versions.
SETTINGS = ("level", "limit", "child_tokens", "child_valid_tokens", "child_seed", "epochs",
            "batch_size", "bptt", "deviation", "hidden_size", "num_layers", "weights_lr",
            "clip_norm", "slowness", "dropout_embedding", "dropout_inputs", "dropout_hidden",
            "dropout_output", "dropout_words")


def identity(config: Any, space: CellSpace, text: TextDataset) -> Kind:
    """Return what identifies children in a store."""
    versions = common.versions()
    return Kind(space.name, {
        **{name: common.to_json(value) for name in SETTINGS
           for value in [dataclasses.asdict(config)[name]]},
        "text": text.sha256, "platform": jax.default_backend(),
        "versions": {name: versions[name] for name in ("jax", "jaxlib", "jaxnas")}})


def child_parts(config: Any, text: TextDataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns [R, B] that children are trained on and judged by.

    Raises:
      ValueError: a part is too short.
    """
    train, valid = text.train[:config.limit][:config.child_tokens], text.valid
    return (data.columns(train, config.batch_size, config.bptt),
            data.columns(valid[:config.child_valid_tokens], config.batch_size, config.bptt))


def worst_if_failed(objective: Objective) -> Objective:
    """Let a child that has no perplexity be told as one whose perplexity is infinite."""

    def fitness(metrics: Mapping[str, jax.Array]) -> jax.Array:
        found = metrics["perplexity"]
        return objective({**metrics, "perplexity": jnp.where(jnp.isnan(found), jnp.inf, found)})

    return fitness


def make_children(config: Any, space: CellSpace, text: TextDataset, programs: Programs) -> Train:
    """Register the program that trains `population` children, whatever their architectures.

    All have the same windows and, where parameters have the same shape and place, the same initial
    weights and masks: they follow from `child_seed` alone. The learning rate is constant. A child
    is judged by the lowest validation perplexity of its epochs; one that ever took a step that is
    not finite, or whose perplexity is not, has failed, and is not trained further.

    Returns:
      archs [n, L] int32, 1 <= n <= population -> n times {"perplexity" and "valid_loss", nats, NaN
      if it failed; "train_loss" of the last epoch that was finite; "diverged_epoch", from 0, or -1;
      "valid_loss_by_epoch" [epochs]}.
    """
    model = LanguageModel(
        space.traced_cell(hidden_size=config.hidden_size), len(text.vocabulary.symbols),
        dropout(config, config.dropout_words), num_layers=config.num_layers, remat=config.remat)
    bptt, deviation = config.bptt, config.deviation
    trainer = language_trainer(
        model, training.sgd(config.weights_lr, momentum=0.0, weight_decay=0.0,
                            clip_norm=config.clip_norm),
        batch_size=config.batch_size, bptt=bptt, deviation=deviation,
        slowness_penalty=config.slowness)
    texts = tuple(map(jnp.asarray, child_parts(config, text)))
    rows = len(texts[0])
    room = data.most_windows(rows, bptt, deviation)
    found = [next(data.chunks(data.windows(rows, bptt, seed=(config.child_seed, epoch),
                                           deviation=deviation), room))
             for epoch in range(config.epochs)]
    windows = Windows(*(jnp.asarray(np.stack(part)) for part in zip(*found)))  # [epochs, W] each
    population, form = child_search.population(config), child_search.form(config)
    init_key, train_key = jax.random.split(jax.random.key(config.child_seed))

    def one(arch, active, train_text, valid_text, windows):
        inputs = space.split(arch)

        def epoch(carry, window: Windows):
            state, alive = carry
            # Windows of length 0 cost nothing, but side by side with others.
            now = window._replace(lengths=jnp.where(alive, window.lengths, 0))
            state, info = trainer.train(train_key, trainer.start_epoch(state), train_text, now,
                                        *inputs)
            valid_loss = jax.lax.cond(
                alive, lambda: trainer.evaluate(state.params, valid_text, *inputs),
                lambda: jnp.nan)
            alive &= (state.rollbacks == 0) & jnp.isfinite(valid_loss)
            train_loss = jnp.sum(info["loss"] * now.lengths) / (rows - 1)
            losses = jnp.where(alive, jnp.stack([valid_loss, train_loss]), jnp.nan)
            return (state, alive), losses

        start = (trainer.init(init_key), active)
        return jax.lax.scan(epoch, start, windows)[1]

    def children(archs, active, *shared):
        if form == "vmap":
            return jax.vmap(one, (0, 0, None, None, None))(archs, active, *shared)
        return jax.lax.map(lambda member: one(*member, *shared), (archs, active))

    shape = jax.ShapeDtypeStruct((population, len(space.num_choices)), jnp.int32)
    program = programs.add("children", jax.jit(children), shape,
                           jax.ShapeDtypeStruct((population,), bool), *texts, windows)

    def train(archs: np.ndarray) -> Sequence[Mapping[str, Any]]:
        places = np.arange(population)
        losses = np.asarray(program(jnp.asarray(archs[places % len(archs)]),
                                    jnp.asarray(places < len(archs)), *texts, windows))
        return [_metrics(curves) for curves in losses[:len(archs)].astype(float)]

    return train


def _metrics(curves: np.ndarray) -> dict[str, Any]:
    """Return what is stored of a child: curves [epochs, 2], validation and training."""
    valid, train = curves.T
    finite = np.isfinite(valid)
    failed = not finite.all()
    best = float("nan") if failed else float(valid.min())
    return {"perplexity": float("nan") if failed else perplexity(best), "valid_loss": best,
            "train_loss": float(train[finite][-1]) if finite.any() else float("nan"),
            "diverged_epoch": float(finite.argmin()) if failed else -1.0,
            "valid_loss_by_epoch": valid.tolist()}
