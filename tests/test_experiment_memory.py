"""A batch that does not fit is refused, with one that does."""

import re

import jax
import jax.numpy as jnp
import pytest

from experiments import common, memory

FEATURES = 256


def compiled(batch_size):
    """Return a program whose temporaries grow with the batch: products that a sort keeps apart."""
    def step(weights, x):
        first = jnp.sort(x @ weights, -1)
        return jnp.sort(first @ weights, -1).sum()

    programs = common.Programs()
    programs.add("step", jax.jit(step), jax.ShapeDtypeStruct((FEATURES, FEATURES), jnp.float32),
                 jax.ShapeDtypeStruct((batch_size, FEATURES), jnp.float32))
    programs.compile_all()
    return programs


def needs(programs):
    cost, = programs.costs()
    return cost.memory.beside_arguments


def test_what_fits_passes_and_the_advice_fits():
    programs = compiled(64)
    memory.check_batch(programs, "batch_size", 64, ("step",), available_bytes=needs(programs))
    memory.check_batch(programs, "batch_size", 64, ("step",))  # of this machine
    memory.check_batch(programs, "batch_size", 64, ("another",), available_bytes=0)
    available = needs(programs) // 3
    with pytest.raises(common.InputError, match="batch_size=64 does not fit: step needs") as error:
        memory.check_batch(programs, "batch_size", 64, ("step",), available_bytes=available)
    advice = int(re.search(r"about (\d+)", str(error.value))[1])
    assert 15 <= advice <= 21
    memory.check_batch(compiled(advice), "batch_size", advice, ("step",),
                       available_bytes=available)


def test_the_advice_is_a_multiple_of_the_devices_or_none():
    programs = compiled(64)
    with pytest.raises(common.InputError, match="about 16[.]"):
        memory.check_batch(programs, "batch_size", 64, ("step",), devices=8,
                           available_bytes=needs(programs) // 3)
    with pytest.raises(common.InputError, match="not even one image"):
        memory.check_batch(programs, "batch_size", 64, ("step",), available_bytes=10)
