"""What the searches of recurrent cells share: text, and the retraining of what they find.

The found cell, random cells, LSTM and GRU of as many parameters are trained by the same recipe on
the same text: one program for all cells, one each for LSTM and GRU.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from experiments.programs import Programs
from experiments.searching import random_key
from jaxnas import data, training
from jaxnas.data import TextDataset, Windows
from jaxnas.genotypes import Encoded
from jaxnas.networks import GRU, LSTM, Dropout, LanguageModel
from jaxnas.networks.language_model import count_parameters, equal_size
from jaxnas.networks.recurrent import RecurrentCell
from jaxnas.recurrent_training import LanguageState, language_trainer

MODELS = {"found": "cell", "random": "cell", "LSTM": "lstm", "GRU": "gru"}
GROUPS = tuple(MODELS)  # what is retrained, in this order


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageConfig(common.CommonConfig):
    """The text, and the retraining."""

    num_seeds: int = 3
    """Retrainings of the found cell, random cells, LSTMs and GRUs."""
    dataset: str = "shakespeare"
    """The text in the package, a UTF-8 file, or a folder with train, valid and test."""
    level: Literal["characters", "words"] = "characters"
    """What is predicted."""
    limit: int | None = 100_000
    """At most so many tokens of the training part, for search and retraining."""
    epochs: int = 3
    """Passes of the search over the training part."""
    batch_size: int = 32
    """Texts side by side in the search."""
    bptt: int = 35
    """Tokens of a window."""
    hidden_size: int = 32
    """Of the search model, embedding and cell."""
    weights_lr: float = 10.0
    """Learning rate of the weights' SGD; gradients are clipped."""
    clip_norm: float = 0.25
    """Bound on the norm of the weights' gradient in the search."""
    slowness: float = 1e-3
    """Penalty of the output's steps in time."""
    dropout_embedding: float = 0.0
    """Rate, of embedded inputs."""
    dropout_inputs: float = 0.0
    """Rate, of the cell's inputs."""
    dropout_hidden: float = 0.0
    """Rate, of the states in the cell."""
    dropout_output: float = 0.0
    """Rate, of the cell's outputs."""
    dropout_words: float = 0.0
    """Rate, of whole rows of the embedding; DARTS has it in retraining only."""
    remat: bool = False
    """Recompute time steps in the backward pass: less memory."""
    retrain_epochs: int = 6
    """Passes of a retraining over the training part."""
    retrain_batch_size: int = 16
    """Texts side by side in retraining."""
    retrain_hidden_size: int = 48
    """Of the retrained cells; LSTM and GRU get the size of as many parameters."""
    retrain_lr: float = 10.0
    """Learning rate of retraining."""
    retrain_clip_norm: float = 0.25
    """Bound on the norm of the gradient in retraining."""
    retrain_weight_decay: float = 8e-7
    """Of the retrained weights, L2."""
    activation_penalty: float = 0.0
    """Of retraining, on the mean square of the cell's outputs."""
    deviation: float = 5.0
    """Standard deviation of the length of a retraining's window."""
    nonmonotone: int = 5
    """Epochs without progress after which weights are averaged."""


