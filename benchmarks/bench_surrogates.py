"""How well do surrogates rank architectures that they were not fitted to?

    python -m benchmarks.bench_surrogates          # minutes; needs scikit-learn
    python -m benchmarks.bench_surrogates --models gp ridge --sizes 100 --seeds 3

NAS-Bench-201, CIFAR-10 validation accuracy after 12 epochs. Each seed draws the observed cells and
2,000 held-out ones; figures are Spearman's rank correlation on these, among all and among their
best fifth. Every model sees the same cells, canonical, and what the searchers give it: normal
scores of the accuracy. Ours have one program for all numbers of observations (a buffer and a mask);
scikit-learn's random forest and ridge regression see one-hot decisions. The baseline "parameters"
predicts the number of parameters and is fitted to nothing. Prints a JSON line a model and size, and
a table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from benchmarks import common
from jaxnas import data, encodings
from jaxnas.base import Surrogate
from jaxnas.networks.predictor_ensembles import predictor_ensemble
from jaxnas.networks.predictors import LSTMPredictor, MLPPredictor, decision_layout
from jaxnas.search_spaces import NASBench201
from jaxnas.search_spaces.nasbench201 import EDGES, OPERATIONS
from jaxnas.searchers import feature_kernel, gaussian_process, hamming_kernel, observations

METRIC, HELD_OUT = "cifar10_valid_accuracy_e12", 2000
SPACE = NASBench201()
# (observed [N, L], scores [N], seed, queries [M, L]) -> prediction [M]
Model = Callable[[np.ndarray, np.ndarray, int, np.ndarray], np.ndarray]


def ours(surrogate: Surrogate, capacity: int) -> Model:
    """Fit one of ours in a buffer of `capacity` rows."""
    fit, predict = jax.jit(surrogate.fit), jax.jit(surrogate.predict)

    def model(archs: np.ndarray, scores: np.ndarray, seed: int, queries: np.ndarray) -> np.ndarray:
        rows = capacity - len(archs)
        fitted = fit(jax.random.key(seed), jnp.asarray(np.pad(archs, ((0, rows), (0, 0)))),
                     jnp.asarray(np.pad(scores, (0, rows))), jnp.arange(capacity) < len(archs))
        return np.asarray(predict(fitted, jnp.asarray(queries))[0])

    return model


def theirs(make: Callable[[int], object]) -> Model:
    """Fit a regressor of scikit-learn."""
    def model(archs: np.ndarray, scores: np.ndarray, seed: int, queries: np.ndarray) -> np.ndarray:
        regressor = make(seed)
        regressor.fit(features(archs), scores)  # type: ignore[attr-defined]
        return regressor.predict(features(queries))  # type: ignore[attr-defined]

    return model


def forest(seed: int) -> object:
    """Make a random forest with scikit-learn's defaults."""
    from sklearn.ensemble import RandomForestRegressor
    return RandomForestRegressor(random_state=seed)


def ridge(seed: int) -> object:
    """Make a ridge regression with scikit-learn's defaults."""
    from sklearn.linear_model import Ridge
    del seed
    return Ridge()


def features(archs: np.ndarray) -> np.ndarray:
    """Return one-hot decisions."""
    return np.asarray(encodings.one_hot(jnp.asarray(archs), SPACE.num_choices))


def path_features(archs: jax.Array) -> jax.Array:
    """Return which of 100 paths a cell has."""
    return encodings.paths(archs, EDGES, SPACE.num_choices, absent=OPERATIONS.index("none"))


def make_models(names: Sequence[str], capacity: int) -> dict[str, Model]:
    """Build the models of some names."""
    layout = decision_layout(SPACE.num_choices)
    models: dict[str, Model] = {
        "mlp": ours(predictor_ensemble(MLPPredictor(layout, 20, 50), num_steps=100,
                                       learning_rate=0.02), capacity),
        "lstm": ours(predictor_ensemble(LSTMPredictor(layout, 20, 50), num_steps=100,
                                        learning_rate=0.02), capacity),
        "gp": ours(gaussian_process(hamming_kernel(SPACE.num_choices)), capacity),
        "gp_paths": ours(gaussian_process(feature_kernel(path_features)), capacity),
        "forest": theirs(forest), "ridge": theirs(ridge),
        "parameters": lambda archs, scores, seed, queries: SPACE.num_parameters(queries),
    }
    return {name: models[name] for name in names}


MODELS = ("mlp", "lstm", "gp", "gp_paths", "forest", "ridge", "parameters")


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, rank, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[50, 100, 200])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it works")
    options = parser.parse_args(argv)
    if options.seeds < 1 or min(options.sizes) < 5:
        parser.error("--seeds must be 1 or more, and --sizes 5 or more.")
    sizes, num_seeds = options.sizes, options.seeds
    if options.smoke:
        sizes, num_seeds = [20], 2
    table = data.load_table("nasbench201")
    accuracy = table.metric(METRIC).astype(np.float32)
    archs = np.asarray(jax.jit(jax.vmap(SPACE.canonical))(jnp.asarray(table.archs)))
    models = make_models(options.models, max(sizes))
    lines = []
    for name, model in models.items():
        for size in sizes:
            correlations, among_best, seconds = [], [], []
            for seed in range(num_seeds):
                drawn = np.random.default_rng(seed).permutation(len(archs))
                seen, held_out = drawn[:size], drawn[-HELD_OUT:]
                scores = np.asarray(observations.normal_scores(
                    jnp.asarray(accuracy[seen]), jnp.ones(size, bool)))
                for _ in range(1 if seconds else 2):  # once to compile
                    start = time.perf_counter()
                    predicted = model(archs[seen], scores, seed, archs[held_out])
                seconds.append(time.perf_counter() - start)
                best = accuracy[held_out] >= np.quantile(accuracy[held_out], 0.8)
                correlations.append(stats.spearmanr(predicted, accuracy[held_out])[0])
                among_best.append(stats.spearmanr(predicted[best], accuracy[held_out][best])[0])
            row = {"model": name, "observed": size, "seeds": num_seeds,
                   **{key: [round(float(np.mean(values)), 3), round(float(np.std(values)), 3)]
                      for key, values in (("spearman", correlations),
                                          ("spearman_of_the_best_fifth", among_best))}}
            common.record("surrogates", row, common.timing(np.array(seconds)))
            lines.append((name, size, row))
    print("model      observed  Spearman, mean +- std   of the best fifth")
    for name, size, row in lines:
        (mean, std), (best_mean, best_std) = row["spearman"], row["spearman_of_the_best_fifth"]
        print(f"{name:10} {size:8}  {mean:8.3f} +- {std:.3f}  {best_mean:12.3f} +- {best_std:.3f}")


if __name__ == "__main__":
    main()
