"""The discrete search strategies as settings that flags can change, each a factory of a searcher.

The defaults are those of the NAS-Bench-201 authors' scripts where they have the strategy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol, TypeVar

import optax

from jaxnas import searchers
from jaxnas.base import Policy, Searcher, SearchSpace, Surrogate
from jaxnas.networks import predictors
from jaxnas.networks.controllers import independent_logits, lstm_controller
from jaxnas.networks.predictor_ensembles import predictor_ensemble
from jaxnas.searchers import (islands, local_search, nsga2, ppo, random_search,
                              regularized_evolution, reinforce)

PolicyName = Literal["logits", "lstm"]
SurrogateName = Literal["gp", "mlp", "lstm"]


class Strategy(Protocol):
    """Settings of one strategy."""

    def searcher(self, space: SearchSpace) -> Searcher:
        """Build the searcher.

        Raises:
          ValueError: a setting is out of range.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """Independent draws."""

    def searcher(self, space: SearchSpace) -> Searcher:
        """Build the searcher."""
        return random_search(space)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evolution:
    """Regularised evolution."""

    population_size: int = 10
    """Members alive; AmoebaNet has 100."""
    tournament_size: int = 3
    """Members drawn for one parent; AmoebaNet has 25."""
    children: int = 1
    """Architectures asked for at once; divides the population."""
    removal: Literal["oldest", "worst"] = "oldest"
    """Who dies: age regularises."""

    def searcher(self, space: SearchSpace) -> Searcher:
        """Build the searcher."""
        return regularized_evolution(
            space, population_size=self.population_size, tournament_size=self.tournament_size,
            batch_size=self.children, removal=self.removal)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NSGA2:
    """Evolution of a front."""

    population_size: int = 20
    """Members alive."""
    children: int = 0
    """Architectures asked for at once, at most as many as members; 0: as many, as published."""
    crossover_rate: float = 0.9
    """Share of the children that mix two parents."""
    mutation_rate: float = 1.0
    """Share of the children that are mutated."""

    def searcher(self, space: SearchSpace) -> Searcher:
        """Build the searcher, for two objectives."""
        return nsga2(space, population_size=self.population_size, batch_size=self.children or None,
                     crossover_rate=self.crossover_rate, mutation_rate=self.mutation_rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Islands:
    """Copies of a strategy side by side; settings are those of one copy."""

    strategy: Strategy
    count: int

    def searcher(self, space: SearchSpace) -> Searcher:
        """Build the searcher."""
        return islands(self.strategy.searcher(space), self.count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalSearch:
    """Hill climbing with restarts."""

    move: Literal["best", "first"] = "best"
    """To the best neighbour of all, or to the first that is better."""

    def searcher(self, space: SearchSpace) -> Searcher:
        """Build the searcher."""
        return local_search(space, move=self.move)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reinforce:
    """REINFORCE with a moving baseline."""

    policy: PolicyName = "logits"
    """One categorical a decision, or NASRL's LSTM of 2 x 35 units."""
    learning_rate: float = 0.01
    """Of Adam."""
    batch_size: int = 1
    """Architectures of one gradient."""
    baseline_decay: float = 0.9
    """Momentum of the baseline."""
    entropy_weight: float = 0.0
    """Of the entropy bonus, in fitness per nat."""

    def searcher(self, space: SearchSpace) -> Searcher:
        """Build the searcher."""
        policy = make_policy(self.policy, space, hidden_size=35, num_layers=2, init_range=0.08)
        return reinforce(
            policy, optimizer=optax.adam(positive("learning_rate", self.learning_rate)),
            batch_size=self.batch_size, baseline_decay=self.baseline_decay,
            entropy_weight=self.entropy_weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPO:
    """Proximal policy optimisation, as NASNet and MnasNet search."""

    policy: PolicyName = "logits"
    """One categorical a decision, or NASNet's LSTM of 100 units."""
    learning_rate: float = 0.03
    """Of Adam; NASNet's 0.00035 is for 20,000 evaluations."""
    batch_size: int = 10
    """Architectures of one update; NASNet has 20."""
    num_epochs: int = 4
    """Steps on a batch."""
    clip_range: float = 0.2
    """How far ratios of probabilities may go from 1."""
    baseline_decay: float = 0.95
    """Momentum of the baseline."""
    entropy_weight: float = 1e-5
    """Of the entropy bonus, in fitness per nat."""

    def searcher(self, space: SearchSpace) -> Searcher:
        """Build the searcher."""
        policy = make_policy(self.policy, space, hidden_size=100, num_layers=1, init_range=0.1)
        return ppo(
            policy, optimizer=optax.adam(positive("learning_rate", self.learning_rate)),
            batch_size=self.batch_size, num_epochs=self.num_epochs, clip_range=self.clip_range,
            baseline_decay=self.baseline_decay, entropy_weight=self.entropy_weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BayesianOptimization:
    """A surrogate of the fitness, and what it finds most promising."""

    surrogate: SurrogateName = "gp"
    """A Gaussian process on the number of different decisions, or an ensemble of five networks."""
    acquisition: Literal["ei", "ucb", "ts"] = "ei"
    """Expected improvement, upper confidence bound or Thompson sampling."""
    initial: int = 20
    """Random architectures before the first fit."""
    batch_size: int = 1
    """Architectures of one fit."""
    capacity: int = 0
    """Evaluations to make room for; 0: as many as are made."""

    def searcher(self, space: SearchSpace) -> Searcher:
        """Build the searcher."""
        acquisition = {"ei": searchers.expected_improvement,
                       "ucb": searchers.upper_confidence_bound,
                       "ts": searchers.thompson_sampling}[self.acquisition]()
        layout = predictors.decision_layout(space.num_choices)
        return searchers.bayesian_optimization(
            space, capacity=self.capacity, acquisition=acquisition, num_initial=self.initial,
            surrogate=make_surrogate(self.surrogate, layout), batch_size=self.batch_size,
            num_random=max(100, self.batch_size))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PNAS:
    """Progressive search, from architectures that differ from the first in one decision."""

    surrogate: SurrogateName = "gp"
    """As of Bayesian optimisation; PNAS's is "mlp", which costs many times as much on a CPU."""
    beam_size: int = 400
    """Architectures of a level that are expanded; PNAS has 256."""
    level_size: int = 8
    """Those that are evaluated; PNAS evaluates all that it expands."""
    batch_size: int = 1
    """Architectures asked for at once."""
    capacity: int = 0
    """Evaluations to make room for; 0: as many as are made."""

    def searcher(self, space: SearchSpace) -> Searcher:
        """Build the searcher."""
        layout = predictors.decision_layout(space.num_choices)
        return searchers.progressive(
            searchers.GrowingDecisions(space), make_surrogate(self.surrogate, layout),
            capacity=self.capacity, beam_size=self.beam_size,
            level_size=self.level_size, batch_size=self.batch_size)


Buffered = TypeVar("Buffered", BayesianOptimization, PNAS)


def with_room(strategy: Buffered, evaluations: int) -> Buffered:
    """Return the strategy with a capacity for so many evaluations.

    Raises:
      ValueError: its own capacity is smaller.
    """
    if strategy.capacity and strategy.capacity < evaluations:
        raise ValueError(f"capacity must be at least {evaluations}, the evaluations, or 0 for as "
                         f"many, got {strategy.capacity}.")
    needed = evaluations + max(0, strategy.batch_size)  # the last batch may be more than is asked
    return dataclasses.replace(strategy, capacity=max(strategy.capacity, needed))


def make_surrogate(name: SurrogateName, layout: predictors.Layout, *, embedding_size: int = 10,
                   hidden_size: int = 32, num_steps: int = 100) -> Surrogate:
    """Build a surrogate of a name for archs of a layout; the sizes are those of tables."""
    if name == "gp":
        return searchers.gaussian_process(searchers.hamming_kernel(layout.num_choices))
    module = predictors.MLPPredictor if name == "mlp" else predictors.LSTMPredictor
    return predictor_ensemble(module(layout, embedding_size, hidden_size), num_steps=num_steps,
                              learning_rate=0.02)


def make_policy(name: PolicyName, space: SearchSpace, **lstm: float) -> Policy:
    """Build the policy of a name over the decisions of a space."""
    make: Callable[..., Policy] = lstm_controller
    return independent_logits(space.num_choices) if name == "logits" else make(
        space.num_choices, **lstm)


def positive(name: str, value: float) -> float:
    """Return a value that must be above 0.

    Raises:
      ValueError: it is not.
    """
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}.")
    return value
