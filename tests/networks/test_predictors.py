"""Accuracy predictors: parameter counts, what they can and cannot tell apart, folds, fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxnas.networks.predictor_ensembles import member_weights, predictor_ensemble
from jaxnas.networks.predictors import (LSTMPredictor, MLPPredictor, block_layout, decision_layout,
                                        initial_params)
from jaxnas.search_spaces import PNAS, GrowingPNAS

GROWING = GrowingPNAS(PNAS(num_blocks=3, operations=PNAS().operations[:4]))
BLOCKS = block_layout(GROWING.num_choices, GROWING.columns, GROWING.absent)
DECISIONS = decision_layout((3, 2, 4))
KEY = jax.random.key(0)


def draw(predictor, length):
    return initial_params(KEY, predictor, length, jnp.float32(0.86))


def test_layouts():
    assert DECISIONS.tables == (0, 1, 2) and DECISIONS.table_sizes == {0: 3, 1: 2, 2: 4}
    # one table for sources (4 of the third block), one for operations (4 and "absent")
    assert BLOCKS.tables == (1, 0, 1, 0) * 3 and BLOCKS.table_sizes == {1: 4, 0: 5}
    present = BLOCKS.present(jnp.array([0, 1, 1, 2] + [0, 4, 0, 4] * 2))
    np.testing.assert_array_equal(present, [True, False, False])
    with pytest.raises(ValueError, match="tables must name one table for each"):
        block_layout((2, 2, 2), ("source", "operation"))


def test_sizes_and_first_prediction():
    params = draw(MLPPredictor(BLOCKS, 100, 100), 12)
    sizes = {path: leaf.size for path, leaf in
             ((path[0].key, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)
              if path[-1].key != "bias")}
    # two tables of 5 and 4 rows; a block is 4 tokens
    assert sizes == {"embeddings": 900, "Dense_0": 40_000, "Dense_1": 10_000, "accuracy": 100}
    assert np.abs(params["embeddings"]).max() <= 0.1 < np.abs(params["Dense_1"]["kernel"]).max()
    np.testing.assert_allclose(params["accuracy"]["bias"], [1.815], atol=1e-3)  # PNAS has 1.8
    lstm = draw(LSTMPredictor(BLOCKS, 100, 100), 12)
    assert lstm["recurrent"].shape == (100, 400) and lstm["input"]["kernel"].shape == (100, 400)


@pytest.mark.parametrize("kind", [MLPPredictor, LSTMPredictor])
def test_absent_blocks_count_for_nothing(kind):
    small = block_layout(PNAS(num_blocks=1, operations=PNAS().operations[:4]).num_choices,
                         GROWING.columns)
    cell, rest = [1, 2, 0, 3], [0, 4, 0, 4] * 2
    padded = kind(BLOCKS, 8, 8)
    params = draw(padded, 12)
    alone = kind(small, 8, 8)
    rows = {"embeddings": params["embeddings"][np.array([0, 1, 4, 5, 6, 7])]}
    np.testing.assert_allclose(
        padded.apply({"params": params}, jnp.array(cell + rest)),
        alone.apply({"params": params | rows}, jnp.array(cell)), rtol=1e-5)


def test_the_mean_forgets_the_order_of_blocks_and_the_lstm_does_not():
    first, second, third = [0, 1, 1, 2], [1, 0, 0, 3], [0, 0, 0, 0]
    archs = jnp.array([first + second + third, third + first + second])
    for kind, same in ((MLPPredictor, True), (LSTMPredictor, False)):
        predictor = kind(BLOCKS, 8, 8)
        params = draw(predictor, 12)
        one, other = (predictor.apply({"params": params}, arch) for arch in archs)
        assert (abs(float(one - other)) < 1e-6) == same


def test_folds():
    mask = jnp.arange(20) % 3 > 0  # 13 observations
    weights = np.asarray(jax.jit(member_weights, static_argnums=2)(KEY, mask, 5))
    assert not weights[:, ~np.asarray(mask)].any()
    left_out = np.asarray(mask) & (weights == 0)
    np.testing.assert_array_equal(left_out.sum(0), mask)  # every observation by one member
    assert sorted(left_out.sum(1)) == [2, 2, 3, 3, 3]
    assert (weights != member_weights(jax.random.key(1), mask, 5)).any()


@pytest.mark.parametrize("kind", [MLPPredictor, LSTMPredictor])
def test_ranks_larger_cells_than_it_was_fitted_to(kind):
    # Fitness is the mean value of the operations; fit on 1 block, predict 2 blocks.
    value = np.array([-1.0, 0.0, 0.5, 2.0])
    ensemble = predictor_ensemble(kind(BLOCKS, 8, 16), num_steps=60)
    fit, predict = jax.jit(ensemble.fit), jax.jit(ensemble.predict)

    def fitness(archs):
        operations = np.asarray(archs)[:, 1::2]
        return np.where(operations < 4, np.append(value, 0)[operations], 0).sum(1) / (
            operations < 4).sum(1)

    small = np.asarray(GROWING.smallest()[0])  # 36
    buffer = np.zeros((50, 12), np.int32)
    buffer[:36] = small
    mask = jnp.arange(50) < 36
    targets = jnp.asarray(np.pad(70 + fitness(small), (0, 14), constant_values=np.nan), jnp.float32)
    model = fit(KEY, jnp.asarray(buffer), targets, mask)
    draws = jax.vmap(PNAS(2, PNAS().operations[:4]).sample)(jax.random.split(KEY, 200))
    larger = GROWING.pad(np.asarray(draws))
    mean, std = predict(model, jnp.asarray(larger))
    assert stats.spearmanr(mean, fitness(larger))[0] > (0.8 if kind is MLPPredictor else 0.5)
    assert (std > 0).all() and abs(float(mean.mean()) - 70) < 2
    # What is masked out changes nothing, and no other program is compiled for fewer.
    other = fit(KEY, jnp.asarray(np.where(mask[:, None], buffer, 1)), targets, mask)
    np.testing.assert_array_equal(predict(other, jnp.asarray(larger))[0], mean)
    fit(KEY, jnp.asarray(buffer), targets, mask & (jnp.arange(50) < 7))
    assert fit._cache_size() == 1


def test_nothing_observed_and_equal_fitness():
    ensemble = predictor_ensemble(MLPPredictor(DECISIONS, 4, 4), num_steps=3)
    archs, fit = jnp.zeros((4, 3), jnp.int32), jax.jit(ensemble.fit)
    for fitness, mask, expected in ((jnp.full(4, jnp.nan), jnp.zeros(4, bool), 0.0),
                                    (jnp.full(4, 5.0), jnp.ones(4, bool), 5.0)):
        mean, std = ensemble.predict(fit(KEY, archs, fitness, mask), archs)
        assert np.isfinite(mean).all() and np.isfinite(std).all()
        np.testing.assert_allclose(mean, expected, atol=0.6)


@pytest.mark.parametrize("options, message", [
    ({"members": 1}, "members must be 2 or more"), ({"num_steps": 0}, "num_steps must be"),
    ({"learning_rate": 0.0}, "learning_rate must be above 0")])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        predictor_ensemble(MLPPredictor(DECISIONS), **options)
