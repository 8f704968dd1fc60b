"""What many GPUs would take: the cost model of docs/scaling.md, as functions and two tables.

    python -m benchmarks.scaling_model [--compute-seconds 0.1 ...]

Nothing here was measured on those machines: every default names where it comes from, `measured`
(benchmarks/README.md, the CPU of that file), `computed` or `assumed`, and is a flag.
"""

from __future__ import annotations

import dataclasses
import math

import rich.console
import rich.table
import tyro


@dataclasses.dataclass(frozen=True)
class Search:
    """A differentiable search, data parallel, the batch of a device fixed."""

    compute_seconds: float = 0.30
    """One step on one device, without communication. Assumed, as no GPU was at hand: take the
    median of step_seconds in the result.json of a run on yours."""
    all_reduce_bytes: float = 4 * 1_930_618 * 3
    """Bytes summed in a step. Computed: three gradients of 1,930,618 weights in float32 (inner
    step, look-ahead, weight step); those of the alphas are 4 kB."""
    all_reduces: int = 4
    """Sums in a step: three gradients and a mixed product. Counted in compiled programs, without
    synchronised batch statistics; with them thousands: see the benchmark `bench_data_parallel`."""
    bandwidth: float = 50e9
    """Bytes a second between two hosts. Assumed: a 400 Gb/s card a GPU; NVLink is 9 times that."""
    latency_seconds: float = 10e-6
    """Of one message. Assumed; some 10 microseconds are usual for NCCL between hosts."""
    checkpoint_seconds: float = 0.29
    """One save, while the devices wait. Measured at 23 MB of state."""
    compile_seconds: float = 120.0
    """All programs of a search, once a host at every start. Measured on 2 cores."""
    restart_seconds: float = 60.0
    """From a dead peer to the first step, without compilation (cached). Assumed: 30 s until the
    others notice, as much to start."""
    hours_between_failures: float = 50_000.0
    """Of one GPU and all that hangs on it. Assumed."""


@dataclasses.dataclass(frozen=True)
class Farm:
    """A discrete search whose trials are trained one a GPU."""

    trial_seconds: float = 1800.0
    """Training one child. Assumed: half an hour."""
    transaction_seconds: float = 0.27e-3
    """One write to the trial store; they follow each other. Measured."""
    transactions: int = 2
    """Of a trial: claim and finish. Heartbeats come on top, one a third of the lease."""
    heartbeat_seconds: float = 20.0
    """Between two heartbeats of one worker. Computed: a third of the default lease."""
    tell_seconds: float = 1.8e-3
    """Ask and tell of the searcher, one trial. Measured for regularised evolution on a CPU."""
    bytes_per_trial: float = 440.0
    """Of the store's file. Measured."""
    hours_between_failures: float = 50_000.0
    """Of one GPU. Assumed. A lost trial is trained again from its start."""


def all_reduce_seconds(search: Search, devices: int) -> float:
    """Return the seconds of all sums of one step: a ring's volume and a tree's depth."""
    if devices == 1:
        return 0.0
    volume = 2 * (devices - 1) / devices * search.all_reduce_bytes / search.bandwidth
    return volume + search.all_reduces * 2 * math.ceil(math.log2(devices)) * search.latency_seconds


def checkpoint_interval(search: Search, devices: int) -> float:
    """Return the seconds between saves that lose least (Young, 1974): sqrt(2 save failure)."""
    return math.sqrt(2 * search.checkpoint_seconds
                     * search.hours_between_failures * 3600 / devices)


def efficiency(search: Search, devices: int) -> float:
    """Return the share of the devices' time that computes: sums, saves and failures taken off."""
    step = search.compute_seconds + all_reduce_seconds(search, devices)
    interval = checkpoint_interval(search, devices)
    between = search.hours_between_failures * 3600 / devices
    lost = search.checkpoint_seconds / interval + (interval / 2 + search.restart_seconds) / between
    return search.compute_seconds / step * max(0.0, 1 - lost)


def trials_per_hour(farm: Farm, workers: int) -> float:
    """Return the trials an hour: the workers', or what the store and the searcher can serve."""
    survival = math.exp(-farm.trial_seconds / (farm.hours_between_failures * 3600))
    trained = workers / farm.trial_seconds * survival
    beats = workers / farm.heartbeat_seconds * farm.transaction_seconds  # share of the store
    served = max(0.0, 1 - beats) / (farm.transactions * farm.transaction_seconds)
    return 3600 * min(trained, served, 1 / farm.tell_seconds)


@dataclasses.dataclass(frozen=True)
class Config:
    """Predict the scaling of a search and of a farm of trials."""

    search: Search = Search()
    farm: Farm = Farm()
    devices: tuple[int, ...] = (1, 8, 64, 512)
    trials: int = 1_000_000


def main() -> None:
    """Print both tables."""
    config = tyro.cli(Config, description=__doc__)
    console = rich.console.Console(width=100)
    table = rich.table.Table("GPUs", "step s", "of which sums", "save every s", "efficiency",
                             "images a second, of one GPU's", title="Differentiable search")
    for devices in config.devices:
        sums, share = all_reduce_seconds(config.search, devices), efficiency(config.search, devices)
        table.add_row(str(devices), f"{config.search.compute_seconds + sums:.4f}",
                      f"{sums / (config.search.compute_seconds + sums):.1%}",
                      f"{checkpoint_interval(config.search, devices):.0f}", f"{share:.1%}",
                      f"{devices * share:.1f}")
    console.print(table)
    table = rich.table.Table("GPUs", "trials an hour", f"days for {config.trials:,} trials",
                             "store busy", "store GB", title="Farm of trials")
    farm = config.farm
    for devices in config.devices:
        rate = trials_per_hour(farm, devices)
        busy = farm.transaction_seconds * (rate / 3600 * farm.transactions
                                           + devices / farm.heartbeat_seconds)
        table.add_row(str(devices), f"{rate:,.0f}", f"{config.trials / rate / 24:,.1f}",
                      f"{busy:.2%}", f"{config.trials * farm.bytes_per_trial / 1e9:.1f}")
    console.print(table)
    limit = trials_per_hour(dataclasses.replace(farm, trial_seconds=1e-9), 1)
    console.print(f"The store and the searcher serve at most {limit:,.0f} trials an hour.")


if __name__ == "__main__":
    main()
