"""What do the terms of the scaling model cost here: checkpoints, the trial store, ask and tell?

    python -m benchmarks.bench_scaling [--folder DIR]

Wall-clock seconds; the disk is that of the folder (default: a temporary one).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from jaxnas import checkpoints, search, trials
from jaxnas.search_spaces import NASBench201
from jaxnas.searchers import regularized_evolution

MEGABYTES = (1, 23, 100)
TRIALS = 2000


def save_and_restore(folder: Path, megabytes: int, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the seconds of saving and of restoring random float32 arrays, [repeats] each."""
    rng = np.random.default_rng(0)
    state = {str(i): rng.standard_normal(megabytes * 250_000 // 100, dtype=np.float32)
             for i in range(100)}
    saved, restored = [], []
    for step in range(repeats + 1):
        start = time.perf_counter()
        checkpoints.save(folder / str(megabytes), step, state, {})
        middle = time.perf_counter()
        checkpoints.restore(folder / str(megabytes), state)
        saved.append(middle - start)
        restored.append(time.perf_counter() - middle)
    return np.array(saved[1:]), np.array(restored[1:])


def transactions(path: Path, archs: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the seconds of each claim with its finish [T], and the bytes a trial of the file."""
    seconds = []
    recipe = {"dataset": "digits", "epochs": 25, "seed": 0}
    with trials.open_store(path) as store:
        for arch in archs:
            start = time.perf_counter()
            claimed = store.claim("space", arch, recipe)
            if isinstance(claimed, trials.Claimed):
                store.finish(claimed, {"accuracy": 0.5, "loss": 1.0}, seconds=1.0)
                seconds.append(time.perf_counter() - start)
        count = store.counts().done
    return np.array(seconds), path.stat().st_size / count


def ask_and_tell(repeats: int) -> Iterator[float]:
    """Yield the seconds of a step of evolution on the host, one trial each, after a warm-up."""
    space = NASBench201()
    searcher = regularized_evolution(space, population_size=100, tournament_size=10)
    state = search.init(jax.random.key(0), searcher)
    times = []
    search.run_on_host(
        state, searcher, lambda key, archs: {"accuracy": np.zeros(len(archs))},
        lambda metrics: jnp.asarray(metrics["accuracy"]), num_steps=repeats + 5,
        on_step=lambda *_: times.append(time.perf_counter()))
    yield from np.diff(times[4:])


def main() -> None:
    """Measure all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for megabytes in MEGABYTES:
            saved, restored = save_and_restore(folder, megabytes, options.repeats)
            for what, seconds in (("save", saved), ("restore", restored)):
                common.record("scaling", {"term": f"checkpoint_{what}", "megabytes": megabytes},
                              common.timing(seconds))
        archs = np.unique(np.random.default_rng(0).integers(0, 9, (TRIALS, 20)), axis=0)
        seconds, size = transactions(folder / "trials.sqlite", archs)
        row = {"term": "claim_and_finish", "trials": len(seconds), "bytes_per_trial": round(size)}
        common.record("scaling", row, common.timing(seconds))
        steps = list(ask_and_tell(200))
        common.record("scaling", {"term": "ask_and_tell", "mean": statistics.fmean(steps)},
                      common.timing(np.array(steps)))


if __name__ == "__main__":
    main()
