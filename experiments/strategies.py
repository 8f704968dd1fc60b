"""The discrete search strategies as settings that flags can change, each a factory of a searcher.

The defaults are those of the NAS-Bench-201 authors' scripts where they have the strategy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol

import optax

from jaxnas.base import Policy, Searcher, SearchSpace
from jaxnas.networks.controllers import independent_logits, lstm_controller
from jaxnas.searchers import local_search, ppo, random_search, regularized_evolution, reinforce

PolicyName = Literal["logits", "lstm"]


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
