"""Latency in a MnasNet run: predictions for the search, measurements for the report."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.child_search import GROUPS, Conclusion
from experiments.measuring import measured
from jaxnas import latency, pareto, reporting
from jaxnas.data import ImageDataset
from jaxnas.latency import Latency, MobileLatency
from jaxnas.search_spaces import MnasNet

TARGETS = (0.5, 0.75, 1.0, 1.5)  # times T, for which the best networks are reported
SAMPLES = 1000                   # random networks, for a default of T
DEFAULT_TARGET = 0.75            # of their median


class Prices:
    """What networks cost here; layers are measured when first asked for, or read."""

    def __init__(self, space: MnasNet, dataset: ImageDataset, config: Any) -> None:
        self.space, self.dataset, self.config = space, dataset, config

    @functools.cached_property
    def predicted(self) -> MobileLatency:
        """The prediction, made or read once.

        Raises:
          InputError: as `measured`.
        """
        return measured(
            self.config, "measure layers", latency.mobile_latency, self.space.grid,
            self.dataset.image_shape, num_classes=self.dataset.num_classes,
            method=self.config.method, batch_size=self.config.latency_batch_size)

    @functools.cached_property
    def target(self) -> float:
        """T in milliseconds."""
        if self.config.latency_target is not None:
            return float(self.config.latency_target)
        archs = jax.vmap(self.space.sample)(jax.random.split(jax.random.key(0), SAMPLES))
        return DEFAULT_TARGET * float(np.median(self.predicted(archs)))

    def prepare(self) -> None:
        """Measure or read the table; raises as `predicted`."""
        if not self.target > 0:
            raise ValueError(f"latency_target must be above 0, and its default is {self.target}: "
                             "predictions are not positive, so give one.")

    def metrics(self, archs: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return what archs [B, L] cost, by name: [B]."""
        shape, classes = self.dataset.image_shape, self.dataset.num_classes
        archs = np.asarray(archs)
        return {
            "latency_ms": np.asarray(self.predicted(archs)),
            "params": np.asarray(self.space.num_parameters(
                archs, num_classes=classes, channels=shape[2]), np.float32),
            "multiply_adds": np.asarray(self.space.multiply_adds(
                archs, num_classes=classes, image_size=shape[0], channels=shape[2]), np.float32)}

    def measure(self, arch: np.ndarray) -> Latency:
        """Measure the fixed network of an arch."""
        network = self.space.network(arch, num_classes=self.dataset.num_classes,
                                     method=self.config.method)
        return latency.measure_network(network, self.dataset.image_shape,
                                       batch_size=self.config.latency_batch_size)


def front(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows that no other dominates in accuracy and latency, fastest first, no twins."""
    found: dict[tuple[int, ...], Mapping[str, Any]] = {}
    for row in rows:
        if not row["failed"]:
            found.setdefault(tuple(row["canonical"]), row)
    known = list(found.values())
    if not known:
        return []
    points = [(row["valid_accuracy"], -row["latency_ms"]) for row in known]
    kept = np.asarray(pareto.non_dominated(jnp.asarray(points, jnp.float32)))
    return sorted((row for row, keep in zip(known, kept) if keep), key=lambda r: r["latency_ms"])


def best_within(rows: list[Mapping[str, Any]], target: float) -> Mapping[str, Any] | None:
    """Return the most accurate row within a target, or None."""
    within = [row for row in rows if row["latency_ms"] <= target]
    return max(within, key=lambda row: row["valid_accuracy"], default=None)


def conclude(run: Any, prices: Prices) -> Conclusion:
    """Measure the networks of a finished run, and tell its front."""
    known: dict[tuple[int, ...], Latency] = {}

    def measure(arch: Iterable[int]) -> float:
        key = tuple(int(value) for value in arch)
        if key not in known:
            known[key] = prices.measure(np.array(key, np.int32))
        return known[key].min_ms

    target, fronts = prices.target, {group: front(run.rows[group]) for group in GROUPS}
    compared = run.archs()
    with run.progress.phase("measure networks", total=None) as bar:
        values = {}
        for group, archs in compared.items():
            values[group] = [measure(arch) for arch in archs]
            bar.advance(1, group)
        rows = []
        for row in fronts["found"]:
            within = [scale for scale in TARGETS
                      if row is best_within(fronts["found"], scale * target)]
            rows.append({
                "valid_accuracy": row["valid_accuracy"], "predicted_latency_ms": row["latency_ms"],
                "measured_latency_ms": measure(row["canonical"]) if within else None,
                "best_within_ms": [scale * target for scale in within],
                "params": row["params"], "multiply_adds": row["multiply_adds"],
                "architecture": run.system.decode(np.array(row["canonical"])).architecture})
    predicted = np.asarray(prices.predicted(np.array(list(known), np.int32)), np.float64)
    true = np.array([one.min_ms for one in known.values()])
    error = float(np.median(np.abs(predicted - true) / true))
    table = prices.predicted.table
    reporting.plot_curves(
        {("MnasNet" if group == "found" else "random search"): (
            [row["latency_ms"] for row in fronts[group]],
            [row["valid_accuracy"] for row in fronts[group]])
         for group in GROUPS if fronts[group]},
        run.path / "front", f"predicted milliseconds of {prices.config.latency_batch_size} images",
        "validation accuracy (%)")
    metrics = {"latency_ms": reporting.Metric(
        reporting.summarize([measure(compared["found"][0])]),
        reporting.summarize([measure(compared["random"][0])]))}
    extra = {
        "latency_target_ms": target, "front": rows, "latency_batch_size": (
            prices.config.latency_batch_size),
        "random_networks_latency_ms": reporting.summarize(values["random_networks"]),
        "latency_prediction": {
            "networks": len(known), "median_relative_error": error,
            "parts": len(table.milliseconds), "programs_of_the_table": table.programs,
            "overhead_ms": table.overhead_ms}}
    return Conclusion(metrics, extra, _text(rows, values, target, error, len(known)))


def _text(rows, values, target, error, count) -> str:
    lines = [f"latency target: {target:.3f} ms; measured: found {values['found'][0]:.3f} ms, "
             f"random search's best {values['random'][0]:.3f} ms, random networks "
             f"{np.mean(values['random_networks']):.3f} ms",
             f"predictions are off by {100 * error:.0f} % (median of {count} networks)",
             "front: accuracy %, predicted ms, measured ms, best within ms"]
    for row in rows:
        real = "" if row["measured_latency_ms"] is None else f"{row['measured_latency_ms']:.3f}"
        within = ", ".join(f"{value:.3f}" for value in row["best_within_ms"])
        lines.append(f"  {row['valid_accuracy']:6.2f}  {row['predicted_latency_ms']:8.3f}  "
                     f"{real:>8}  {within}")
    return "\n".join(lines)
