"""A network written as StableHLO computes, read back, what it computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import export, latency
from jaxnas.genotypes import CellGenotype, Edge, Genotype
from jaxnas.networks.pair_network import PairNetwork

SHAPE = (8, 8, 3)


@pytest.fixture(scope="module")
def network():
    cell = CellGenotype((Edge("conv_1x1", 0), Edge("skip_connect", 1)), (2,))
    return PairNetwork(Genotype(cell, cell, "nasnet"), features=2, cells_per_stage=1)


@pytest.fixture(scope="module")
def variables(network):
    key, image = jax.random.key(0), jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)
    return jax.jit(lambda key: network.lazy_init(key, image, train=False))(key)


def test_round_trip(network, variables, tmp_path):
    paths = export.write(network, variables, SHAPE, tmp_path / "new", "small", batch_size=2)
    images = jax.random.normal(jax.random.key(1), (2, *SHAPE))
    loaded = export.read_variables(paths.variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(variables))
    expected = jax.jit(lambda v, x: network.apply(v, x, train=False)[0])(variables, images)
    np.testing.assert_allclose(export.read(paths.program)(loaded, images), expected, rtol=1e-6)
    assert "stablehlo" in paths.text.read_text()


def test_wrong_input(network, variables, tmp_path):
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        export.write(network, variables, SHAPE, tmp_path, "small", batch_size=0)
    with pytest.raises(ValueError, match="may hold no '/'"):
        export.flatten({"params": {"a/b": np.zeros(1)}})
    (tmp_path / "bad.jaxexport").write_bytes(b"no flatbuffer at all")
    with pytest.raises(ValueError, match="is no exported program"):
        export.read(tmp_path / "bad.jaxexport")


def test_latency_is_measured_without_compilation():
    found = latency.measure(lambda x: (x @ x).sum(), jnp.ones((64, 64)), batch_size=64, repeats=5)
    assert 0 < found.p10_ms <= found.median_ms <= found.p90_ms
    assert found.compile_seconds > 0 and found.batch_size == 64 and found.device.startswith("cpu")
    with pytest.raises(ValueError, match="repeats must be 1 or more"):
        latency.measure(lambda x: x, jnp.ones(1), batch_size=1, repeats=0)
