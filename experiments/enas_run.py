"""One run of `experiments.enas`: its loops, what it saves, what it reports."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from experiments import common, retraining, searching
from experiments.drawing import draw
from experiments.enas_search import genotype_of
from jaxnas import genotypes, reporting

PUBLISHED = {
    ("macro", "cifar10"): reporting.Published(
        95.77, None, "ENAS, https://arxiv.org/abs/1802.03268, macro, final network of 24 layers"),
    ("micro", "cifar10"): reporting.Published(
        96.46, None, "ENAS, https://arxiv.org/abs/1802.03268, micro, without cutout"),
}
HISTORY = ("loss", "accuracy", "reward", "baseline", "entropy")  # of an epoch


class Run:
    """What is carried is `state`, saved whole at every checkpoint.

    `step` counts epochs of the search, then the derivation, then epochs of retraining.
    """

    def __init__(self, config, space, network, dataset, programs, task, trainer, directory,
                 progress, interrupt, num_random):
        self.config, self.space, self.network, self.dataset = config, space, network, dataset
        self.programs, self.task, self.trainer = programs, task, trainer
        self.directory, self.progress, self.interrupt = directory, progress, interrupt
        self.timer = common.StepTimer()
        # Random ones are drawn before anything is known; the first num_seeds are the baseline.
        key = jax.random.fold_in(searching.random_key(config.seed), 2)
        self.random = np.asarray(jax.vmap(space.sample)(jax.random.split(key, num_random)))
        self.runs = config.num_seeds + num_random
        length = len(space.num_choices)
        self.state = {
            "search": task.init(),
            "history": np.full((config.epochs, len(HISTORY)), np.nan, np.float32),
            "derived": np.zeros((config.derive_samples, length), np.int32),
            "scores": np.full(config.derive_samples + num_random, np.nan, np.float32),
            "train": trainer.empty,
            "accuracies": np.full(self.runs, np.nan, np.float32),
            "clock": np.zeros(2, np.float32),  # seconds of search and of retraining so far
        }
        restored = directory.restore(self.state)
        self.step = 0
        if restored is not None:
            self.step, self.state = restored.step, dict(restored.state)
            self.state |= {name: np.array(self.state[name]) for name in (
                "history", "derived", "scores", "accuracies", "clock")}

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Go on from `step` to the end, or to an interruption."""
        done = self._search() and self._derive() and self._retrain()
        if not done:
            self.directory.save(self.step, self.state)
        self._report(done, facts)

    def _search(self) -> bool:
        config, task = self.config, self.task
        with self.progress.phase(
                "search", total=config.epochs, completed=min(self.step, config.epochs)) as bar:
            while self.step < config.epochs:
                if self.interrupt.requested:
                    return False
                epoch, start = self.step, time.perf_counter()
                state, trained = task.weights_epoch(self.state["search"], epoch)
                losses = np.asarray(trained["loss"])
                weights_seconds = time.perf_counter() - start
                if not np.isfinite(losses).all():
                    self.directory.metrics.write("event", event="diverged", epoch=epoch)
                    raise FloatingPointError(
                        f"the loss of the shared weights is not finite in epoch {epoch}; lower "
                        "weights_lr or set clip_norm. The last checkpoint is from before.")
                state, learnt = task.controller_epoch(state, epoch)
                rewards = np.asarray(learnt["reward"])
                seconds = time.perf_counter() - start
                self.timer.record(weights_seconds, len(losses))
                self.state["clock"][0] += seconds
                self.state["search"] = state
                archs = np.asarray(learnt["archs"]).reshape(rewards.size, -1)
                row = {
                    "loss": float(losses.mean()),
                    "accuracy": 100 * float(trained["accuracy"].mean()),
                    "reward": 100 * float(np.nan_to_num(rewards).mean()),
                    "baseline": 100 * float(learnt["baseline"][-1]),
                    "entropy": float(learnt["entropy"]),
                }
                self.state["history"][epoch] = [row[name] for name in HISTORY]
                self.directory.metrics.write(
                    "epoch", epoch=epoch, phase="search", weights_loss=row["loss"],
                    weights_accuracy=row["accuracy"], reward_accuracy=row["reward"],
                    baseline_accuracy=row["baseline"], controller_entropy_nats=row["entropy"],
                    evaluations=rewards.size, unique=len(np.unique(archs, axis=0)),
                    failed=int((~np.isfinite(rewards)).sum()), epoch_seconds=seconds)
                self.step += 1
                bar.advance(1, f"loss {row['loss']:.3f} reward {row['reward']:.1f} %")
                if self.step % config.checkpoint_epochs == 0 or self.step == config.epochs:
                    self.directory.save(self.step, self.state)
        return True

    def _derive(self) -> bool:
        if self.step > self.config.epochs:
            return True
        if self.interrupt.requested:
            return False
        start = time.perf_counter()
        archs, scores = self.task.derive(self.state["search"], self.random)
        self.state |= {"derived": np.array(archs), "scores": np.array(scores)}
        self.state["clock"][0] += time.perf_counter() - start
        everything = np.concatenate([self.state["derived"], self.random])
        for number, (arch, score) in enumerate(zip(everything.tolist(), scores.tolist())):
            group = "derived" if number < len(archs) else "random"
            failed = not np.isfinite(score)
            self.directory.metrics.write(
                "evaluation", arch=arch, group=group, phase="derive",
                shared_valid_accuracy=None if failed else score, fitness=None if failed else score,
                failed=failed, budget_unit="shared weights", budget=0)
        self.step += 1
        self.directory.save(self.step, self.state)
        return True

    @property
    def found(self) -> int:
        """The best of the derived archs: its place among them."""
        scores = self.state["scores"][:self.config.derive_samples]
        return int(np.argmax(np.where(np.isfinite(scores), scores, -np.inf)))

    def archs(self) -> np.ndarray:
        """Return [runs, L]: the found arch for every seed, then the random ones."""
        found = self.state["derived"][self.found]
        return np.concatenate([np.stack([found] * self.config.num_seeds), self.random])

    def _retrain(self) -> bool:
        config = self.config
        runs = [
            retraining.Retraining("found" if number < config.num_seeds else "random", number,
                                  number % config.num_seeds, arch, (jnp.asarray(arch),))
            for number, arch in enumerate(self.archs())]

        def on_epoch(epoch: retraining.Epoch) -> None:
            self.step += 1
            self.state["clock"][1] += epoch.seconds
            self.directory.save(self.step, self.state)

        return retraining.train_all(
            self.trainer, runs, self.state,
            jax.random.fold_in(searching.random_key(config.seed), 3),
            epochs=config.retrain_epochs, done=self.step - config.epochs - 1,  # 1: the derivation
            metrics=self.directory.metrics, progress=self.progress,
            stop=lambda: self.interrupt.requested, on_epoch=on_epoch)

    def ranking(self) -> tuple[np.ndarray, np.ndarray]:
        """Return percent by shared weights and trained alone, of the found and the random archs."""
        scores, accuracies = self.state["scores"], self.state["accuracies"]
        seeds = self.config.num_seeds
        alone = np.append(accuracies[:seeds].mean(), accuracies[seeds:])
        shared = np.append(scores[self.found], scores[self.config.derive_samples:])
        both = np.isfinite(alone) & np.isfinite(shared)
        return shared[both], alone[both]

    def _report(self, complete: bool, facts: Mapping[str, Any]) -> None:
        config, path, state = self.config, self.directory.path, self.state
        derived = self.step > config.epochs
        archs, genotype = self.archs(), None
        if derived:
            genotype = genotype_of(self.space, archs[0])
            (path / "genotype.json").write_text(genotypes.to_json(genotype), encoding="utf-8")
        groups = {"found": state["accuracies"][:config.num_seeds],
                  "random": state["accuracies"][config.num_seeds:][:config.num_seeds]}
        search, retrain = (float(value) for value in state["clock"])
        result = reporting.Result(
            complete=complete, experiment="enas", system="ENAS",
            architecture=reporting.Architecture(
                self.space.name, None if genotype is None else genotypes.to_json_dict(genotype),
                tuple(archs[0].tolist()) if derived else None),
            metrics=self._metrics(groups) if derived else {},
            evaluations=self.directory.retrained(),
            compilations=self.programs.count,
            seconds=reporting.Seconds(
                self.programs.seconds, search, retrain, self.directory.metrics.seconds),
            step_seconds=self.timer.summary(), seed=config.seed,
            device=common.device_facts(config.devices), programs=self.programs.names,
            extra=self._extra())
        self._draw(path, genotype, groups)
        self.directory.write_result(result)
        reporting.write_checklist(path, facts)
        reporting.write_report(path)
        if complete:
            for name, values in groups.items():
                summary = reporting.summarize(values.tolist())
                print(f"test accuracy of {config.num_seeds} {name} networks: "
                      f"{summary['mean']:.2f} +- {summary['std']:.2f} %")
            means = [values[np.isfinite(values)].mean() for values in groups.values()
                     if np.isfinite(values).any()]
            if len(means) == 2:
                print(retraining.verdict(*means))
            tau = result.extra["kendall_tau"]
            print(f"Kendall's tau of shared weights and training alone: {tau}")
            print(path / "report.html")

    def _metrics(self, groups: Mapping[str, np.ndarray]) -> dict[str, reporting.Metric]:
        config, scores = self.config, self.state["scores"]
        finite = {name: values[np.isfinite(values)].tolist() for name, values in groups.items()}
        metrics = {}
        if finite["found"]:
            metrics["test_accuracy"] = reporting.Metric(
                reporting.summarize(finite["found"]),
                reporting.summarize(finite["random"]) if finite["random"] else None,
                published=PUBLISHED.get((config.space, self.dataset.name)))
        others = scores[config.derive_samples:]
        if np.isfinite(scores[self.found]) and np.isfinite(others).any():
            metrics["shared_valid_accuracy"] = reporting.Metric(
                reporting.summarize([float(scores[self.found])]),
                reporting.summarize(others[np.isfinite(others)].tolist()))
        counts = [float(self.network.count(arch, self.dataset.image_shape))
                  for arch in self.archs()[config.num_seeds - 1:][:config.num_seeds + 1]]
        metrics["params"] = reporting.Metric(
            reporting.summarize(counts[:1]), reporting.summarize(counts[1:]))
        return metrics

    def _extra(self) -> dict[str, object]:
        config, scores = self.config, self.state["scores"]
        shared, alone = self.ranking()
        tau = p_value = None
        if len(shared) > 1:
            tau, p_value = (float(v) if np.isfinite(v) else None  # all equal: there is no tau
                            for v in scipy.stats.kendalltau(shared, alone))
        epochs = min(self.step, config.epochs)
        samples = config.controller_steps * config.controller_samples
        derived = scores[:config.derive_samples]
        return {
            "kendall_tau": tau, "kendall_p_value": p_value, "ranked_architectures": len(shared),
            "ranked": {"shared_valid_accuracy": shared.tolist(), "test_accuracy": alone.tolist()},
            "derived_valid_accuracy": derived[np.isfinite(derived)].tolist(),
            "controller_evaluations": epochs * samples,
            "shared_steps": epochs * self.task.steps_per_epoch,
        }

    def _draw(self, path: Path, genotype: Any, groups: Mapping[str, np.ndarray]) -> None:
        if genotype is not None:
            draw(genotype, path / "architecture", f"ENAS {self.config.space} on "
                                                  f"{self.dataset.name}")
        history = self.state["history"][:min(self.step, self.config.epochs)]
        if len(history):
            epochs = list(range(1, len(history) + 1))
            reporting.plot_curves(
                {label: (epochs, history[:, HISTORY.index(name)].tolist()) for label, name in (
                    ("shared weights, training", "accuracy"), ("controller's samples", "reward"),
                    ("baseline", "baseline"))},
                path / "history", "epoch", "accuracy (%)")
            reporting.plot_curves(
                {"controller": (epochs, history[:, HISTORY.index("entropy")].tolist())},
                path / "entropy", "epoch", "entropy (nats)")
        values = {name: group[np.isfinite(group)].tolist() for name, group in groups.items()}
        if all(values.values()):
            reporting.plot_groups(values, path / "accuracy", "test accuracy (%)")
        shared, alone = self.ranking()
        if len(shared) > 1:
            order = np.argsort(shared)
            reporting.plot_curves(
                {"an architecture each": (shared[order].tolist(), alone[order].tolist())},
                path / "ranking", "accuracy with shared weights (%)", "trained alone (%)")
