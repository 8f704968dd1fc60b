"""The loop of a discrete search, ask -> evaluate -> tell, as one scan or on the host.

    history = search.run(key, searcher, evaluator, objective, num_steps=100)

    one = lambda key: search.run(key, searcher, evaluator, objective, num_steps=100)
    histories = search.over_seeds(one)(jax.random.split(key, 500))   # [500, ...], on all devices

Step t takes its keys from (key, t) alone, so a search that is continued from a saved state gives
the same history as one that never stopped, and one that ran for longer begins with the same.
Keys of JAX's "rbg" are the exception: vectorised, their bits depend on their neighbours'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import hoisting, parallel
from jaxnas.base import Evaluator, Info, Metrics, Objective, PyTree, Searcher

MAX_BLOCK = 128  # steps whose random numbers are drawn at once


class SearchState(NamedTuple):
    """A search between two steps; a checkpoint of it is all that a resumption needs."""

    key: jax.Array    # of the whole search; never changes
    step: jax.Array   # [] int32; steps taken
    searcher: PyTree  # the searcher's own state


class History(NamedTuple):
    """What was asked, and what came of it; T steps of B architectures each.

    Of a search for a front (`objectives.vector`) fitness is [T, B, M], and a row with a NaN in any
    column has failed; `jaxnas.pareto` says what is on the front.
    """

    archs: jax.Array    # [T, B, L] int32
    fitness: jax.Array  # [T, B] or [T, B, M] float32; NaN: failed
    metrics: Metrics    # name -> [T, B]
    info: Info          # name -> [T], from the searcher


def init(key: jax.Array, searcher: Searcher) -> SearchState:
    """Begin a search; `key` decides everything that is random in it."""
    return SearchState(key, jnp.int32(0), searcher.init(jax.random.fold_in(key, 0)))


def step_keys(key: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the keys with which step `step` asks, evaluates and tells."""
    first = 3 * step + 1  # 0 is the initialisation's
    return tuple(jax.random.fold_in(key, first + i) for i in range(3))  # type: ignore[return-value]


def advance(state: SearchState, searcher: Searcher, evaluator: Evaluator, objective: Objective, *,
            num_steps: int) -> tuple[SearchState, History]:
    """Take `num_steps` steps as one scan; the evaluator must be traceable.

    Raises:
      ValueError: num_steps is below 1, or more than a searcher's capacity has room for.
    """
    _check_num_steps(num_steps, searcher)
    draw, ask = hoisting.split(searcher.ask, state.key, state.searcher)
    archs_shape = jax.eval_shape(searcher.ask, state.key, state.searcher)
    fitness_shape = jax.eval_shape(
        lambda key, archs: objective(evaluator(key, archs)), state.key, archs_shape)
    draw_tell, tell = hoisting.split(
        searcher.tell, state.key, state.searcher, archs_shape, fitness_shape)

    def one(carry: tuple[SearchState, jax.Array], drawn: Any) -> tuple[Any, History]:
        # What step t + 1 asks for is part of what step t leaves behind: the archs are stored once,
        # before the searcher overwrites its state, instead of being computed by each of their
        # users from a copy of the old state.
        state, archs = carry
        next_words, evaluate_key, tell_words = drawn
        metrics = evaluator(evaluate_key, archs)
        fitness = objective(metrics)
        inner, info = tell(tell_words, state.searcher, archs, fitness)
        state = state._replace(step=state.step + 1, searcher=inner)
        return (state, ask(next_words, inner)), History(archs, fitness, metrics, info)

    def block(state: SearchState, length: int) -> tuple[SearchState, History]:
        # What is random in many steps, drawn at once: in the loop it would cost several times more.
        steps = state.step + jnp.arange(length, dtype=jnp.int32)
        _, evaluate_keys, tell_keys = jax.vmap(step_keys, (None, 0))(state.key, steps)
        ask_keys, *_ = jax.vmap(step_keys, (None, 0))(state.key, steps + 1)
        archs = ask(draw(step_keys(state.key, state.step)[0]), state.searcher)
        (state, _), history = jax.lax.scan(
            one, (state, archs),
            (jax.vmap(draw)(ask_keys), evaluate_keys, jax.vmap(draw_tell)(tell_keys)))
        return state, history

    length = _block_length(num_steps)
    blocks, rest = divmod(num_steps, length)
    histories = []
    if blocks == 1:
        state, history = block(state, length)
        histories.append(history)
    elif blocks:
        state, history = jax.lax.scan(lambda s, _: block(s, length), state, None, length=blocks)
        histories.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), history))
    if rest:
        state, history = block(state, rest)
        histories.append(history)
    return state, jax.tree.map(lambda *parts: jnp.concatenate(parts), *histories)


