"""What all tests share: 8 simulated CPU devices, a cold compilation cache, fresh trace counters."""

import os

# Before the first import of jax, which reads them once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little: without LLVM's optimisations they take 2/3 of the time.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0").strip()
os.environ["JAXNAS_CACHE_DIR"] = os.environ.get("JAXNAS_TEST_CACHE", "")  # empty: no cache

from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import AbstractContextManager, contextmanager  # noqa: E402
from pathlib import Path  # noqa: E402

import chex  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

if os.environ.get("JAXNAS_TEST_CACHE"):
    jax.config.update("jax_compilation_cache_dir", os.environ["JAXNAS_TEST_CACHE"])


@pytest.fixture(autouse=True)
def fresh_trace_counters() -> Iterator[None]:
    """Clear chex's trace counts, which are kept by function name across tests."""
    chex.clear_trace_counter()
    yield


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep compiled programs in a folder of this module, whatever they cost."""
    settings: dict[str, object] = {
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0}
    if not os.environ.get("JAXNAS_TEST_CACHE"):
        settings["jax_compilation_cache_dir"] = str(tmp_path_factory.mktemp("cache"))
    old = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in old.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """Return a context in which a run is asked to stop, as after Ctrl-C, at its (n + 1)-th look."""
    from experiments import common

    @contextmanager
    def stopping_after(looks: int) -> Iterator[None]:
        class Impatient(common.Interrupt):
            seen = 0

            @property
            def requested(self):
                self.seen += 1
                return self.seen > looks

            @requested.setter
            def requested(self, value):
                pass

        with monkeypatch.context() as patch:
            patch.setattr(common, "Interrupt", Impatient)
            yield

    return stopping_after


@pytest.fixture(scope="session")
def records() -> Callable[[Path], list[dict[str, object]]]:
    """Return a function that reads a run's metrics.jsonl without what a clock wrote."""
    from jaxnas import reporting

    return lambda path: [{name: value for name, value in row.items() if "seconds" not in name}
                         for row in reporting.read_metrics(path / "metrics.jsonl")]


@pytest.fixture(scope="session")
def assert_equal_runs(records) -> Callable[[Path, Path], None]:
    """Return what checks that a finished run has the log and the result of another one."""
    from jaxnas import reporting

    def check(path: Path, other: Path) -> None:
        assert records(path) == records(other)
        first, second = reporting.read_result(path), reporting.read_result(other)
        assert first.architecture == second.architecture and first.metrics == second.metrics
        assert first.complete and reporting.validate_run_directory(path) == []

    return check
