"""How well does a table of parts predict the latency of whole networks on this device?

    python -m benchmarks.bench_latency                  # 50 random networks of each space
    python -m benchmarks.bench_latency --spaces mnasnet --networks 10

Every part of a space is measured alone (`jaxnas.latency`), four whole networks fit the constant,
and random others are predicted and measured. Each network is compiled; nothing is trained. The
baseline is a straight line through multiply-adds, fitted on the very networks that it predicts.
Relative errors are of milliseconds, correlations of ranks. Networks are measured in turn, the
fastest of `--repeats` calls.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from jaxnas import latency
from jaxnas.latency import LatencyTable
from jaxnas.networks.mobile_grid import MobileGrid
from jaxnas.networks.nasbench201 import NASBench201Network
from jaxnas.search_spaces import MnasNet, NASBench201

SPACES = ("mnasnet", "nasbench201")
SHAPE = (8, 8, 1)
GRIDS = {"small": MobileGrid((8, 16), (2, 2), (1, 2), 8, 1, 64),
         "smoke": MobileGrid((1,), (1,), (1,), 1, 1, 4)}
CELLS = {"small": (8, 2), "smoke": (2, 1)}  # features, cells of a stage


class Case(NamedTuple):
    """A space, its prediction, and its networks."""

    space: Any
    table: LatencyTable
    predict: Callable[[np.ndarray], Any]
    network: Callable[[np.ndarray], Any]
    multiply_adds: Callable[[np.ndarray], Any]


def mnasnet(size: str, batch_size: int, folder: Path | None) -> Case:
    """Return the case of a small grid of MnasNet."""
    space = MnasNet(GRIDS[size])
    predicted = latency.mobile_latency(
        space.grid, SHAPE, num_classes=10, batch_size=batch_size, directory=folder)
    return Case(space, predicted.table, predicted,
                lambda arch: space.network(arch, num_classes=10),
                lambda archs: space.multiply_adds(archs, num_classes=10, image_size=SHAPE[0],
                                                  channels=SHAPE[2]))


def nasbench201(size: str, batch_size: int, folder: Path | None) -> Case:
    """Return the case of narrow networks of NAS-Bench-201."""
    features, cells = CELLS[size]
    predicted = latency.nasbench201_latency(
        SHAPE, features=features, cells=cells, batch_size=batch_size, directory=folder)
    space = NASBench201()
    return Case(space, predicted.table, predicted.nasbench201,
                lambda arch: NASBench201Network(tuple(arch.tolist()), features, cells),
                lambda archs: space.flops(archs, image_size=SHAPE[0]))  # of wider ones, to a line


CASES = {"mnasnet": mnasnet, "nasbench201": nasbench201}


def errors(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """Return rank correlations and relative errors of predictions [N] of measurements [N]."""
    relative = np.abs(predicted - measured) / measured
    return {"spearman": float(stats.spearmanr(predicted, measured).statistic),
            "kendall": float(stats.kendalltau(predicted, measured).statistic),
            "median_error": float(np.median(relative)), "mean_error": float(np.mean(relative)),
            "largest_error": float(relative.max())}


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Predict and measure the networks of one space, and return the row."""
    start = time.perf_counter()
    case = CASES[name]("smoke" if options.smoke else "small", options.batch_size, options.tables)
    built = time.perf_counter() - start
    keys = jax.random.split(jax.random.key(options.seed), options.networks)
    archs = np.asarray(jax.vmap(case.space.sample)(keys))
    predicted = np.asarray(case.predict(archs), np.float64)
    measured = np.array([latency.measure_network(
        case.network(arch), SHAPE, batch_size=options.batch_size,
        repeats=options.repeats).min_ms for arch in archs])
    counts = np.asarray(case.multiply_adds(archs), np.float64)
    line = np.polyval(np.polyfit(counts, measured, 1), counts)
    device = jax.devices()[0]
    return {
        "benchmark": "latency", "space": name, "networks": len(archs),
        "batch_size": options.batch_size, "parts": len(case.table.milliseconds),
        "table_programs": case.table.programs, "table_seconds": round(built, 1),
        "measured_ms": {"min": measured.min(), "median": float(np.median(measured)),
                        "max": measured.max()},
        "table": errors(predicted, measured), "multiply_adds": errors(line, measured),
        "overhead_ms": case.table.overhead_ms,
        "device": f"{device.platform} {device.device_kind}", "machine": platform.machine(),
        "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2), "jax": jax.__version__}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line a space."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=SPACES)
    parser.add_argument("--networks", type=int, default=50, help="random networks of a space")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=100, help="calls of a network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables", type=Path, help="folder that keeps the tables")
    parser.add_argument("--smoke", action="store_true", help="tiny networks")
    options = parser.parse_args(arguments)
    if options.networks < 3 or options.repeats < 1 or options.batch_size < 1:
        parser.error("--networks must be 3 or more, --repeats and --batch-size 1 or more")
    for name in options.spaces:
        print(json.dumps(run(name, options), default=float), flush=True)


if __name__ == "__main__":
    main()
