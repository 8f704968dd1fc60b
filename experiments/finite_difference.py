"""How far is the published finite difference from the exact gradient of the alphas?

    python -m experiments.finite_difference              # both precisions, three seeds

The second-order part of DARTS's gradient is a Hessian-vector product. The paper takes a central
difference of length r = 0.01 for it; here both are computed on a supernet and compared for r from
1 to 1e-7. The error is relative to the second-order part alone. See docs/finite_differences.md.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, searching
from jaxnas import data, reporting, training
from jaxnas.search_spaces import DARTS
from jaxnas.searchers import bilevel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.DatasetConfig):
    """Compare the finite difference with the exact product, by step size and precision."""

    num_seeds: int = 3
    """Initialisations and batches."""
    features: int = 4
    """Channels of the first cells."""
    layers: int = 3
    """Cells."""
    batch_size: int = 8
    """Images a level."""
    radii: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
    """Lengths r of the perturbation; the published one is 0.01."""


PRESETS = {"small": Config()}
SMOKE = Config(num_seeds=1, features=2, batch_size=4, radii=(1e-2, 1e-5))


def run(config: Config) -> None:
    """Measure, print the table, draw it."""
    space = DARTS()
    with common.validation():
        reporting.require_matplotlib()
        if config.compile_only or config.devices > 1:
            raise ValueError(
                "--compile-only and --devices do not apply: this compiles as it measures, on one "
                "device."
            )
        dataset = data.load(config.dataset, data_dir=config.data_dir)
        splits = data.split_search(dataset, seed=config.seed)
        size = min(len(splits.weights), len(splits.alphas))
        if not 1 <= config.batch_size <= size:
            raise ValueError(f"batch_size must be in [1, {size}], got {config.batch_size}.")
        if not config.radii or min(config.radii) <= 0:
            raise ValueError(f"radii must be above 0, got {config.radii}.")
        if 0.01 not in config.radii:
            raise ValueError(f"radii must hold the published 0.01, got {config.radii}.")
    facts = common.dataset_facts(dataset, {k: len(v) for k, v in splits._asdict().items()})
    if config.dry_run:
        print(common.describe(config, dataset=facts))
        return
    with common.progress(config) as progress, \
            common.open_run(config, "finite_difference", facts) as directory, \
            common.Interrupt() as interrupt:
        programs: dict[str, Callable] = {}
        errors: dict[str, np.ndarray] = {}
        start = time.perf_counter()
        for name, wide in (("float64", True), ("float32", False)):
            with jax.enable_x64(wide):
                measure = _measure(config, space, dataset, splits, programs, name)
                rows: list[np.ndarray] = []
                with progress.phase(name, total=config.num_seeds) as bar:
                    while len(rows) < config.num_seeds and not interrupt.requested:
                        key = jax.random.fold_in(searching.random_key(config.seed), len(rows))
                        rows.append(measure(key))
                        directory.metrics.write(
                            "event", event="errors", precision=name, run=len(rows) - 1,
                            radii=list(config.radii), errors=rows[-1].tolist(),
                        )
                        bar.advance(1)
                if rows:
                    errors[name] = np.stack(rows)
        seconds = time.perf_counter() - start
        _report(config, directory, programs, errors, not interrupt.requested, seconds)


def _measure(config, space: DARTS, dataset, splits, programs, precision: str):
    """Return key -> relative errors [R], one for each radius.

    The pieces of the optimisers are programs by name, shared by all radii and both forms.
    """
    dtype = jnp.zeros(()).dtype
    net = space.supernet(
        features=config.features, num_layers=config.layers, num_classes=dataset.num_classes
    )
    inner = training.sgd(0.025, momentum=0.9, weight_decay=3e-4, clip_norm=None)

    def loss_fn(weights, alphas, batch):
        logits: Any = net.apply(weights, batch[0], space.weights(alphas))
        return training.cross_entropy(logits, batch[1])

    def optimizer(gradient: str, radius: float = 0.01):
        def program(name: str, function: Callable) -> Callable:
            # the radius is part of this one piece only
            label = f"{name}_{radius}" if name == "perturb" else name
            return programs.setdefault(f"{label}_{precision}", jax.jit(function))

        return bilevel(
            loss_fn, inner, optax.sgd(1.0), gradient=gradient, radius=radius, program=program
        )

    def batch(key, rows):
        chosen = jax.random.choice(key, jnp.asarray(rows), (config.batch_size,), replace=False)
        images = jnp.asarray(dataset.train_images)[chosen]
        images = data.normalize(images, dataset.mean, dataset.std, dataset.max_value, dtype)
        return images, jnp.asarray(dataset.train_labels)[chosen]

    @jax.jit
    def initial(key):
        keys = jax.random.split(key, 4)
        alphas = space.init_alphas(keys[0]).astype(dtype)
        image = jax.ShapeDtypeStruct((2, *dataset.image_shape), dtype)
        weights = net.lazy_init(keys[1], image, jax.ShapeDtypeStruct(alphas.shape, dtype))
        weights = jax.tree.map(lambda a: a.astype(dtype), weights)
        return weights, alphas, batch(keys[2], splits.weights), batch(keys[3], splits.alphas)

    def measure(key: jax.Array) -> np.ndarray:
        weights, alphas, train, valid = initial(key)
        exact = optimizer("hessian_vector")
        state = exact.init(weights, alphas)
        _, gradient = exact.gradient(state, train, valid)
        both, ahead = (programs[f"{name}_{precision}"] for name in ("gradients", "look_ahead"))
        _, (grads, _) = both(weights, alphas, train)
        # the first term of the gradient; the difference stands for the rest
        _, (_, direct) = both(ahead(weights, grads, state.inner_state), alphas, valid)
        second = jnp.linalg.norm(gradient - direct)
        found = (
            optimizer("finite_difference", radius).gradient(state, train, valid)[1]
            for radius in config.radii
        )
        return np.array([float(jnp.linalg.norm(g - gradient) / second) for g in found])

    return measure


def _report(config, directory, programs, errors, complete: bool, seconds: float) -> None:
    path = directory.path
    print("relative error of the second-order part (mean of "
          f"{config.num_seeds} seeds, largest in brackets)")
    print("r        " + "".join(f"{name:>24}" for name in errors))
    for column, radius in enumerate(config.radii):
        cells = (f"{e[:, column].mean():.2e} ({e[:, column].max():.2e})" for e in errors.values())
        print(f"{radius:<9.0e}" + "".join(f"{cell:>24}" for cell in cells))
    metrics = {}
    for name, values in errors.items():
        published = values[:, config.radii.index(0.01)]
        metrics[f"relative_error_{name}"] = reporting.Metric(
            reporting.summarize(published.tolist())
        )
    if errors:
        logs = [float(np.log10(radius)) for radius in config.radii]
        reporting.plot_curves(
            {name: (logs, np.log10(values.mean(0)).tolist()) for name, values in errors.items()},
            path / "errors", "log10 of the radius r", "log10 of the relative error",
        )
    result = reporting.Result(
        complete=complete, experiment="finite_difference", system="DARTS",
        architecture=reporting.Architecture("darts"), metrics=metrics,
        evaluations=reporting.Evaluations(0, 0, 0), compilations=len(programs),
        # programs compile at their first call: the seconds are not told apart
        seconds=reporting.Seconds(0.0, seconds, 0.0, directory.metrics.seconds),
        step_seconds=common.StepTimer().summary(), seed=config.seed,
        device=common.device_facts(1), programs=tuple(programs),
        extra={"radii": list(config.radii),
               "errors": {name: values.tolist() for name, values in errors.items()}},
    )
    directory.write_result(result)
    reporting.write_checklist(path, {"training_code": True})
    reporting.write_report(path)


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
