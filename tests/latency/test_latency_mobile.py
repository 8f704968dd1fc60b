"""Predictions of MnasNet networks against sums over decoded networks and against closed forms."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import latency, objectives, search
from jaxnas.costs import with_costs
from jaxnas.latency import mobile
from jaxnas.latency.tables import LatencyTable
from jaxnas.networks.mobile_grid import MobileGrid
from jaxnas.networks.mobile_stages import MobileModel, Stage
from jaxnas.search_spaces import MnasNet, mnasnet_costs
from jaxnas.searchers import random_search

GRID = MobileGrid((4, 6, 6, 9), (1, 2, 1, 3), (1, 2, 1, 2), 4, 2, 16)
SHAPE, CLASSES, OVERHEAD = (18, 18, 3), 10, 0.5
SPACE = MnasNet(GRID)
ARCHS = np.random.default_rng(0).integers(SPACE.num_choices, size=(200, 24), dtype=np.int32)


def predicted(price, grid=GRID, shape=SHAPE):
    """The prediction where a unit takes `price(name)` ms; nothing is measured."""
    def load_or_build(title, units, calibrations, **options):
        assert len({unit.name for unit in units}) == len(units) and title == "mnasnet"
        known = {unit.name: price(unit.name) for unit in units}
        assert len(calibrations) == 4 and all(
            name in known for _, _, counts in calibrations for name in counts)
        return LatencyTable(known, OVERHEAD)

    return latency.mobile_latency(grid, shape, num_classes=CLASSES, batch_size=1, directory=None,
                                  load_or_build=load_or_build)


def test_traced_prediction_is_the_sum_over_the_network():
    prices = {}
    generator = np.random.default_rng(0)
    found = predicted(lambda name: prices.setdefault(name, generator.exponential()))
    expected = [found.table.predict(mobile.mobile_counts(GRID.model(arch), SHAPE, CLASSES))
                for arch in ARCHS]
    np.testing.assert_allclose(jax.jit(found)(jnp.asarray(ARCHS)), expected, rtol=1e-5)
    np.testing.assert_allclose(found(ARCHS[3]), expected[3], rtol=1e-5)
    assert found(ARCHS.reshape(2, 100, -1)).shape == (2, 100)
    with pytest.raises(ValueError, match=r"archs must be \[..., 24\]"):
        found(ARCHS[:, :-1])


def test_layers_of_one_millisecond_count_layers():
    found = predicted(lambda name: float("conv" in name))
    depths = GRID.depths[np.arange(4), ARCHS.reshape(-1, 4, 6)[..., 5]].sum(-1)
    np.testing.assert_allclose(found(ARCHS), depths + OVERHEAD, rtol=1e-6)


def layer_multiply_adds(name):
    """Multiply-adds of a unit, from the costs of a network of one layer."""
    if name.startswith("skip"):
        return 0.0
    if name.startswith("head"):
        head, classes, height, width, inputs = map(int, re.findall(r"\d+", name))
        return float(head * (inputs * height * width + classes))
    operation, kernel, stride, expansion, outputs, ratio, at = re.fullmatch(
        r"(\w+)_k(\d)_s(\d)_e(\d)_o(\d+)_se([\d.]+)_at_(\S+)", name).groups()
    height, _, inputs = map(int, at.split("x"))
    stage = Stage(operation, int(kernel), int(stride), int(expansion), int(outputs), 1,
                  float(ratio))
    model = MobileModel((stage,), inputs, 1, 1)
    size = -(-height // int(stride))
    whole = mnasnet_costs.model_costs(model, num_classes=1, image_size=height, channels=1)
    return float(whole.multiply_adds - 9 * inputs * height ** 2 - int(outputs) * size ** 2 - 1)


def test_multiply_adds_as_prices_give_those_of_the_network():
    found = predicted(layer_multiply_adds)
    stem = 9 * SHAPE[2] * GRID.stem_filters * 9 ** 2
    expected = SPACE.multiply_adds(ARCHS, num_classes=CLASSES, image_size=18)
    np.testing.assert_allclose(found(ARCHS) - OVERHEAD + stem, expected, rtol=1e-5)


def test_skips_are_where_a_layer_has_stride_1_and_equal_widths():
    grid = MobileGrid((4,), (2,), (1,), 4, 1, 8)  # widths 3, 4, 5
    found = predicted(lambda name: float(name.startswith("skip_pool")), grid)
    arch = np.array([2, 0, 0, 0, 1, 0])            # pooled skips, two layers of width 4
    assert found(arch) == 2 + OVERHEAD             # both layers map 4 to 4
    assert found(arch + [0, 0, 0, 0, 1, 0]) == 1 + OVERHEAD   # 4 to 5, 5 to 5
    assert found(arch + [0, 0, 0, 1, 0, 0]) == OVERHEAD       # identity skips
    assert found(arch + [0, 0, 0, 0, 1, 2]) == OVERHEAD       # one layer, 4 to 5


def test_number_of_parts():
    # One stage, widths 1 however multiplied: 16 layers, at either stride, two skips, one head.
    grid = MobileGrid((1,), (1,), (1,), 1, 1, 4)
    assert len(mobile.mobile_units(grid, (8, 8, 1), num_classes=10)) == 16 + 2 + 1
    grid = MobileGrid((1,), (1,), (2,), 1, 1, 4)
    assert len(mobile.mobile_units(grid, (8, 8, 1), num_classes=10)) == 2 * 16 + 2 + 1


def test_units_are_the_layers_that_they_name():
    for unit in mobile.mobile_units(MobileGrid((2,), (1,), (2,), 3, 1, 4), (8, 8, 1),
                                    num_classes=10):
        x = jnp.ones((1, *unit.shape))
        variables = jax.eval_shape(unit.init, jax.random.key(0), x)
        shape = jax.eval_shape(unit.function, variables, x).shape
        assert unit.name.endswith("_at_" + "x".join(map(str, unit.shape)))
        if "conv" in unit.name:
            stride, outputs = map(int, re.search(r"_s(\d)_e\d_o(\d+)_", unit.name).groups())
            size = unit.shape[0] // stride
            assert shape == (1, size, size, outputs), unit.name
        else:
            assert shape == ((1, 10) if unit.name.startswith("head") else x.shape)


def test_latency_is_a_metric_of_a_search_under_jit():
    found = predicted(lambda name: float("conv" in name))

    def evaluator(key, archs):
        return {"accuracy": jnp.full(len(archs), 50.0)}

    priced = with_costs(evaluator, latency_ms=found, params=SPACE.num_parameters)
    searcher = random_search(SPACE, batch_size=5)
    reward = objectives.mnasnet_reward("accuracy", "latency_ms", target=6.0)
    history = jax.jit(lambda key: search.run(key, searcher, priced, reward, num_steps=4))(
        jax.random.key(1))
    archs = np.asarray(history.archs)
    np.testing.assert_allclose(history.metrics["latency_ms"], found(archs), rtol=1e-6)
    np.testing.assert_array_equal(history.metrics["params"], SPACE.num_parameters(archs))
    np.testing.assert_allclose(
        history.fitness, 50 * (np.asarray(found(archs)) / 6) ** -0.07, rtol=1e-5)
    with pytest.raises(ValueError, match="a metric 'accuracy' of its own"):
        with_costs(evaluator, accuracy=found)(jax.random.key(0), archs[0])