def _check_num_steps(num_steps: int, searcher: Searcher) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps must be 1 or more, got {num_steps}.")
    evaluations = num_steps * searcher.batch_size
    if searcher.capacity is not None and evaluations > searcher.capacity:
        raise ValueError(f"the searcher's capacity must be at least {evaluations}, the evaluations "
                         f"of num_steps, got {searcher.capacity}.")


def _block_length(num_steps: int) -> int:
    """Return a length near MAX_BLOCK, a divisor of `num_steps` if there is one: one loop only."""
    for blocks in range(-(-num_steps // MAX_BLOCK), 4 * num_steps // MAX_BLOCK + 2):
        if num_steps % blocks == 0:
            return num_steps // blocks
    return MAX_BLOCK


def run(key: jax.Array, searcher: Searcher, evaluator: Evaluator, objective: Objective, *,
        num_steps: int) -> History:
    """Search from the start for `num_steps` steps, `num_steps * batch_size` evaluations.

    Traceable: `jax.vmap` it over keys, and again over hyper-parameters of the searcher's factory.
    """
    return advance(init(key, searcher), searcher, evaluator, objective, num_steps=num_steps)[1]


def run_on_host(
    state: SearchState, searcher: Searcher, evaluate: Callable[[jax.Array, np.ndarray], Any],
    objective: Objective, *, num_steps: int,
    on_step: Callable[[SearchState, History], bool | None] | None = None,
) -> tuple[SearchState, History]:
    """Take up to `num_steps` steps in a Python loop, for an evaluator that trains or measures.

    The same keys as `advance`, hence the same history for the same evaluator.

    Args:
      state: from `init`, or from a checkpoint.
      searcher: its `ask` and `tell` are compiled, once each.
      evaluate: (key, archs [B, L] int32 of NumPy) -> {name: [B] numbers}. NaN means failed.
      objective: metrics -> fitness.
      num_steps: steps at most.
      on_step: called after every step with the new state and its History (T = 1), to record and
        to save; returning True stops the search.

    Returns:
      The state and the history of the steps taken here.

    Raises:
      ValueError: num_steps is below 1, or more than a searcher's capacity has room for.
    """
    _check_num_steps(num_steps, searcher)
    ask, tell = jax.jit(searcher.ask), jax.jit(searcher.tell)
    taken = []
    for _ in range(num_steps):
        ask_key, evaluate_key, tell_key = step_keys(state.key, state.step)
        archs = ask(ask_key, state.searcher)
        metrics = {name: jnp.asarray(values, jnp.float32)
                   for name, values in evaluate(evaluate_key, np.asarray(archs)).items()}
        fitness = objective(metrics)
        inner, info = tell(tell_key, state.searcher, archs, fitness)
        state = state._replace(step=state.step + 1, searcher=inner)
        taken.append(jax.tree.map(lambda leaf: leaf[None], History(archs, fitness, metrics, info)))
        if on_step is not None and on_step(state, taken[-1]):
            break
    return state, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *taken)


def over_seeds(function: Callable[..., PyTree],
               devices: Sequence[jax.Device] | None = None) -> Callable[..., PyTree]:
    """Vectorise a search over seeds: `vmap` on each device, `pmap` over the devices.

    Args:
      function: of pytrees of arrays, such as a key; returns one.
      devices: where; default all of this process.

    Returns:
      A function of the same arguments with an axis [S] in front of every leaf, and of the result.
      The result is the same for any number of devices, of which S need not be a multiple.
      Compiled at the first call, and again only for other shapes.
    """
    devices = list(jax.local_devices() if devices is None else devices)
    if len(devices) == 1:
        return jax.jit(jax.vmap(function))
    mapped = jax.pmap(jax.vmap(function), axis_name=parallel.AXIS, devices=devices)

    def call(*args: PyTree) -> PyTree:
        num_seeds = jax.tree.leaves(args)[0].shape[0]
        return parallel.merge_rows(mapped(*parallel.shard_rows(args, len(devices))), num_seeds)

    return call
