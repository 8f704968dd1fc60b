"""Training of language models: SGD on windows of text, averaged late, rolled back where it fails.

The recipe of AWD-LSTM (Merity et al., 2018, https://arxiv.org/abs/1708.02182) as quark0/darts rnn/
has it: plain SGD with clipping, its rate in proportion to a window's length; slowness penalties;
hidden states carried from window to window; from the epoch on whose validation loss is no longer
the best of recent ones, the running mean of the weights is what is evaluated (NT-ASGD, algorithm
1). Training that is no longer finite goes on from the best weights.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxnas.data.windows import Windows, largest_length, take_window
from jaxnas.networks.language_model import LanguageModel, Outputs, States
from jaxnas.training import cross_entropies

PyTree = Any


class Kept(NamedTuple):
    """What training goes back to."""

    params: PyTree
    average: PyTree
    num_averaged: jax.Array
    loss: jax.Array  # [] float32, of validation; inf before the first


class LanguageState(NamedTuple):
    """What training carries from window to window."""

    params: PyTree
    optimizer_state: optax.OptState
    average: PyTree         # mean of the params after the steps that are averaged
    num_averaged: jax.Array  # [] int32, how many they are
    averaging: jax.Array    # [] bool
    states: States          # hidden states after the last window
    best: Kept
    step: jax.Array         # [] int32, windows seen
    rollbacks: jax.Array    # [] int32


class LanguageTrainer(NamedTuple):
    """Pure functions; all may be traced.

    Attributes:
      init: (key) -> state.
      train: (key, state, text [R, B], windows, *inputs) -> (state, {"loss": [W], "length": [W]}),
        one step a window, as one scan; nats per token, of windows that count. A window of length 0
        changes nothing. The key of a step is folded from `key` and `state.step`.
      evaluate: (params, text [R, B], *inputs, rows=None) -> [] nats per token of the text, from
        zero states, without dropout; `rows`, [] int32, is how many of the R count.
      weights: (state, or its `best`) -> params to evaluate: the average, once there is one.
      start_epoch: (state) -> state whose hidden states are zero.
      end_epoch: (state, loss [], average [] bool) -> state; keeps the weights if the validation
        loss is the best so far, and averages from here on if `average` is true.
    """

    init: Callable[[jax.Array], LanguageState]
    train: Callable[..., tuple[LanguageState, dict[str, jax.Array]]]
    evaluate: Callable[..., jax.Array]
    weights: Callable[[LanguageState | Kept], PyTree]
    start_epoch: Callable[[LanguageState], LanguageState]
    end_epoch: Callable[[LanguageState, jax.Array, jax.Array], LanguageState]


def language_trainer(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    bptt: int = 35,
    deviation: float = 0.0,
    activation_penalty: float | jax.Array = 0.0,
    slowness_penalty: float | jax.Array = 1e-3,
    weight_penalty: Callable[..., jax.Array] | None = None,
) -> LanguageTrainer:
    """Build the training of a language model.

    Args:
      model: any.
      optimizer: `training.sgd(20.0, momentum=0.0, weight_decay=5e-7, clip_norm=0.25)` in DARTS's
        search. What it returns is multiplied by length / bptt, which scales the learning rate of
        an optimiser that is linear in it; one with moments is not published here.
      batch_size: B, sequences side by side.
      bptt: the usual length of a window.
      deviation: as in `data.windows`; together they give T, the rows of a window.
      activation_penalty: alpha of AR, of the mean square of outputs after dropout.
      slowness_penalty: beta of TAR, of the mean square of steps of the raw output; 1e-3 in DARTS,
        1 in ENAS.
      weight_penalty: (params, *inputs) -> [] added to the loss, before clipping, such as an L2 of
        what an architecture uses.

    Raises:
      ValueError: an option out of range.
    """
    for name, value in (("batch_size", batch_size), ("bptt", bptt)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}.")
    for name, penalty in (("activation_penalty", activation_penalty),
                          ("slowness_penalty", slowness_penalty)):
        if isinstance(penalty, (int, float)) and not penalty >= 0:
            raise ValueError(f"{name} must be 0 or more, got {penalty}.")
    rows = largest_length(bptt, deviation)

    def init(key: jax.Array) -> LanguageState:
        params = model.init(key)
        zero = jnp.zeros((), jnp.int32)
        return LanguageState(params, optimizer.init(params), params, zero, jnp.zeros((), bool),
                             model.initial_states(batch_size),
                             Kept(params, params, zero, jnp.float32(jnp.inf)), zero, zero)

    def loss_fn(params, key, tokens, targets, states, length, inputs):
        outputs = model.apply(params, tokens, states, *inputs, key=key, length=length)
        loss = next_token_loss(outputs.logits, targets, length)
        total = loss + regularization(outputs, length, activation_penalty, slowness_penalty)
        if weight_penalty is not None:
            total = total + weight_penalty(params, *inputs)
        return total, (loss, outputs.states)

    def train_step(key, state: LanguageState, tokens, targets, length, inputs):
        (total, (loss, states)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, key, tokens, targets, state.states, length, inputs)
        updates, optimizer_state = optimizer.update(grads, state.optimizer_state, state.params)
        updates = jax.tree.map(lambda u: u * (length / bptt), updates)
        params = optax.apply_updates(state.params, updates)
        count = state.num_averaged + state.averaging
        average = jax.tree.map(
            lambda mean, new: mean + (new - mean) / jnp.maximum(count, 1), state.average, params)
        average = _where(state.averaging, average, state.average)
        new = state._replace(
            params=params, optimizer_state=optimizer_state, average=average, num_averaged=count,
            states=states, step=state.step + 1)
        back = state._replace(
            params=state.best.params, average=state.best.average,
            num_averaged=state.best.num_averaged, step=state.step + 1,
            states=jax.tree.map(jnp.zeros_like, state.states), rollbacks=state.rollbacks + 1)
        finite = jnp.isfinite(total) & jnp.isfinite(optax.tree.norm(grads))
        return _where(finite, new, back), loss

    def train(key, state, text, found: Windows, *inputs):
        def step(state, window):
            start, length = window

            def read(state):
                tokens, targets = take_window(text, start, rows)
                return train_step(jax.random.fold_in(key, state.step), state, tokens, targets,
                                  length, inputs)

            return lax.cond(length > 0, read, lambda state: (state, jnp.zeros(())), state)

        starts, lengths = (jnp.asarray(part, jnp.int32) for part in found)
        state, losses = lax.scan(step, state, (starts, lengths))
        return state, {"loss": losses, "length": lengths}

    def evaluate(params, text, *inputs, rows=None):
        count = (text.shape[0] if rows is None else rows) - 1

        def step(carry, start):
            states, total = carry
            tokens, targets = take_window(text, start, bptt)
            length = jnp.clip(count - start, 0, bptt)
            outputs = model.apply(params, tokens, states, *inputs, length=length)
            loss = next_token_loss(outputs.logits, targets, length)
            return (outputs.states, total + loss * length), None

        start = (model.initial_states(text.shape[1]), jnp.zeros(()))
        return lax.scan(step, start, jnp.arange(0, text.shape[0] - 1, bptt))[0][1] / count

    def weights(state: LanguageState | Kept) -> PyTree:
        return _where(state.num_averaged > 0, state.average, state.params)

    def start_epoch(state: LanguageState) -> LanguageState:
        return state._replace(states=jax.tree.map(jnp.zeros_like, state.states))

    def end_epoch(state: LanguageState, loss: jax.Array, average: jax.Array) -> LanguageState:
        now = Kept(state.params, state.average, state.num_averaged,
                   jnp.asarray(loss, jnp.float32))
        return state._replace(best=_where(now.loss < state.best.loss, now, state.best),
                              averaging=state.averaging | average)

    return LanguageTrainer(init, train, evaluate, weights, start_epoch, end_epoch)


def next_token_loss(logits: jax.Array, targets: jax.Array, length: jax.Array) -> jax.Array:
    """Return the mean cross-entropy in nats, [], of the first `length` time steps.

    Args:
      logits: [T, B, V].
      targets: [T, B] int32.
      length: [] int32; with 0 the loss is 0.
    """
    steps, batch, vocabulary = logits.shape
    losses = cross_entropies(logits.reshape(-1, vocabulary), targets.reshape(-1))
    counts = jnp.arange(steps)[:, None] < length
    return jnp.sum(jnp.where(counts, losses.reshape(steps, batch), 0)) / (
        batch * jnp.maximum(length, 1))


def regularization(outputs: Outputs, length: jax.Array, activation_penalty: float | jax.Array,
                   slowness_penalty: float | jax.Array) -> jax.Array:
    """Return the penalties AR and TAR (Merity et al., 2017, https://arxiv.org/abs/1708.01009).

    alpha mean(dropped^2) + beta mean((raw_{t + 1} - raw_t)^2), means over the first `length` steps.
    """
    steps, batch, size = outputs.raw.shape
    inside = (jnp.arange(steps) < length)[:, None, None]
    squares = jnp.sum(jnp.where(inside, outputs.dropped ** 2, 0))
    moved = jnp.sum(jnp.where(inside[1:], (outputs.raw[1:] - outputs.raw[:-1]) ** 2, 0))
    each = batch * size
    return (activation_penalty * squares / (each * jnp.maximum(length, 1))
            + slowness_penalty * moved / (each * jnp.maximum(length - 1, 1)))


def should_average(losses: Sequence[float], window: int = 5) -> bool:
    """Tell whether the last validation loss is worse than the best of those `window` before it.

    The trigger of NT-ASGD: 5 in AWD-LSTM and DARTS, 10 in ENAS. Host only.

    Args:
      losses: of all epochs, the last one included.
      window: n; nothing is told before there are more than n losses before the last.

    Raises:
      ValueError: window is not positive.
    """
    if window < 1:
        raise ValueError(f"window must be 1 or more, got {window}.")
    earlier = losses[:-1]
    return len(earlier) > window and losses[-1] > min(earlier[:-window])


def perplexity(loss: float) -> float:
    """Return exp(loss) for a loss in nats per token; inf where that is too large for a float."""
    return math.exp(loss) if loss < 709 else math.inf


def bits(loss: float) -> float:
    """Return a loss in nats per token as bits per token."""
    return loss / math.log(2)


def _where(condition: jax.Array, first: PyTree, second: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)