class CellSpace(Protocol):
    """A space of recurrent cells that one traced cell serves."""

    @property
    def name(self) -> str:
        """What result.json calls the space."""
        ...

    @property
    def num_choices(self) -> tuple[int, ...]:
        """[L] choices of every decision."""
        ...

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw an arch [L] int32."""
        ...

    def genotype(self, arch: np.ndarray) -> Encoded:
        """Return what a file holds of an arch [L]."""
        ...

    def split(self, arch: jax.Array) -> tuple[jax.Array, ...]:
        """Return what the cell takes of an arch [L]."""
        ...

    def traced_cell(self, *, hidden_size: int) -> RecurrentCell:
        """Return the one cell for every arch, which takes `split(arch)`."""
        ...


def check(config: LanguageConfig, text: TextDataset, positive: Sequence[str] = ()) -> None:
    """Check what must fit together before anything is compiled.

    Args:
      config: any.
      text: the text.
      positive: names of further fields that must be above 0.

    Raises:
      ValueError: one sentence.
    """
    if config.devices > 1:
        raise ValueError(f"this experiment runs on one device, got devices={config.devices}.")
    for name in ("num_seeds", "epochs", "retrain_epochs", "weights_lr", "clip_norm", "retrain_lr",
                 "retrain_clip_norm", "hidden_size", "retrain_hidden_size", "nonmonotone",
                 *positive):
        value = getattr(config, name)
        if not value > 0 or not math.isfinite(value):
            raise ValueError(f"{name} must be above 0, got {value}.")
    for name in ("slowness", "activation_penalty", "retrain_weight_decay", "deviation"):
        value = getattr(config, name)
        if not value >= 0 or not math.isfinite(value):
            raise ValueError(f"{name} must be 0 or more, got {value}.")
    if config.limit is not None and config.limit < 2:
        raise ValueError(f"limit must be 2 or more, got {config.limit}.")
    for size in (config.batch_size, config.retrain_batch_size):
        for part in (text.train[:config.limit], text.valid, text.test):
            data.columns(part, size, config.bptt)


def dropout(config: Any, words: float = 0.0) -> Dropout:
    """Return the rates of a configuration; `words` is of whole rows of the embedding."""
    return Dropout(words=words, embedding=config.dropout_embedding, inputs=config.dropout_inputs,
                   hidden=config.dropout_hidden, output=config.dropout_output)


class Retrainer(NamedTuple):
    """One kind of model, found cells or a baseline, trained from scratch by one program.

    Attributes:
      epoch: (key, state, number, average, *inputs) -> state, {"loss", "valid_loss", "test_loss"},
        nats per token; epoch 0 draws the weights whatever state it is given. A result is the test
        loss of the epoch with the best validation loss.
      empty: a state of zeros, for epoch 0 and as the form of what is restored.
      parameters: their number.
    """

    epoch: Callable[..., tuple[LanguageState, dict[str, jax.Array]]]
    empty: LanguageState
    parameters: int


def retrained_models(config: LanguageConfig, space: CellSpace, vocabulary_size: int, *,
                     decoder_bias: bool = True, num_layers: int = 1) -> dict[str, LanguageModel]:
    """Return the traced cell's model, and LSTM and GRU of as many parameters, by name."""
    options: dict[str, Any] = {
        "dropout": dropout(config, config.dropout_words), "remat": config.remat,
        "decoder_bias": decoder_bias, "num_layers": num_layers}
    cell = LanguageModel(space.traced_cell(hidden_size=config.retrain_hidden_size),
                         vocabulary_size, **options)
    wanted = count_parameters(cell)
    models = {"cell": cell}
    for name, make in (("lstm", LSTM), ("gru", GRU)):
        def model(size: int, make: Any = make) -> LanguageModel:
            return LanguageModel(make(size), vocabulary_size, **options)

        models[name] = model(equal_size(model, wanted))
    return models


def make_retrainer(config: LanguageConfig, name: str, model: LanguageModel, text: TextDataset,
                   programs: Programs, inputs: Sequence[jax.ShapeDtypeStruct]) -> Retrainer:
    """Register the program that trains and tests one kind of model."""
    size, bptt = config.retrain_batch_size, config.bptt
    optimizer = training.sgd(config.retrain_lr, momentum=0.0,
                             weight_decay=config.retrain_weight_decay,
                             clip_norm=config.retrain_clip_norm)
    trainer = language_trainer(model, optimizer, batch_size=size, bptt=bptt,
                               deviation=config.deviation, slowness_penalty=config.slowness,
                               activation_penalty=config.activation_penalty)
    train_text, *held_out = (data.columns(part, size, bptt) for part in (
        text.train[:config.limit], text.valid, text.test))
    rows = len(train_text)
    held_rows = np.array([len(part) for part in held_out], np.int32)
    # One program evaluates both: they are filled up to the same length.
    stacked = np.stack([np.pad(part, ((0, held_rows.max() - len(part)), (0, 0)))
                        for part in held_out])
    parts = (jnp.asarray(train_text), jnp.asarray(stacked), jnp.asarray(held_rows))
    room = data.most_windows(rows, bptt, config.deviation)

    def epoch_windows(key: jax.Array, number: int) -> Windows:
        seed = (*np.asarray(jax.random.key_data(key)).ravel().tolist(), number)
        found = data.windows(rows, bptt, seed=seed, deviation=config.deviation)
        return jax.tree.map(jnp.asarray, next(data.chunks(found, room)))

    def epoch(key, state, number, average, windows, train, held_out, held_rows, *inputs):
        init_key, train_key = jax.random.split(key)
        state = jax.lax.cond(number == 0, lambda: trainer.init(init_key), lambda: state)
        state = trainer.start_epoch(state._replace(averaging=state.averaging | average))
        state, info = trainer.train(train_key, state, train, windows, *inputs)
        weights = trainer.weights(state)
        valid_loss, test_loss = jax.lax.map(
            lambda part: trainer.evaluate(weights, part[0], *inputs, rows=part[1]),
            (held_out, held_rows))
        state = trainer.end_epoch(state, valid_loss, jnp.zeros((), bool))
        loss = jnp.sum(info["loss"] * info["length"]) / (rows - 1)
        return state, {"loss": loss, "valid_loss": valid_loss, "test_loss": test_loss}

    key = random_key(0)
    shape = jax.eval_shape(trainer.init, key)
    program = programs.add(
        f"retrain_{name}", jax.jit(epoch), key, shape, jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((), bool), epoch_windows(key, 0), *parts, *inputs)

    def run(key, state, number, average, *inputs):
        return program(key, state, jnp.int32(number), jnp.asarray(average),
                       epoch_windows(key, number), *parts, *inputs)

    return Retrainer(run, training.zeros(shape), count_parameters(model))
