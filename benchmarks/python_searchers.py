"""The searchers as plain Python loops over the table of NAS-Bench-201: what JAX is compared with.

    fitness = plain_evolution(random.Random(0), tables, num_evaluations=200)

Every function takes (rng, tables, num_evaluations) and returns the fitness of all evaluations in
order, out of a history that tells the architectures too. The algorithms and settings are those of
`jaxnas.searchers` in `benchmarks.bench_searchers`, so the distributions of the results are equal;
tests/test_benchmarks.py compares them.

- plain_*: architectures as tuples, a dict as table, the random module as a careful programmer
  would use it.
- flat_*: architectures as flat indices, a list as table, `random.random` bound to a local.
- tabled_evolution: besides, everything random in a step out of one draw, and a list of all
  neighbours of all architectures. The fastest Python that we could write.
- numpy_ppo: arrays of a batch of architectures.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
import operator
import random
from typing import NamedTuple

import numpy as np

NUM_DECISIONS, NUM_CHOICES = 6, 5
SIZE = NUM_CHOICES ** NUM_DECISIONS
STRIDES = tuple(NUM_CHOICES ** (NUM_DECISIONS - 1 - l) for l in range(NUM_DECISIONS))
OTHERS = tuple(tuple(o for o in range(NUM_CHOICES) if o != choice) for choice in range(NUM_CHOICES))
NUM_NEIGHBORS = NUM_DECISIONS * (NUM_CHOICES - 1)
POPULATION, TOURNAMENT = 10, 3
_FITNESS = operator.itemgetter(1)

Arch = tuple[int, ...]


class Tables(NamedTuple):
    """One metric of all architectures, in the forms that the loops look it up in."""

    by_arch: dict[Arch, float]
    by_index: list[float]      # the last decision varies fastest
    neighbors: list[int]       # 24 a flat index, in the order of `jaxnas.mutations.neighbor`
    entrants: list[Arch]       # every (member, member, member, neighbour)


def make_tables(by_index: np.ndarray) -> Tables:
    """Prepare the tables; outside of what is measured."""
    values = np.asarray(by_index, float).tolist()
    archs = itertools.product(range(NUM_CHOICES), repeat=NUM_DECISIONS)
    neighbors = [index + (position_other - index // stride % NUM_CHOICES) * stride
                 for index in range(SIZE) for stride in STRIDES
                 for position_other in OTHERS[index // stride % NUM_CHOICES]]
    return Tables(dict(zip(archs, values)), values, neighbors, list(itertools.product(
        *map(range, (POPULATION,) * TOURNAMENT + (NUM_NEIGHBORS,)))))


def plain_random(rng: random.Random, tables: Tables, num_evaluations: int) -> list[float]:
    """Random search."""
    table, choices = tables.by_arch, range(NUM_CHOICES)
    history = []
    for _ in range(num_evaluations):
        arch = tuple(rng.choices(choices, k=NUM_DECISIONS))
        history.append((arch, table[arch]))
    return [fitness for _, fitness in history]


def flat_random(rng: random.Random, tables: Tables, num_evaluations: int) -> list[float]:
    """Random search; a whole architecture is one draw."""
    draw, table = rng.random, tables.by_index
    history = [int(draw() * SIZE) for _ in range(num_evaluations)]
    return [table[index] for index in history]


def plain_evolution(rng: random.Random, tables: Tables, num_evaluations: int) -> list[float]:
    """Regularised evolution."""
    table, choices = tables.by_arch, range(NUM_CHOICES)
    population: collections.deque[tuple[Arch, float]] = collections.deque(maxlen=POPULATION)
    history = []
    for evaluation in range(num_evaluations):
        if evaluation < POPULATION:
            arch = tuple(rng.choices(choices, k=NUM_DECISIONS))
        else:
            child = list(max(rng.choices(population, k=TOURNAMENT), key=_FITNESS)[0])
            position = rng.randrange(NUM_DECISIONS)
            child[position] = rng.choice(OTHERS[child[position]])
            arch = tuple(child)
        member = (arch, table[arch])
        population.append(member)  # which drops the oldest
        history.append(member)
    return [fitness for _, fitness in history]


def flat_evolution(rng: random.Random, tables: Tables, num_evaluations: int) -> list[float]:
    """Regularised evolution."""
    draw, table, strides = rng.random, tables.by_index, STRIDES
    indices = [int(draw() * SIZE) for _ in range(POPULATION)]
    values = [table[index] for index in indices]
    history = indices[:]
    oldest = 0
    for _ in range(num_evaluations - POPULATION):
        winner = int(draw() * POPULATION)
        best = values[winner]
        for _ in range(TOURNAMENT - 1):
            entrant = int(draw() * POPULATION)
            if values[entrant] > best:
                winner = entrant
                best = values[entrant]
        index = indices[winner]
        stride = strides[int(draw() * NUM_DECISIONS)]
        old = index // stride % NUM_CHOICES
        index += ((old + 1 + int(draw() * (NUM_CHOICES - 1))) % NUM_CHOICES - old) * stride
        indices[oldest] = index
        values[oldest] = table[index]
        history.append(index)
        oldest += 1
        if oldest == POPULATION:
            oldest = 0
    return [table[index] for index in history[:num_evaluations]]


def tabled_evolution(rng: random.Random, tables: Tables, num_evaluations: int) -> list[float]:
    """Regularised evolution with tournaments of 3."""
    draw, table, neighbors, entrants = (
        rng.random, tables.by_index, tables.neighbors, tables.entrants)
    count = len(entrants)
    indices = [int(draw() * SIZE) for _ in range(POPULATION)]
    values = [table[index] for index in indices]
    history = indices[:]
    oldest = 0
    for _ in range(num_evaluations - POPULATION):
        winner, second, third, neighbor = entrants[int(draw() * count)]
        best = values[winner]
        if values[second] > best:
            winner = second
            best = values[second]
        if values[third] > best:
            winner = third
        index = neighbors[NUM_NEIGHBORS * indices[winner] + neighbor]
        indices[oldest] = index
        values[oldest] = table[index]
        history.append(index)
        oldest += 1
        if oldest == POPULATION:
            oldest = 0
    return [table[index] for index in history[:num_evaluations]]


def plain_local(rng: random.Random, tables: Tables, num_evaluations: int) -> list[float]:
    """Local search: to the best of all neighbours, met in a random order; else a new start."""
    table, choices = tables.by_arch, range(NUM_CHOICES)
    history: list[tuple[Arch, float]] = []
    while True:
        arch = tuple(rng.choices(choices, k=NUM_DECISIONS))
        centre = (arch, table[arch])
        history.append(centre)
        while True:
            arch = centre[0]
            around = [arch[:l] + (other,) + arch[l + 1:]
                      for l in range(NUM_DECISIONS) for other in OTHERS[arch[l]]]
            rng.shuffle(around)
            found = [(neighbor, table[neighbor]) for neighbor in around]
            history += found
            if len(history) >= num_evaluations:
                return [fitness for _, fitness in history[:num_evaluations]]
            best = max(found, key=_FITNESS)
            if best[1] <= centre[1]:
                break
            centre = best


def flat_local(rng: random.Random, tables: Tables, num_evaluations: int) -> list[float]:
    """Local search; the random order is a start and a stride, as in `jaxnas`."""
    draw, table, neighbors = rng.random, tables.by_index, tables.neighbors
    orders = _orders()
    count = len(orders)
    history: list[int] = []
    while True:
        index = int(draw() * SIZE)
        value = table[index]
        history.append(index)
        while True:
            start = NUM_NEIGHBORS * index
            around = neighbors[start : start + NUM_NEIGHBORS]
            found = [around[number] for number in orders[int(draw() * count)]]
            history += found
            if len(history) >= num_evaluations:
                return [table[index] for index in history[:num_evaluations]]
            best = max(found, key=table.__getitem__)
            if table[best] <= value:
                break
            index, value = best, table[best]


@functools.cache
def _orders() -> tuple[Arch, ...]:
    return tuple(tuple((start + k * stride) % NUM_NEIGHBORS for k in range(NUM_NEIGHBORS))
                 for start in range(NUM_NEIGHBORS)
                 for stride in range(1, NUM_NEIGHBORS) if math.gcd(stride, NUM_NEIGHBORS) == 1)


def plain_reinforce(rng: random.Random, tables: Tables, num_evaluations: int) -> list[float]:
    """REINFORCE with one architecture a step: Adam, and a baseline that moves first."""
    draw, exp, sqrt, table = rng.random, math.exp, math.sqrt, tables.by_index
    learning_rate, decay, first, second = 0.01, 0.9, 0.9, 0.999
    logits = [[1e-3 * rng.gauss(0.0, 1.0) for _ in range(NUM_CHOICES)] for _ in STRIDES]
    means = [[0.0] * NUM_CHOICES for _ in STRIDES]
    squares = [[0.0] * NUM_CHOICES for _ in STRIDES]
    power1 = power2 = 1.0
    baseline = 0.0
    history = []
    for _ in range(num_evaluations):
        index = 0
        drawn = []
        for row, stride in zip(logits, STRIDES):
            weights = [exp(x) for x in row]  # logits stay small: no shift is needed
            total = sum(weights)
            point = draw() * total
            choice = 0
            for weight in weights:
                point -= weight
                if point < 0:
                    break
                choice += 1
            choice = min(choice, NUM_CHOICES - 1)
            index += choice * stride
            drawn.append((weights, total, choice))
        history.append(index)
        fitness = table[index]
        baseline = decay * baseline + (1 - decay) * fitness
        advantage = fitness - baseline
        power1 *= first
        power2 *= second
        rate, unbias = learning_rate / (1 - power1), 1 / (1 - power2)
        for row, mean, square, (weights, total, choice) in zip(logits, means, squares, drawn):
            scale = -advantage / total
            for k, weight in enumerate(weights):
                gradient = scale * weight
                if k == choice:
                    gradient += advantage
                mean[k] = m = first * mean[k] + (1 - first) * gradient
                square[k] = v = second * square[k] + (1 - second) * gradient * gradient
                row[k] += rate * m / (sqrt(v * unbias) + 1e-8)
    return [table[index] for index in history]


def numpy_ppo(rng: random.Random, tables: Tables, num_evaluations: int) -> list[float]:
    """PPO: batches of 10, 4 steps of Adam on each, ratios clipped to 1 +- 0.2."""
    batch, epochs, clip, entropy_weight = 10, 4, 0.2, 1e-5
    learning_rate, decay, first, second = 0.03, 0.95, 0.9, 0.999
    generator = np.random.default_rng(rng.getrandbits(32))
    table, strides = np.asarray(tables.by_index), np.array(STRIDES)
    logits = 1e-3 * generator.standard_normal((NUM_DECISIONS, NUM_CHOICES))
    mean, square = np.zeros_like(logits), np.zeros_like(logits)
    rows, baseline, step, history = np.arange(NUM_DECISIONS), None, 0, []
    for _ in range(-(-num_evaluations // batch)):
        log_probs = _log_softmax(logits)
        ends = np.exp(log_probs).cumsum(1)
        points = generator.random((batch, NUM_DECISIONS)) * ends[:, -1]
        archs = (ends <= points[:, :, None]).sum(-1)
        fitness = table[archs @ strides]
        history.append(fitness)
        baseline = fitness.mean() if baseline is None else baseline
        advantages = (fitness - baseline)[:, None]
        baseline = decay * baseline + (1 - decay) * fitness.mean()
        old = log_probs[rows, archs]
        for _ in range(epochs):
            log_probs = _log_softmax(logits)
            probs = np.exp(log_probs)
            ratios = np.exp(log_probs[rows, archs] - old)
            held = np.where(advantages > 0, ratios > 1 + clip, ratios < 1 - clip)
            gains = np.where(held, 0.0, ratios * advantages) / batch  # [B, L]
            gradient = -probs * gains.sum(0)[:, None]
            np.add.at(gradient, (rows, archs), gains)
            entropy = -(probs * log_probs).sum(1, keepdims=True)
            gradient -= entropy_weight * probs * (log_probs + entropy)
            step += 1
            mean = first * mean + (1 - first) * gradient
            square = second * square + (1 - second) * gradient * gradient
            logits = logits + learning_rate * mean / (1 - first ** step) / (
                np.sqrt(square / (1 - second ** step)) + 1e-8)
    return np.concatenate(history)[:num_evaluations].tolist()


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


BASELINES = {
    "random": {"plain": plain_random, "flat": flat_random},
    "evolution": {"plain": plain_evolution, "flat": flat_evolution, "tabled": tabled_evolution},
    "local": {"plain": plain_local, "flat": flat_local},
    "reinforce": {"plain": plain_reinforce},
    "ppo": {"numpy": numpy_ppo},
}
