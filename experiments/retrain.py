"""Retrain any genotype, by name or from a file, on any images.

    python -m experiments.retrain --genotype DARTS_V2
    python -m experiments.retrain --genotype runs/darts/<time>/genotype.json --num-seeds 3
    python -m experiments.retrain --genotype DARTS_V2 --preset paper   # CIFAR-10, on a GPU

Published for DARTS_V2 on CIFAR-10: 97.24 +- 0.09 % test accuracy, 600 epochs, 3.3M parameters.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, retraining, searching
from experiments.drawing import draw
from experiments.networks import make_network
from jaxnas import data, genotypes, reporting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(retraining.RetrainingConfig):
    """Train the network of one genotype from scratch and test it."""

    genotype: str = "DARTS_V2"
    """Published name, or the path of a genotype.json."""
    features: int = 8
    """Channels of the first cells or layers, where the genotype leaves them open."""
    layers: int = 5
    """Cells; reductions at one and two thirds. Spaces of equal stages put a third in each."""
    pool_norm: Literal["none", "affine"] = "none"
    """Batch normalisation after pools, as pt.darts has it."""
    auxiliary: bool = False
    """Auxiliary head after the second reduction; needs images of 24x24 or more."""
    auxiliary_weight: float = 0.4
    """Of its loss."""


PRESETS = {
    "small": Config(),
    "paper": Config(
        dataset="cifar10", features=36, layers=20, auxiliary=True, retrain_epochs=600,
        retrain_batch_size=96, retrain_lr=0.025, drop_path_rate=0.2, cutout_length=16,
    ),
}
SMOKE = Config(
    num_seeds=2, features=2, layers=3, retrain_epochs=1, retrain_batch_size=512,
)
PUBLISHED = {
    ("DARTS_V2", "cifar10"): reporting.Published(97.24, 0.09, "DARTS, table 1 (second order)"),
    ("DARTS_V1", "cifar10"): reporting.Published(97.00, None, "DARTS, table 1 (first order)"),
}
SYSTEMS = {"darts": "DARTS", "nasnet": "NASNet", "amoebanet": "AmoebaNet", "pnas": "PNAS",
           "enas_micro": "ENAS", "enas_macro": "ENAS", "mnasnet": "MnasNet", "nasrl": "NASRL",
           "nasbench201": "NAS-Bench-201"}
FACTS = {"training_code": True, "space_code": True, "training_hyperparameters": True}


def run(config: Config) -> None:
    """Train once a seed, test, report."""
    with common.validation():
        reporting.require_matplotlib()
        genotype = genotypes.load(config.genotype)
        dataset = data.load(config.dataset, data_dir=config.data_dir)
        retraining.check_retraining(config, dataset)
        if config.devices > 1:
            raise ValueError(f"retraining runs on one device, got devices={config.devices}.")
        network = make_network(genotype, config, dataset.num_classes)
        image = jax.ShapeDtypeStruct((2, *dataset.image_shape), jnp.float32)
        shapes = jax.eval_shape(  # refuses images that do not fit the network
            lambda: network.lazy_init(searching.random_key(0), image, train=True)
        )
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    facts = common.dataset_facts(
        dataset, {"train": len(dataset.train_labels), "test": len(dataset.test_labels)}
    )
    if config.dry_run:
        print(common.describe(config, dataset=facts, parameters=count))
        return
    programs = common.Programs()
    trainer = retraining.make_trainer(config, network, dataset, programs)
    with common.progress(config) as progress:
        if config.compile_only:
            programs.compile_all(progress)
            print(programs.report())
            return
        with common.open_run(config, "retrain", facts) as directory, \
                common.Interrupt() as interrupt:
            programs.compile_all(progress)
            retraining.check_memory(config, programs)
            state: dict[str, Any] = {
                "train": trainer.empty,
                "accuracies": np.full(config.num_seeds, np.nan, np.float32),
                "clock": np.zeros(1, np.float32),
            }
            restored = directory.restore(state)
            step = 0
            if restored is not None:
                step, state = restored.step, dict(restored.state)
                state |= {name: np.array(state[name]) for name in ("accuracies", "clock")}
            timer = common.StepTimer()
            runs = [retraining.Retraining("found", number, number, config.genotype, ())
                    for number in range(config.num_seeds)]

            def on_epoch(epoch: retraining.Epoch) -> None:
                nonlocal step
                step += 1
                if epoch.steps:
                    timer.record(epoch.seconds, epoch.steps)
                state["clock"][0] += epoch.seconds
                directory.save(step, state)

            complete = retraining.train_all(
                trainer, runs, state, searching.random_key(config.seed),
                epochs=config.retrain_epochs, done=step, metrics=directory.metrics,
                progress=progress, stop=lambda: interrupt.requested, on_epoch=on_epoch)
            _report(config, directory, genotype, programs, timer, state, count, complete)


def _report(config, directory, genotype, programs, timer, state, count, complete) -> None:
    path = directory.path
    (path / "genotype.json").write_text(genotypes.to_json(genotype), encoding="utf-8")
    accuracies = state["accuracies"][np.isfinite(state["accuracies"])]
    metrics = {"params": reporting.Metric(reporting.summarize([float(count)]))}
    if len(accuracies):
        name = config.genotype.upper().replace("-", "_")
        metrics = {"test_accuracy": reporting.Metric(
            reporting.summarize(accuracies.tolist()),
            published=PUBLISHED.get((name, config.dataset)),
        )} | metrics
    result = reporting.Result(
        complete=complete, experiment="retrain", system=SYSTEMS.get(genotype.space, genotype.space),
        architecture=reporting.Architecture(genotype.space, genotypes.to_json_dict(genotype)),
        metrics=metrics, evaluations=directory.retrained(),
        compilations=programs.count,
        seconds=reporting.Seconds(
            programs.seconds, 0.0, float(state["clock"][0]), directory.metrics.seconds
        ),
        step_seconds=timer.summary(), seed=config.seed,
        device=common.device_facts(config.devices), programs=programs.names,
    )
    draw(genotype, path / "cell", config.genotype)
    rows = [row for row in reporting.read_metrics(path / "metrics.jsonl") if row["kind"] == "epoch"]
    curves = {
        f"seed {number}": (
            [float(str(row["epoch"])) for row in rows if row["run"] == number],
            [float(str(row["train_accuracy"])) for row in rows if row["run"] == number],
        )
        for number in range(config.num_seeds)
    }
    curves = {name: curve for name, curve in curves.items() if curve[0]}
    if curves:
        reporting.plot_curves(curves, path / "history", "epoch", "training accuracy (%)")
    directory.write_result(result)
    reporting.write_checklist(path, FACTS)
    reporting.write_report(path)
    if complete:
        summary = metrics["test_accuracy"].found
        print(f"{config.genotype}, {count} parameters, test accuracy of {config.num_seeds} seeds: "
              f"{summary['mean']:.2f} +- {summary['std']:.2f} %\n{path / 'report.html'}")


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
