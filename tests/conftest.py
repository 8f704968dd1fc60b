"""What all tests share: 8 simulated CPU devices, a cold compilation cache, fresh trace counters."""

import os

# Before the first import of jax, which reads them once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little: without LLVM's optimisations they take 2/3 of the time.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0").strip()
os.environ["JAXNAS_CACHE_DIR"] = os.environ.get("JAXNAS_TEST_CACHE", "")  # empty: no cache

from collections.abc import Iterator  # noqa: E402

import chex  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

if os.environ.get("JAXNAS_TEST_CACHE"):
    jax.config.update("jax_compilation_cache_dir", os.environ["JAXNAS_TEST_CACHE"])


@pytest.fixture(autouse=True)
def fresh_trace_counters() -> Iterator[None]:
    """Clear chex's trace counts, which are kept by function name across tests."""
    chex.clear_trace_counter()
    yield
