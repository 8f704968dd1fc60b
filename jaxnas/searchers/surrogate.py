"""Sequential model-based search: fit a surrogate of the fitness, ask for what it finds promising.

Bayesian optimisation (Snoek et al., 2012, https://arxiv.org/abs/1206.2944) over architectures, with
candidates by mutation as in BANANAS (White et al., 2019, https://arxiv.org/abs/1910.11858).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnas import mutations
from jaxnas.base import Searcher, SearchSpace, Surrogate
from jaxnas.searchers import observations
from jaxnas.searchers.acquisitions import Acquisition, expected_improvement
from jaxnas.searchers.conditionals import only_if
from jaxnas.searchers.gaussian_process import gaussian_process, hamming_kernel


class SurrogateState(NamedTuple):
    """Everything that was evaluated; the model is fitted anew from it."""

    observed: observations.Observations


def bayesian_optimization(
    space: SearchSpace, *, capacity: int, surrogate: Surrogate | None = None,
    acquisition: Acquisition | None = None, num_initial: int = 20, num_random: int = 100,
    num_parents: int = 10, num_mutants: int = 20, batch_size: int = 1,
) -> Searcher:
    """Ask for random architectures, then for the candidates with the largest acquisition.

    Candidates are drawn anew in every step: random ones, and mutations, half of them of mutations,
    of the best observed. What was observed, up to `space.canonical`, is no candidate; only when all
    candidates were observed is one asked for again. The surrogate sees canonical architectures and
    the normal scores of their fitness (`observations.normal_scores`). Fitting and prediction are
    left out of the steps that begin.

    The state is [capacity, L], and a step costs what `surrogate.fit` does with as many rows.

    Args:
      space: gives `sample`, `mutate` and `canonical`.
      capacity: evaluations that the search will make; what is told beyond them is not learnt from.
      surrogate: default a Gaussian process with a Hamming kernel.
      acquisition: default expected improvement.
      num_initial: random architectures before the first fit.
      num_random: random candidates, `num_initial` or B at least where the space has as many.
      num_parents: best architectures that are mutated.
      num_mutants: candidates of each of them, an even number.
      batch_size: B; a batch is what one model finds best, with a draw each where the acquisition is
        random.

    Returns:
      A searcher whose info is `best`, the largest fitness so far, and `observed`, their number.

    Raises:
      ValueError: a number is out of range.
    """
    for name, value, low in (
            ("num_initial", num_initial, 2), ("num_random", num_random, 1),
            ("num_parents", num_parents, 1), ("num_mutants", num_mutants, 2),
            ("batch_size", batch_size, 1)):
        if value < low:
            raise ValueError(f"{name} must be {low} or more, got {value}.")
    if num_mutants % 2:
        raise ValueError(f"num_mutants must be even, got {num_mutants}.")
    if num_random < batch_size:
        raise ValueError(
            f"num_random must be at least batch_size, got {num_random} and {batch_size}.")
    observations.check_capacity(capacity, batch_size)
    mutations.check_num_choices(space.num_choices)
    model = surrogate or gaussian_process(hamming_kernel(space.num_choices))
    score = acquisition or expected_improvement()
    num_parents = min(num_parents, capacity)

    def init(key):
        del key  # nothing is random before the first question
        return SurrogateState(observations.empty(capacity, len(space.num_choices)))

    def candidates(key, observed):
        """Return archs [M, L]: random ones first, and then mutants if there are parents."""
        sample_key, once_key, twice_key = jax.random.split(key, 3)
        fresh = jax.vmap(space.sample)(jax.random.split(sample_key, num_random))
        fitness, rows = jax.lax.top_k(observed.fitness, num_parents)
        # Where a parent is missing, or has failed, a random architecture stands in for it.
        places = jnp.arange(num_parents) % num_random
        parents = jnp.where(jnp.isfinite(fitness)[:, None], observed.archs[rows], fresh[places])
        parents = jnp.repeat(parents, num_mutants // 2, axis=0)
        mutate = jax.vmap(space.mutate)
        once = mutate(jax.random.split(once_key, len(parents)), parents)
        twice = mutate(jax.random.split(twice_key, len(parents)), once)
        return jnp.concatenate([fresh, once, twice])

    def ask(key, state):
        candidate_key, fit_key, score_key = jax.random.split(key, 3)
        observed = state.observed
        archs = candidates(candidate_key, observed)
        networks = jax.vmap(space.canonical)(archs)
        new = observations.is_new(observed, networks, space.num_choices)
        mask = observed.mask

        def predict():
            targets = observations.normal_scores(observed.fitness, mask)
            fitted = model.fit(fit_key, observed.archs, targets, mask)
            best = jnp.max(jnp.where(mask, targets, -jnp.inf))
            mean, std = model.predict(fitted, networks)
            keys = jax.random.split(score_key, batch_size)
            scores = jax.vmap(score, (0, None, None, None))(keys, mean, std, best)
            return jnp.where(jnp.isnan(scores), -jnp.inf, scores)  # a model that failed

        # In the beginning the random ones in their order.
        order = jnp.broadcast_to(-jnp.arange(len(archs), dtype=jnp.float32),
                                 (batch_size, len(archs)))
        scores = only_if(observed.num_evaluated >= num_initial, predict, order)

        def pick(free, scores):
            # Everything that is free is above what is not, and that above what was picked.
            chosen = jnp.argmax(jnp.where(free == 2, jnp.maximum(scores, -1e30),
                                          jnp.where(free == 1, -2e30, -jnp.inf)))
            return free.at[chosen].set(0), chosen

        _, chosen = jax.lax.scan(pick, jnp.where(new, 2, 1), scores)
        return archs[chosen]

    def tell(key, state, archs, fitness):
        del key  # deterministic
        networks = jax.vmap(space.canonical)(archs)
        observed = observations.add(state.observed, networks, fitness)
        return SurrogateState(observed), {"best": observed.fitness.max(),
                                          "observed": observed.num_evaluated}

    return Searcher(init, ask, tell, batch_size, capacity)
