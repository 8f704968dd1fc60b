"""The acquisition function of AutoKeras, optimised over a tree of architectures.

Jin et al., 2019, https://arxiv.org/abs/1806.10282, section 3.2 and algorithm 1: A* search with
simulated annealing. Of its two variants this is that of the released code (0.3.7, bayesian.py):
what is annealed is whether a node that was taken from the queue is expanded, and every child that
is new is put there. The paper's tests a child when it is put into the queue. Host only, any kind of
node.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Proposal(NamedTuple):
    """The node to evaluate next, and the way to it."""

    node: Any
    father: int              # which of the known nodes it descends from
    operations: tuple[Any, ...]  # that lead from the father to it, one or more
    value: float             # of the acquisition function


def search_tree(
    random: np.random.Generator, known: Sequence[Hashable], fitness: Sequence[float], *,
    neighbours: Callable[[np.random.Generator, Any], Iterable[tuple[Any, Hashable]]],
    acquisition: Callable[[list[Any]], np.ndarray], temperature: float = 1.0,
    lowest_temperature: float = 1e-4, decay: float = 0.9,
) -> Proposal | None:
    """Search for the node with the largest acquisition function, from all known nodes on.

    Inner nodes of the tree may be expanded again, which keeps small architectures in reach.

    Args:
      random: NumPy's generator.
      known: N nodes that were evaluated, failed ones too; equal nodes are one architecture.
      fitness: [N] as `acquisition` predicts it, larger is better; NaN for one that failed, from
        which nothing descends.
      neighbours: (random, node) -> (operation, node) pairs to look at, perhaps a sample.
      acquisition: nodes -> [M] values, larger is better.
      temperature: T at the start; times `decay` at every step, until `lowest_temperature`. The
        defaults are at most 88 steps.
      lowest_temperature, decay: see there.

    Returns:
      The best node found that is not among the known; None where there is none.

    Raises:
      ValueError: lengths that differ, or temperatures that do not fall.
    """
    if len(known) != len(fitness):
        raise ValueError(f"known and fitness must be as long, got {len(known)} and {len(fitness)}.")
    if not 0 < lowest_temperature <= temperature or not 0 < decay < 1:
        raise ValueError(
            "lowest_temperature must be above 0 and at most temperature, and decay in (0, 1), got "
            f"{lowest_temperature}, {temperature} and {decay}.")
    ticket = itertools.count()  # among equals the first
    queue: list[tuple[float, int, Any, int, tuple[Any, ...]]] = []
    for father, (node, value) in enumerate(zip(known, fitness)):
        if not math.isnan(value):
            heapq.heappush(queue, (-float(value), next(ticket), node, father, ()))
    seen = set(known)
    best: Proposal | None = None
    while queue and temperature > lowest_temperature:
        temperature *= decay
        negative, _, node, father, path = heapq.heappop(queue)
        if best is not None:
            ratio = min((-negative - best.value) / temperature, 1.0)
            if random.uniform() > math.exp(ratio):
                continue
        children = []
        for operation, child in neighbours(random, node):
            if child not in seen:
                seen.add(child)
                children.append((child, (*path, operation)))
        if not children:
            continue
        values = np.asarray(acquisition([child for child, _ in children]), float)
        for (child, operations), value in zip(children, values.tolist(), strict=True):
            heapq.heappush(queue, (-value, next(ticket), child, father, operations))
            if best is None or value > best.value:
                best = Proposal(child, father, operations, value)
    return best
