"""What programs need and devices have, in bytes."""

import jax
import jax.numpy as jnp
import pytest

from jaxnas import device_memory


def test_free_bytes_of_the_host():
    free = device_memory.free_bytes(jax.devices()[0])
    assert free is None or 2 ** 20 < free < 2 ** 50


def test_program_bytes_by_hand():
    shape = jax.ShapeDtypeStruct((100, 3), jnp.float32)
    compiled = jax.jit(lambda x: jnp.sort(jnp.sort(x * 2, 0) @ jnp.ones((3, 50)), 1)[:, 0]).lower(
        shape).compile()
    found = device_memory.program_bytes(compiled)
    assert (found.argument, found.output) == (4 * 300, 4 * 100)
    assert found.temporary >= 4 * 100 * 50  # the product, which the second sort keeps
    assert found.beside_arguments == found.output + found.temporary


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError])
def test_a_platform_that_does_not_say(error):
    class Silent:
        def memory_analysis(self):
            raise error

    assert device_memory.program_bytes(Silent()) == (0, 0, 0)


def test_mebibytes():
    assert device_memory.mebibytes(3 * 2 ** 29) == "1,536.0 MiB"
