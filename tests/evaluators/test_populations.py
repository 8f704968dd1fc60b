"""A population on any number of devices is the same, and one that does not fit is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import parallel
from jaxnas.evaluators import Examples, children, recipes
from jaxnas.evaluators.populations import PopulationTooLarge, compile_population

RECIPE = recipes.Recipe(epochs=2, batch_size=8, learning_rate=0.05)
# Of Scaled, by hand: 64 x 10 weights and 10 biases as parameters, momentum and gradient, a counter.
STATE = 4 * (3 * 650 + 1)


class Scaled(nn.Module):
    @nn.compact
    def __call__(self, x, arch, *, train, drop_path_rate=0.0):
        return nn.Dense(10)(x.reshape(x.shape[0], -1) * (1.0 + arch[0]))


def trainer(form, recipe=RECIPE):
    return children.train_children(
        Scaled(), recipe, form=form, augment=lambda key, x: x / 16.0, normalize=lambda x: x / 16.0)


def examples():
    numbers = np.random.default_rng(0)
    rows = jnp.arange(48, dtype=jnp.int32)
    return Examples(jnp.asarray(numbers.integers(0, 17, (48, 8, 8, 1)), jnp.uint8), rows % 10,
                    rows[:32], rows[32:])


# 5 members are no multiple of 2 or 3.
@pytest.mark.parametrize("form, counts", [
    ("sequential", (None, 2)), pytest.param("vmap", (None, 1, 3), marks=pytest.mark.slow)])
def test_devices_change_nothing(form, counts):
    archs = np.arange(5, dtype=np.int32)[:, None]
    keys = children.member_keys(jax.random.key(0), jnp.asarray(archs))
    active = np.array([True, True, False, True, True])
    results = []
    for count in counts:
        devices = None if count is None else parallel.available_devices(count)[::-1]
        population = compile_population(trainer(form), 5, (1,), examples(), devices=devices)
        results.append(jax.tree.map(np.asarray, population.run(keys, archs, active)))
    assert results[0]["valid_loss"].shape == (5, 2)
    assert np.isnan(results[0]["valid_loss"]).any(1).tolist() == (~active).tolist()
    for result in results[1:]:
        for name, values in result.items():
            np.testing.assert_allclose(values, results[0][name], rtol=1e-5, err_msg=name)


def test_the_state_is_counted_before_compilation():
    data = examples()
    assert children.state_bytes(trainer("vmap"), (1,), data) == STATE
    with pytest.raises(PopulationTooLarge, match="must be at most 10, got 16: .* alone") as refused:
        compile_population(trainer("vmap"), 16, (1,), data, available_bytes=10 * STATE)
    assert refused.value.largest == 10
    devices = parallel.available_devices(2)
    with pytest.raises(PopulationTooLarge, match="at most 4, got 9"):  # 2 a device, not 5
        compile_population(
            trainer("vmap"), 9, (1,), data, devices=devices, available_bytes=3 * STATE - 1)
    for form in children.FORMS:
        with pytest.raises(PopulationTooLarge, match="not even one child") as refused:
            compile_population(trainer(form), 16, (1,), data, available_bytes=STATE - 1)
        assert refused.value.largest == 0


def test_the_largest_population_named_is_the_largest_that_fits():
    two = compile_population(trainer("vmap"), 2, (1,), examples()).memory
    assert two.required > two.state == 2 * STATE and two.available > 2 ** 20
    with pytest.raises(PopulationTooLarge, match="at most 2, got 5: the compiled") as refused:
        compile_population(
            trainer("vmap"), 5, (1,), examples(), available_bytes=max(two.required, 5 * STATE))
    assert refused.value.largest == 2


def test_wrong_arguments_fail_before_compilation():
    large = trainer("sequential", recipes.Recipe(batch_size=33))
    with pytest.raises(ValueError, match=r"batch_size must be in \[1, 32\]"):
        compile_population(large, 1, (1,), examples())
    with pytest.raises(ValueError, match="the population must be 1 or more"):
        compile_population(large, 0, (1,), examples())
    with pytest.raises(ValueError, match="devices must hold one at least"):
        compile_population(large, 1, (1,), examples(), devices=[])
