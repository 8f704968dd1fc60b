"""A bound on latency in a DARTS run: in the search, in the derivation, and on the real network.

The bound is on the network that is retrained, in inference, a batch at a time on this device. Its
operations are measured alone at its widths and resolutions (`latency.darts_latency`), before the
first search, and kept for the next.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.measuring import measured
from jaxnas import latency, reporting
from jaxnas.data import ImageDataset
from jaxnas.latency import EdgeLatency
from jaxnas.networks.mixed import edge_index, num_edges
from jaxnas.search_spaces import DARTS

SAMPLES = 2000  # random cells, among which those within the bound are taken
ROUNDS = 4      # of measuring what was derived, and deriving again


class Derived(NamedTuple):
    """What was derived from alphas under a bound, as a checkpoint holds it."""

    arch: np.ndarray          # [L] int32; all -1: nothing yet
    predicted_ms: np.ndarray  # [] float64
    measured_ms: np.ndarray   # [] float64
    exchanges: np.ndarray     # [] int32, operations that the bound changed
    measurements: np.ndarray  # [] int32, of networks, each compiled once


class LatencyBound:
    """The bound `max_latency` of a run."""

    def __init__(self, config: Any, space: DARTS, dataset: ImageDataset) -> None:
        """Measure the operations, or read what was measured.

        Raises:
          ValueError: no cells can be as fast as the bound, a setting is out of range, or the table
            is damaged.
        """
        if config.latency_batch_size < 1:
            raise ValueError(
                f"latency_batch_size must be 1 or more, got {config.latency_batch_size}.")
        self.limit = config.max_latency
        self.rate, self.batch_size = config.latency_rate, config.latency_batch_size
        if not self.limit > 0 or not self.rate > 0:
            raise ValueError("max_latency and latency_rate must be above 0, got "
                             f"{self.limit} and {self.rate}.")
        self.space, self.dataset = space, dataset
        self.sizes = {"features": config.retrain_features, "layers": config.retrain_layers,
                      "num_classes": dataset.num_classes}
        self.predicted: EdgeLatency = measured(
            config, "measure operations", latency.darts_latency, space.choices, space.num_nodes,
            dataset.image_shape, batch_size=self.batch_size, **self.sizes)
        fastest = self.fastest()
        if self.limit < fastest:
            raise ValueError(
                f"max_latency must be at least {fastest:.3g} ms, which the fastest cells are "
                f"predicted to take here for {self.batch_size} images, got {self.limit}: raise it, "
                "or make the retrained network smaller.")

    def fastest(self) -> float:
        """Return the smallest prediction of all cells: two fastest edges a node."""
        best = self.predicted.edges.min(-1)  # [2, E]
        total = self.predicted.table.overhead_ms
        for node in range(self.space.num_nodes):
            first = edge_index(node, 0)
            total += np.sort(best[:, first:first + node + 2])[:, :2].sum()
        return float(total)

    def expected(self, alphas: jax.Array) -> jax.Array:
        """Return the expected milliseconds of what alphas [2, E, O] would give: []."""
        return self.predicted.expected(self.space.weights(alphas)[..., self._kept])

    def transformation(self) -> optax.GradientTransformation:
        """Return what adds the bound to the gradient of the alphas."""
        return latency.bound_latency(self.expected, self.limit, rate=self.rate)

    @property
    def _kept(self) -> np.ndarray:
        names = self.space.operations
        return np.array([i for i, name in enumerate(names) if name != "none"])

    def measure(self, arch: np.ndarray) -> float:
        """Measure the retrained network of an arch, in milliseconds."""
        network = self.space.network(self.space.decode(arch), auxiliary=False, **self.sizes)
        found = latency.measure_network(
            network, self.dataset.image_shape, batch_size=self.batch_size)
        return found.min_ms

    def derive(self, alphas: jax.Array, selection: str) -> Derived:
        """Derive under the bound, and measure: first by predictions, then by what was measured.

        Where the real network is slower than the bound, the budget of the predictions shrinks by
        the excess, and the derivation is repaired again, `ROUNDS` times at most.
        """
        first = np.asarray(self.space.discretize(alphas, selection=selection))
        limit = self.limit
        tries: list[Derived] = []
        for count in range(1, ROUNDS + 1):
            arch, exchanges = self.repaired(first, alphas, limit)
            if tries and (arch == tries[-1].arch).all():
                break  # nothing is left to exchange
            found_ms = self.measure(arch)
            tries.append(Derived(
                arch, np.array(self.predicted.derived(arch), np.float64),
                np.array(found_ms, np.float64), np.array(exchanges, np.int32),
                np.array(count, np.int32)))
            if found_ms <= self.limit:
                break
            limit = min(limit, float(tries[-1].predicted_ms)) - (found_ms - self.limit)
        best = tries[-1] if tries[-1].measured_ms <= self.limit else min(
            tries, key=lambda one: one.measured_ms)
        return best._replace(measurements=np.array(len(tries), np.int32))

    def nothing_derived(self) -> Derived:
        """Return what a checkpoint holds before the derivation."""
        return Derived(np.full(self.space.num_decisions, -1, np.int32), np.zeros(()), np.zeros(()),
                       np.zeros((), np.int32), np.zeros((), np.int32))

    def is_derived(self, derived: Derived) -> bool:
        """Tell whether there was a derivation."""
        return bool(derived.measurements > 0)

    def repaired(self, arch: np.ndarray, alphas: jax.Array, limit: float) -> tuple[np.ndarray, int]:
        """Exchange operations of an arch [L] until its prediction is within a limit."""
        rows = np.array(arch).reshape(2, -1, 2)
        cells, edges = np.arange(2)[:, None], num_edges(self.space.num_nodes)
        first = np.array([edge_index(row // 2, 0) for row in range(rows.shape[1])])
        edge_of = (cells * edges + first + rows[..., 1]).reshape(-1)
        strengths = np.asarray(jax.nn.log_softmax(alphas, axis=-1))[..., self._kept]
        choices = len(self.space.choices)
        operations, exchanges = latency.repair(
            rows[..., 0].reshape(-1), strengths.reshape(-1, choices),
            self.predicted.edges.reshape(-1, choices), limit - self.predicted.table.overhead_ms,
            edge_of)
        rows[..., 0] = operations.reshape(2, -1)
        return rows.reshape(-1), exchanges

    def random(self, key: jax.Array, count: int) -> np.ndarray:
        """Return `count` random archs [L] that are predicted to keep the bound.

        Where too few of many are, the fastest of the others fill up.
        """
        archs = np.asarray(jax.vmap(self.space.sample)(jax.random.split(key, SAMPLES)))
        predicted = np.asarray(self.predicted.derived(archs))
        order = np.where(predicted <= self.limit, -1.0, predicted)
        return archs[np.argsort(order, kind="stable")[:count]]

    def conclude(self, derived: Derived, alphas: jax.Array, archs: np.ndarray,
                 accuracies: np.ndarray) -> tuple[reporting.Metric, dict[str, Any], str]:
        """Measure the random networks, and say whether the bound is met.

        Args:
          derived: the found cells.
          alphas: [2, E, O], at the end.
          archs: [R, L], of the random networks.
          accuracies: [R] percent, of the same.

        Returns:
          The metric, what result.json holds besides, and a sentence.
        """
        found, predicted = float(derived.measured_ms), float(derived.predicted_ms)
        random = [self.measure(arch) for arch in archs]
        table, met = self.predicted.table, found <= self.limit
        extra = {
            "max_latency_ms": self.limit, "latency_bound_met": met,
            "latency_of": "the retrained network, inference", "latency_batch_size": self.batch_size,
            "latency_predicted_ms": predicted, "latency_measured_ms": found,
            "latency_expected_ms": float(self.expected(jnp.asarray(alphas))),
            "latency_exchanges": int(derived.exchanges),
            "random_networks": [
                {"measured_ms": one, "predicted_ms": float(self.predicted.derived(arch)),
                 "test_accuracy": float(accuracy)}
                for one, arch, accuracy in zip(random, archs, accuracies)],
            "latency_parts": len(table.milliseconds), "latency_overhead_ms": table.overhead_ms,
            "latency_programs": table.programs + int(derived.measurements) + len(random)}
        text = (f"latency of the found network: {found:.3f} ms measured, {predicted:.3f} ms "
                f"predicted, for {self.batch_size} images; the bound of {self.limit:g} ms "
                f"{'is met' if met else 'is NOT met'} ({int(derived.exchanges)} operations "
                f"exchanged for it). Random networks: {np.mean(random):.3f} ms measured.")
        return reporting.Metric(
            reporting.summarize([found]), reporting.summarize(random)), extra, text
