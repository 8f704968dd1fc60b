"""One run of `experiments.darts`: its loops, what it saves, what it reports."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, retraining, searching
from jaxnas import costs, distributed, genotypes, leaves, parallel, reporting

PUBLISHED = {"cifar10": reporting.Published(97.24, 0.09, "DARTS (second order), table 1")}


class Run:
    """What is carried is `state`, saved whole at every checkpoint."""

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
        restored = directory.restore({**self.state, "search": task.shapes})
        self.step = 0  # search steps and then retraining epochs, all counted as one
        if restored is not None:
            self.step, self.state = restored.step, restored.state
            self.state = {**self.state, "search": task.place(self.state["search"]), **{
                name: np.array(self.state[name]) for name in ("history", "accuracies", "clock")
            }}
            if bound is not None:
                self.state["derived"] = jax.tree.map(np.array, self.state["derived"])

    def _one(self, tree: Any) -> Any:
        return tree if self.config.all_devices == 1 else parallel.unreplicate(tree)

    def finish(self, facts: Mapping[str, bool]) -> None:
        """Go on from `step` to the end, or to an interruption; `facts` are of the checklist.

        Of several processes all search. The first does what follows, and the others wait for it
        here, where a signal to all does not end them before it has saved.
        """
        self._check_agreement("the search at its start")
        searched = self._search()
        self._check_agreement("the search at its end")
        if jax.process_index() != 0:
            distributed.leave()
            return
        done = searched and self._derive() and self._retrain()
        if not done:
            self._save()
        self._report(done, facts)

    def _check_agreement(self, what: str) -> None:
        """Check that all processes have the same step and state, so that one genotype follows."""
        if jax.process_count() > 1:
            _, content = leaves.pack({"step": self.step, "search": self._saved()["search"]})
            distributed.check_equal(what, content.tobytes())

    def _saved(self) -> dict[str, Any]:
        """Return what a checkpoint holds: the state with one copy of what all devices have."""
        if self.config.all_devices == 1:
            return self.state
        return {**self.state, "search": parallel.host_copy(self.state["search"])}

    def _save(self) -> None:
        if jax.process_index() == 0:
            self.directory.save(self.step, self._saved())

    def _search(self) -> bool:
        config, task = self.config, self.task
        total, per_epoch = task.total_steps, task.steps_per_epoch
        with self.progress.phase("search", total=total, completed=min(self.step, total)) as bar:
            while self.step < total:
                if distributed.any_process(self.interrupt.requested):
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
                self.directory.metrics.write("step", step=self.step, step_seconds=elapsed, **info)
                self.step += 1
                bar.advance(1, f"train {info['train_loss']:.3f} valid {info['valid_loss']:.3f}")
                if self.step % per_epoch == 0:
                    self._end_epoch(self.step // per_epoch)
                if self.step % config.checkpoint_steps == 0 or self.step == total:
                    self._save()
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
            self._save()
        return True

    def archs(self) -> np.ndarray:
        """Return [2 * num_seeds, L]: the found arch for every seed, then the random ones."""
        alphas = self._one(self.state["search"].alphas)
        found = np.asarray(self.space.discretize(alphas, selection=self.config.selection))
        if self.bound is not None and self.bound.is_derived(self.state["derived"]):
            found = self.state["derived"].arch
        return np.concatenate([np.stack([found] * self.config.num_seeds), self.random])

    @functools.cached_property
    def random(self) -> np.ndarray:
        """[num_seeds, L], the random archs."""
        key = jax.random.fold_in(searching.random_key(self.config.seed), 2)
        if self.bound is not None:
            return self.bound.random(key, self.config.num_seeds)
        keys = jax.random.split(key, self.config.num_seeds)
        return np.asarray(jax.jit(jax.vmap(self.space.sample))(keys))

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
            self._save()

        return retraining.train_all(
            self.trainer, runs, self.state,
            jax.random.fold_in(searching.random_key(config.seed), 3),
            epochs=config.retrain_epochs, done=self.step - self.task.total_steps,
            metrics=self.directory.metrics, progress=self.progress,
            stop=lambda: self.interrupt.requested, on_epoch=on_epoch)

    def _report(self, complete: bool, facts: Mapping[str, bool]) -> None:
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
        search, retrain = (float(value) for value in self.state["clock"])
        result = reporting.Result(
            complete=complete, experiment="darts", system="DARTS",
            architecture=reporting.Architecture(
                "darts", genotypes.to_json_dict(genotype), archs[0].tolist()
            ),
            metrics=metrics,
            evaluations=self.directory.retrained(),
            compilations=self.programs.count,
            seconds=reporting.Seconds(
                self.programs.seconds, search, retrain, self.directory.metrics.seconds
            ),
            step_seconds=self.timer.summary(), seed=config.seed,
            device=common.device_facts(config.all_devices), programs=self.programs.names,
            extra=extra,
        )
        self._draw(path, genotype, found, random)
        self.directory.write_result(result)
        reporting.write_checklist(path, facts)
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
        return float(costs.cost(network, self.dataset.image_shape).parameters)

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
