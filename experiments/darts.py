"""DARTS on images: search a cell, derive it, retrain it beside random cells.

    python -m experiments.darts                       # digits, first order, 2 cores: minutes
    python -m experiments.darts --gradient hessian_vector    # the exact second order
    python -m experiments.darts --preset paper        # CIFAR-10 as published, on a GPU
    python -m experiments.darts --dataset images.npz  # your own: x_train, y_train, x_test, y_test
    python -m experiments.darts --max-latency 2       # milliseconds of the found network, here

Published for CIFAR-10 (spec. of the paper's table 1): 2.76 +- 0.09 % test error (second order).
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, memory, retraining, searching
from experiments.darts_latency import LatencyBound
from jaxnas import data, genotypes, parallel, reporting
from jaxnas.search_spaces import DARTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(retraining.RetrainingConfig):
    """DARTS: differentiable architecture search (https://arxiv.org/abs/1806.09055)."""

    num_seeds: int = 3
    """Retrainings of the found cell, and random cells retrained likewise."""
    gradient: Literal["first_order", "unrolled", "hessian_vector", "finite_difference"] = (
        "first_order"
    )
    """Of the alphas; hessian_vector and unrolled are the exact second order in two forms."""
    epochs: int = 3
    """Passes of the search over the weights' half of the training images."""
    batch_size: int = 64
    """Images of a search step, at each of the two levels."""
    features: int = 4
    """Channels of the first cells of the search network."""
    layers: int = 3
    """Cells of the search network."""
    weights_lr: float = 0.1
    """Peak learning rate of the weights."""
    weights_lr_min: float = 0.001
    """Final learning rate of the weights."""
    momentum: float = 0.9
    """Of the weights' SGD."""
    weight_decay: float = 3e-4
    """Of the weights, L2."""
    clip_norm: float = 5.0
    """Bound on the norm of the weights' gradient."""
    alphas_lr: float = 0.03
    """Learning rate of the alphas' Adam."""
    alphas_weight_decay: float = 1e-3
    """Of the alphas, L2."""
    alphas_fraction: float = 0.5
    """Share of the training images that trains the alphas."""
    limit: int | None = None
    """At most so many training images for the search."""
    selection: Literal["softmax", "raw"] = "softmax"
    """Whether edges are compared by probabilities or by alphas."""
    batch_norm: Literal["sync", "replica"] = "sync"
    """With several devices: statistics of the whole batch, or of each device's share."""
    scan_cells: bool = True
    """Loop over equal cells (compiles faster) instead of unrolling them."""
    scan_edges: bool = True
    """Loop over the edges of a cell (compiles much faster) instead of unrolling them."""
    remat: bool = True
    """Recompute an edge's operations in the backward pass: less memory."""
    share_programs: bool = True
    """First order: one gradient program for both levels; compiles less, does more work."""
    checkpoint_steps: int = 20
    """Steps between checkpoints of the search."""
    retrain_features: int = 8
    """Channels of the first cells of the retrained network."""
    retrain_layers: int = 3
    """Cells of the retrained network."""
    max_latency: float | None = None
    """Bound on the retrained network's inference on this device, milliseconds of a batch."""
    latency_batch_size: int = 16
    """Images of that batch."""
    latency_rate: float = 0.1
    """Of the ascent of the bound's multiplier, a search step."""


PRESETS = {
    "small": Config(),
    "second_order": Config(gradient="hessian_vector"),
    "fashion": Config(
        dataset="fashion_mnist", epochs=5, batch_size=64, features=8, layers=5, weights_lr=0.025,
        alphas_lr=1e-3, retrain_epochs=20, retrain_features=16, retrain_layers=8, limit=4000,
        retrain_lr=0.025, cutout_length=8, drop_path_rate=0.1,
    ),
    "paper": Config(
        dataset="cifar10", gradient="hessian_vector", epochs=50, batch_size=64, features=16,
        layers=8, weights_lr=0.025, alphas_lr=3e-4, checkpoint_steps=390, retrain_epochs=600,
        retrain_batch_size=96,
        retrain_features=36, retrain_layers=20, retrain_lr=0.025, drop_path_rate=0.2,
        cutout_length=16,
    ),
}
SMOKE = Config(
    num_seeds=2, epochs=1, batch_size=16, features=2, limit=96, checkpoint_steps=2,
    retrain_epochs=1, retrain_features=2, retrain_batch_size=512,
)
PUBLISHED = {"cifar10": reporting.Published(97.24, 0.09, "DARTS (second order), table 1")}
FACTS = {"training_code": True, "space_code": True, "method_code": True, "random_search": True,
         "same_pipeline": True, "multiple_runs": True}


def run(config: Config) -> None:
    """Search, derive, retrain, compare, report."""
    space = DARTS()
    with common.validation():
        reporting.require_matplotlib()
        dataset = data.load(config.dataset, data_dir=config.data_dir)
        splits = data.split_search(
            dataset, alphas_fraction=config.alphas_fraction, seed=config.seed, limit=config.limit
        )
        searching.check_search(config, dataset, splits)
        retraining.check_retraining(config, dataset)
        network = space.traced_network(
            features=config.retrain_features, layers=config.retrain_layers,
            num_classes=dataset.num_classes,
        )
        bound = None
        if config.max_latency is not None and not config.dry_run:
            bound = LatencyBound(config, space, dataset)
    sizes = {name: len(rows) for name, rows in splits._asdict().items()}
    facts = common.dataset_facts(dataset, {**sizes, "test": len(dataset.test_labels)})
    if config.dry_run:
        supernet = searching.make_supernet(config, space, dataset)
        shapes = jax.eval_shape(lambda: searching.initial_weights(
            supernet, space, dataset, searching.random_key(0)))
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        print(common.describe(config, dataset=facts, supernet_parameters=count))
        return
    programs = common.Programs()
    task = searching.make_task(config, space, dataset, splits, programs,
                               None if bound is None else bound.transformation())
    arch_shape = jax.ShapeDtypeStruct((2, 2 * space.num_nodes, 2), jnp.int32)
    trainer = retraining.make_trainer(config, network, dataset, programs, (arch_shape,))
    with common.progress(config) as progress:
        if config.compile_only:
            programs.compile_all(progress)
            print(programs.report())
            return
        with common.open_run(config, "darts", facts) as directory, \
                common.Interrupt() as interrupt:
            programs.compile_all(progress)
            retraining.check_memory(config, programs)
            memory.check_batch(
                programs, "batch_size", config.batch_size,
                set(programs.names) - {retraining.PROGRAM}, devices=config.devices)
            _Run(config, space, dataset, programs, task, trainer, directory, progress,
                 interrupt, bound).finish()


class _Run:
    """One run: what is carried is `state`, saved whole at every checkpoint."""

    def __init__(self, config, space, dataset, programs, task, trainer, directory, progress,
                 interrupt, bound=None):
        self.config, self.space, self.dataset, self.bound = config, space, dataset, bound
        self.programs, self.task, self.trainer = programs, task, trainer
        self.directory, self.progress, self.interrupt = directory, progress, interrupt
        self.timer, self.seconds = common.StepTimer(), {"search": 0.0, "retrain": 0.0}
        history = np.zeros((config.epochs + 1, *space.alphas_shape), np.float32)
        search = task.init()
        history[0] = space.weights(self._one(search.alphas))
        self.state = {
            "search": search,
            "history": history,  # softmax of alphas at the start and after every epoch
            "train": trainer.empty,
            "accuracies": np.full(2 * config.num_seeds, np.nan, np.float32),
            "clock": np.zeros(2, np.float32),  # seconds of search and of retraining so far
        }
        if bound is not None:
            self.state["derived"] = bound.nothing_derived()
        restored = directory.restore(self.state)
        self.step = 0  # search steps and then retraining epochs, all counted as one
        if restored is not None:
            self.step, self.state = restored.step, restored.state
            self.state = {**self.state, **{
                name: np.array(self.state[name]) for name in ("history", "accuracies", "clock")
            }}
            if bound is not None:
                self.state["derived"] = jax.tree.map(np.array, self.state["derived"])

    def _one(self, tree: Any) -> Any:
        return tree if self.config.devices == 1 else parallel.unreplicate(tree)

    def finish(self) -> None:
        """Go on from `step` to the end, or to an interruption."""
        done = self._search() and self._derive() and self._retrain()
        if not done:
            self.directory.save(self.step, self.state)
        self._report(complete=done)

    def _search(self) -> bool:
        config, task = self.config, self.task
        total, per_epoch = task.total_steps, task.steps_per_epoch
        losses: list[float] = []
        with self.progress.phase("search", total=total, completed=min(self.step, total)) as bar:
            while self.step < total:
                if self.interrupt.requested:
                    return False
                start = time.perf_counter()
                search, info = task.optimizer.update(
                    self.state["search"], task.batch("weights", self.step),
                    task.batch("alphas", self.step),
                )
                info = {name: float(value) for name, value in self._one(info).items()}
                jax.block_until_ready(search)
                elapsed = time.perf_counter() - start
                self.timer.record(elapsed)
                self.state["clock"][0] += elapsed
                if not np.isfinite(list(info.values())).all():
                    self.directory.metrics.write("event", event="diverged", step=self.step)
                    raise FloatingPointError(
                        f"the loss is not finite at search step {self.step}: {info}; lower "
                        "weights_lr or clip_norm. The last checkpoint is from before."
                    )
                self.state["search"] = search
                losses.append(info["train_loss"])
                self.directory.metrics.write("step", step=self.step, step_seconds=elapsed, **info)
                self.step += 1
                bar.advance(1, f"train {info['train_loss']:.3f} valid {info['valid_loss']:.3f}")
                if self.step % per_epoch == 0:
                    self._end_epoch(self.step // per_epoch)
                if self.step % config.checkpoint_steps == 0 or self.step == total:
                    self.directory.save(self.step, self.state)
        return True

    def _end_epoch(self, epoch: int) -> None:
        alphas = self._one(self.state["search"].alphas)
        self.state["history"][epoch] = self.space.weights(alphas)
        arch = self.space.discretize(alphas, selection=self.config.selection)
        bounded = {} if self.bound is None else {
            "expected_latency_ms": float(self.bound.expected(alphas))}
        self.directory.metrics.write(
            "epoch", epoch=epoch, phase="search", alphas_entropy_bits=searching.entropy(alphas),
            arch=np.asarray(arch).tolist(), **bounded,
        )

    def _derive(self) -> bool:
        """Derive under the bound, if there is one, once: what was measured is kept."""
        if self.bound is not None and not self.bound.is_derived(self.state["derived"]):
            alphas = self._one(self.state["search"].alphas)
            self.state["derived"] = self.bound.derive(alphas, self.config.selection)
            self.directory.save(self.step, self.state)
        return True

    def archs(self) -> np.ndarray:
        """Return [2 * num_seeds, L]: the found arch for every seed, then the random ones."""
        alphas = self._one(self.state["search"].alphas)
        found = np.asarray(self.space.discretize(alphas, selection=self.config.selection))
        key = jax.random.fold_in(searching.random_key(self.config.seed), 2)
        if self.bound is None:
            keys = jax.random.split(key, self.config.num_seeds)
            random = np.asarray(jax.vmap(self.space.sample)(keys))
        else:
            random = self.bound.random(key, self.config.num_seeds)
            if self.bound.is_derived(self.state["derived"]):
                found = self.state["derived"].arch
        return np.concatenate([np.stack([found] * self.config.num_seeds), random])

    def _retrain(self) -> bool:
        config = self.config
        runs = [
            retraining.Retraining("found" if number < config.num_seeds else "random", number,
                                  number % config.num_seeds, arch,
                                  (jnp.asarray(arch).reshape(2, -1, 2),))
            for number, arch in enumerate(self.archs())
        ]

        def on_epoch(epoch: retraining.Epoch) -> None:
            self.step += 1
            self.state["clock"][1] += epoch.seconds
            self.directory.save(self.step, self.state)

        return retraining.train_all(
            self.trainer, runs, self.state,
            jax.random.fold_in(searching.random_key(config.seed), 3),
            epochs=config.retrain_epochs, done=self.step - self.task.total_steps,
            metrics=self.directory.metrics, progress=self.progress,
            stop=lambda: self.interrupt.requested, on_epoch=on_epoch)

    def _report(self, complete: bool) -> None:
        config, path = self.config, self.directory.path
        archs = self.archs()
        genotype = self.space.decode(archs[0])
        (path / "genotype.json").write_text(genotypes.to_json(genotype), encoding="utf-8")
        accuracies = self.state["accuracies"]
        found, random = accuracies[: config.num_seeds], accuracies[config.num_seeds:]
        metrics = {}
        if np.isfinite(found).any():
            published = PUBLISHED.get(self.dataset.name)
            metrics["test_accuracy"] = reporting.Metric(
                reporting.summarize(found[np.isfinite(found)].tolist()),
                reporting.summarize(random[np.isfinite(random)].tolist())
                if np.isfinite(random).any() else None,
                published=published,
            )
        counts = [self._parameters(arch) for arch in archs[config.num_seeds - 1:]]
        metrics["params"] = reporting.Metric(
            reporting.summarize(counts[:1]), reporting.summarize(counts[1:])
        )
        extra, sentence = {}, ""
        if self.bound is not None and complete:
            metrics["latency_ms"], extra, sentence = self.bound.conclude(
                self.state["derived"], self._one(self.state["search"].alphas),
                archs[config.num_seeds:], random)
        evaluated = np.isfinite(accuracies)
        search, retrain = (float(value) for value in self.state["clock"])
        result = reporting.Result(
            complete=complete, experiment="darts", system="DARTS",
            architecture=reporting.Architecture(
                "darts", genotypes.to_json_dict(genotype), archs[0].tolist()
            ),
            metrics=metrics,
            evaluations=reporting.Evaluations(
                int(evaluated.sum()), len({tuple(a) for a in archs[evaluated].tolist()}), 0
            ),
            compilations=self.programs.count,
            seconds=reporting.Seconds(
                self.programs.seconds, search, retrain, self.directory.metrics.seconds
            ),
            step_seconds=self.timer.summary(), seed=config.seed,
            device=common.device_facts(config.devices), programs=self.programs.names,
            extra=extra,
        )
        self._draw(path, genotype, found, random)
        self.directory.write_result(result)
        reporting.write_checklist(path, FACTS)
        reporting.write_report(path)
        if complete:
            for name, values in (("found", found), ("random", random)):
                summary = reporting.summarize(values.tolist())
                print(f"test accuracy of {config.num_seeds} {name} networks: "
                      f"{summary['mean']:.2f} +- {summary['std']:.2f} %")
            if sentence:
                print(sentence)
            print(path / "report.html")

    def _parameters(self, arch: np.ndarray) -> float:
        network = self.space.network(
            self.space.decode(arch), features=self.config.retrain_features,
            layers=self.config.retrain_layers, num_classes=self.dataset.num_classes,
            auxiliary=False,
        )
        image = jnp.zeros((2, *self.dataset.image_shape))
        shapes = jax.eval_shape(
            lambda key: network.init(key, image, train=False), jax.random.key(0)
        )
        return float(sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])))

    def _draw(self, path: Path, genotype, found, random) -> None:
        reporting.draw_genotype(genotype, path / "cell", f"DARTS on {self.dataset.name}")
        epochs = min(self.step // self.task.steps_per_epoch, self.config.epochs)
        reporting.plot_alphas(
            self.state["history"][: epochs + 1], self.space.operations, path / "alphas"
        )
        steps: list[dict[str, Any]] = [
            row for row in reporting.read_metrics(path / "metrics.jsonl") if row["kind"] == "step"
        ]
        if steps:
            at = [row["step"] for row in steps]
            reporting.plot_curves(
                {"weights' split": (at, [row["train_loss"] for row in steps]),
                 "alphas' split": (at, [row["valid_loss"] for row in steps])},
                path / "history", "search step", "loss of the search network",
            )
        groups = {name: values[np.isfinite(values)].tolist()
                  for name, values in (("found", found), ("random", random))}
        if all(groups.values()):
            reporting.plot_groups(groups, path / "accuracy", "test accuracy (%)")


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
