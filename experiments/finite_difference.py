"""How far is the published finite difference from the exact gradient of the alphas?

    python -m experiments.finite_difference              # both precisions, three seeds

The second-order part of DARTS's gradient is a Hessian-vector product. The paper takes a central
difference of length r = 0.01 for it; here both are computed on a supernet and compared for r from
1 to 1e-7. The error is relative to the second-order part alone. See docs/finite_differences.md.
"""

from __future__ import annotations

import dataclasses
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
class Config(common.CommonConfig):
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
        programs = common.Programs()
        errors: dict[str, np.ndarray] = {}
        for name, wide in (("float64", True), ("float32", False)):
            with jax.enable_x64(wide):
                measure = _program(config, space, dataset, splits, programs, name)
                if config.compile_only:
                    continue
                programs.compile_all(progress)
                rows = []
                with progress.phase(name, total=config.num_seeds) as bar:
                    for number in range(config.num_seeds):
                        if interrupt.requested:
                            break
                        key = jax.random.fold_in(searching.random_key(config.seed), number)
                        rows.append(np.asarray(measure(key)))
                        directory.metrics.write(
                            "event", event="errors", precision=name, run=number,
                            radii=list(config.radii), errors=rows[-1].tolist(),
                        )
                        bar.advance(1)
                if rows:
                    errors[name] = np.stack(rows)
        if config.compile_only:
            programs.compile_all(progress)
            print(programs.report())
            return
        _report(config, directory, programs, errors, not interrupt.requested)


def _program(config, space: DARTS, dataset, splits, programs, name: str):
    """Register key -> relative errors [R], one for each radius."""
    dtype = jnp.zeros(()).dtype
    net = space.supernet(
        features=config.features, num_layers=config.layers, num_classes=dataset.num_classes
    )
    inner = training.sgd(0.025, momentum=0.9, weight_decay=3e-4, clip_norm=None)

    def loss_fn(weights, alphas, batch):
        logits: Any = net.apply(weights, batch[0], space.weights(alphas))
        return training.cross_entropy(logits, batch[1])

    def optimizer(gradient: str, radius: float | jax.Array = 0.01):
        return bilevel(loss_fn, inner, optax.sgd(1.0), gradient=gradient, radius=radius)

    def batch(key, rows):
        chosen = jax.random.choice(key, jnp.asarray(rows), (config.batch_size,), replace=False)
        images = jnp.asarray(dataset.train_images)[chosen]
        images = data.normalize(images, dataset.mean, dataset.std, dataset.max_value, dtype)
        return images, jnp.asarray(dataset.train_labels)[chosen]

    def measure(key):
        keys = jax.random.split(key, 4)
        alphas = space.init_alphas(keys[0]).astype(dtype)
        image = jax.ShapeDtypeStruct((2, *dataset.image_shape), dtype)
        shape = jax.ShapeDtypeStruct(space.alphas_shape, dtype)
        weights = net.lazy_init(keys[1], image, shape)
        weights = jax.tree.map(lambda a: a.astype(dtype), weights)
        train, valid = batch(keys[2], splits.weights), batch(keys[3], splits.alphas)
        state = optimizer("unrolled").init(weights, alphas)
        # The same look-ahead without the second term: what the difference approximates is the rest.
        _, exact = optimizer("hessian_vector").gradient(state, train, valid)
        grads = jax.grad(loss_fn)(weights, alphas, train)
        updates, _ = inner.update(grads, state.inner_state, weights)
        ahead = optax.apply_updates(weights, updates)
        direct = jax.grad(loss_fn, 1)(ahead, alphas, valid)
        second = jnp.linalg.norm(exact - direct)

        def error(radius):
            _, published = optimizer("finite_difference", radius).gradient(state, train, valid)
            return jnp.linalg.norm(published - exact) / second

        # a loop, not a vmap: convolutions with a kernel a member are slow
        return jax.lax.map(error, jnp.array(config.radii, dtype))

    return programs.add(f"errors_{name}", jax.jit(measure), searching.random_key(0))


def _report(config, directory, programs, errors, complete: bool) -> None:
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
        evaluations=reporting.Evaluations(0, 0, 0), compilations=programs.count,
        seconds=reporting.Seconds(
            programs.seconds, 0.0, 0.0, directory.metrics.seconds
        ),
        step_seconds=common.StepTimer().summary(), seed=config.seed,
        device=common.device_facts(1), programs=programs.names,
        extra={"radii": list(config.radii),
               "errors": {name: values.tolist() for name, values in errors.items()}},
    )
    directory.write_result(result)
    reporting.write_checklist(path, {"training_code": True})
    reporting.write_report(path)


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
