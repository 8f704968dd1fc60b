"""What a searcher is asked while evaluations are still on their way.

`Searcher.ask` changes nothing, so that asking twice before anything is told may give the same
architectures twice. `ahead` returns the state to ask from instead; what is told later is told to
the real state, which never holds a guess. By the type of the searcher's state:

random search, REINFORCE, PPO
    The state as it is: other keys draw other architectures. Gradients are of the policy at the time
    of telling, as with the asynchronous controllers of Zoph & Le (2017).
evolution, NSGA-II
    The state as it is, but for who counts as a founder: parents are chosen among what has finished,
    as in the asynchronous population of Real et al. (2019).
Bayesian optimisation
    A state in which everything on its way has failed: the constant liar with the worst value
    (Ginsbourger et al., 2010, https://doi.org/10.1007/978-3-642-10701-6_6).
PNAS
    The same queue further down. At a level's end it cannot be asked until the whole level is told,
    since a surrogate is fitted to it.

Local search, AutoKeras's and islands are not among them; `ahead.register(YourState)` adds a
searcher of one's own.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnas.base import PyTree
from jaxnas.searchers import (EvolutionState, NSGA2State, PolicyGradientState, ProgressiveState,
                              RandomSearchState, SurrogateState)


class Pending(NamedTuple):
    """What is on its way."""

    number: jax.Array  # [] int32, of architectures
    told_failed: Callable[[PyTree], PyTree]  # state -> state that was told NaN for each of them


Answer = tuple[PyTree, jax.Array]  # state to ask from, and whether it can be asked: [] bool


@functools.singledispatch
def ahead(state: PyTree, pending: Pending) -> Answer:
    """Return the state to ask from, and whether it can be asked; may be traced.

    Without anything pending it is the state itself.

    Args:
      state: of the searcher, as it was told.
      pending: what is on its way; `number` may be a tracer.

    Raises:
      TypeError: nobody has said how, for states of this type.
    """
    raise TypeError(f"a searcher whose state is {type(state).__name__} cannot be asked while "
                    "evaluations are pending: use in_flight=1, or register a function for its "
                    "state with `pending.ahead.register`.")


@ahead.register(RandomSearchState)
@ahead.register(PolicyGradientState)
def _as_it_is(state: PyTree, pending: Pending) -> Answer:
    return state, jnp.bool_(True)


@ahead.register(EvolutionState)
@ahead.register(NSGA2State)
def _counted(state: EvolutionState | NSGA2State, pending: Pending) -> Answer:
    # The number decides which founder is next, and when children begin. A founder on its way has a
    # fitness of -inf, and so loses to all that have finished.
    return state._replace(num_evaluated=state.num_evaluated + pending.number), jnp.bool_(True)


@ahead.register
def _liar(state: SurrogateState, pending: Pending) -> Answer:
    return pending.told_failed(state), jnp.bool_(True)


@ahead.register
def _queue(state: ProgressiveState, pending: Pending) -> Answer:
    position = state.position + pending.number
    nothing_left = state.queue_size < 0  # it draws at random from then on
    return state._replace(position=position), nothing_left | (position < state.queue_size)
