"""Checkpoints: bit-exact, and those of another configuration never restored in silence.

Damaged files, kill -9 and full disks are met in tests/faults.
"""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas import checkpoints
from jaxnas.checkpoints import CheckpointError

ROOT = Path(__file__).parents[1]


class State(NamedTuple):
    params: dict
    optimizer: optax.OptState
    key: jax.Array
    epoch: int


def make_state(seed=0):
    key = jax.random.key(seed)
    params = {"dense": {"kernel": jax.random.normal(key, (17, 5)), "bias": jnp.zeros(5)}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    return State(params, optimizer.init(params), key, 3 + seed)


def contents(state):
    """Return every leaf as (type, dtype, shape, bytes), so that NaN equals itself."""
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        name = jax.tree_util.keystr(path)
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = np.asarray(jax.random.key_data(leaf))
            found.append((name, "key", str(leaf.dtype), leaf.shape, data.tobytes()))
        elif hasattr(leaf, "dtype"):
            kind = "jax" if isinstance(leaf, jax.Array) else type(leaf).__name__
            found.append((name, kind, str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()))
        else:
            found.append((name, type(leaf).__name__, repr(leaf)))
    return found


def rejections(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "jaxnas.checkpoints"]


# ---- round trip ----------------------------------------------------------------------------------


def test_round_trip_is_bit_exact(tmp_path):
    quiet_nan = np.array([0x7FC12345, 0xFFC00001, 0x80000000], np.uint32).view(np.float32)
    state = {
        "state": make_state(),
        "nan": jnp.asarray(quiet_nan), "inf": jnp.array([jnp.inf, -jnp.inf]),
        "bfloat16": jnp.asarray(np.array([0x7FC1, 0x8000, 0x3F80], np.uint16).view(jnp.bfloat16)),
        "half": jnp.float16(1.5), "bools": jnp.array([True, False]), "int8": jnp.int8(-3),
        "uint32": jnp.uint32(2**32 - 1), "scalar": jnp.float32(-0.0), "empty": jnp.zeros((0, 3)),
        "numpy": np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::-1], "generic": np.float64(0.1),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), (2, 3)),
        "raw": jax.random.PRNGKey(2), "int": 2**80, "float": -0.0, "nan_float": float("nan"),
        "true": True, "text": "Zelle \u2713", "none": None, "empty_tuple": (),
        "list": [1, (2.5, [jnp.ones(2)])],
    }
    checkpoints.save(tmp_path, 7, state, {"genotype": [["sep_conv_3x3", 0]], "best": 0.1})
    restored = checkpoints.restore(tmp_path, state)
    assert restored.step == 7
    assert restored.metadata == {"genotype": [["sep_conv_3x3", 0]], "best": 0.1}
    assert contents(restored.state) == contents(state)
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    assert isinstance(restored.state["state"], State)
    assert checkpoints.read_metadata(tmp_path) == (7, restored.metadata)


def test_restore_needs_only_shapes_and_goes_on_equally(tmp_path):
    state = make_state()
    checkpoints.save(tmp_path, 1, state, {})
    shapes = jax.eval_shape(make_state)._replace(epoch=0)
    restored = checkpoints.restore(tmp_path, shapes).state
    assert contents(restored) == contents(state)
    np.testing.assert_array_equal(
        jax.random.normal(restored.key, 4), jax.random.normal(state.key, 4))


def test_a_bare_array_and_an_empty_tree_can_be_saved(tmp_path):
    for name, state in (("array", jnp.arange(3)), ("empty", {}), ("none", None), ("int", 4)):
        checkpoints.save(tmp_path / name, 0, state, {})
        assert contents(checkpoints.restore(tmp_path / name, state).state) == contents(state)


def test_restored_state_does_not_retrace(tmp_path):
    traces = []

    @jax.jit
    def step(state):
        traces.append(1)
        return {"count": state["count"] + 1, "weak": state["weak"] * 2}

    state = step({"count": jnp.int32(0), "weak": jnp.asarray(1.0) * 2})
    assert state["weak"].weak_type
    step(state)
    checkpoints.save(tmp_path, 0, state, {})
    restored = checkpoints.restore(tmp_path, state).state
    assert restored["weak"].weak_type
    step(restored)
    assert len(traces) == 1


def test_restored_buffers_are_ours(tmp_path):
    state = {"jax": jnp.arange(4.0), "numpy": np.arange(4.0)}
    checkpoints.save(tmp_path, 0, state, {})
    restored = checkpoints.restore(tmp_path, state).state
    restored["numpy"] += 1  # writable
    jax.jit(lambda x: x * 2, donate_argnums=0)(restored["jax"])
    assert contents(checkpoints.restore(tmp_path, state).state) == contents(state)


def test_replicated_arrays_are_saved_once(tmp_path):
    code = f"""
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxnas import checkpoints, leaves
mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
x = jax.device_put(jnp.arange(100_000.0), NamedSharding(mesh, P()))
y = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, P("d")))
k = jax.device_put(jax.random.key(3), NamedSharding(mesh, P()))
state = {{"x": x, "y": y, "k": k}}
_, buffer = leaves.pack(state)
assert buffer.nbytes < 401_000, buffer.nbytes
checkpoints.save({str(tmp_path)!r}, 1, state, {{}})
got = checkpoints.restore({str(tmp_path)!r}, state).state
for name in ("x", "y", "k"):
    assert got[name].sharding == state[name].sharding, name
assert np.array_equal(got["x"], x) and np.array_equal(got["y"], y)
assert (jax.random.key_data(got["k"]) == jax.random.key_data(k)).all()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    one_device = {"x": jnp.zeros(100_000), "y": jnp.zeros(8), "k": jax.random.key(0)}
    assert float(checkpoints.restore(tmp_path, one_device).state["x"][-1]) == 99_999


def test_no_log_lines_of_orbax(tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="absl")
    checkpoints.save(tmp_path, 1, make_state(), {})
    checkpoints.restore(tmp_path, make_state())
    assert [r for r in caplog.records if r.name == "absl"] == []


# ---- the directory -------------------------------------------------------------------------------


def test_the_newest_steps_are_kept(tmp_path):
    for step in (1, 2, 5, 9):
        checkpoints.save(tmp_path, step, make_state(step), {}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["5", "9"]
    assert checkpoints.latest_step(tmp_path) == 9
    checkpoints.save(tmp_path, 9, make_state(100), {}, keep=1)  # the same step again replaces it
    assert [p.name for p in tmp_path.iterdir()] == ["9"]
    assert checkpoints.restore(tmp_path, make_state()).state.epoch == 103


def test_nothing_there(tmp_path):
    for directory in (tmp_path, tmp_path / "missing"):
        assert checkpoints.latest_step(directory) is None
        with pytest.raises(CheckpointError, match="There is no checkpoint in"):
            checkpoints.restore(directory, {})
        with pytest.raises(CheckpointError, match="There is no checkpoint in"):
            checkpoints.read_metadata(directory)


def test_an_older_run_is_not_overwritten(tmp_path):
    checkpoints.save(tmp_path, 100, make_state(), {})
    with pytest.raises(CheckpointError, match="already holds the later step 100"):
        checkpoints.save(tmp_path, 1, make_state(), {})
    assert [p.name for p in tmp_path.iterdir()] == ["100"]


@pytest.mark.parametrize("arguments, options, message", [
    ((-1, {}, {}), {}, "step must be an integer >= 0, got -1"),
    ((True, {}, {}), {}, "got True"),
    ((1, {}, {}), {"keep": 0}, "keep must be >= 1, got 0"),
    ((1, {}, {"best": float("nan")}), {}, "metadata must be JSON values without NaN"),
    ((1, {}, {"path": Path("x")}), {}, "PosixPath is not JSON serializable"),
    ((1, {"a": [object()]}, {}), {}, r"\['a'\]\[0\] cannot be saved: it is a object"),
    ((1, {"a": np.array(["x"])}, {}), {}, "dtype <U1"),
    ((1, {"a": np.array([None])}, {}), {}, "dtype object"),
])
def test_bad_arguments(tmp_path, arguments, options, message):
    with pytest.raises(CheckpointError, match=message):
        checkpoints.save(tmp_path, *arguments, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change, message", [
    (lambda s: s._replace(epoch=1.0), r"\.epoch is int\[\], wanted float\[\]"),
    (lambda s: s._replace(key=jax.random.key(0, impl="rbg")), "wanted key<rbg>"),
    (lambda s: s._replace(params={"dense": {"kernel": jnp.zeros((17, 6)), "bias": jnp.zeros(5)}}),
     r"\.params\['dense'\]\['kernel'\] is float32\[17, 5\], wanted float32\[17, 6\]"),
    (lambda s: s._replace(params={"dense": {"kernel": jnp.zeros((17, 5), jnp.bfloat16)}}),
     r"\['bias'\] is in the checkpoint only; .*is float32\[17, 5\], wanted bfloat16"),
    (lambda s: s._replace(params={**s.params, "new": jnp.zeros(2)}),
     r"\['new'\] is not in the checkpoint"),
    (lambda s: s._replace(params=list(range(20))), "and 17 more"),
])
def test_another_configuration_is_an_error_not_a_walk_back(tmp_path, caplog, change, message):
    for step in (1, 2):
        checkpoints.save(tmp_path, step, make_state(), {})
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoints.restore(tmp_path, change(make_state()))
    assert str(tmp_path / "2") in str(error.value) and rejections(caplog) == []


# ---- lock, disk ----------------------------------------------------------------------------------


def test_a_second_holder_is_told_who_the_first_is(tmp_path):
    with checkpoints.lock(tmp_path / "run"):
        start = time.perf_counter()
        with pytest.raises(CheckpointError, match=f"in use by process {os.getpid()} on host "):
            with checkpoints.lock(tmp_path / "run"):
                pass
        assert time.perf_counter() - start < 1
    with checkpoints.lock(tmp_path / "run"):
        assert checkpoints.latest_step(tmp_path / "run") is None


def test_a_killed_holder_frees_the_lock(tmp_path):
    code = (f"import time\nfrom jaxnas import checkpoints\nwith checkpoints.lock({str(tmp_path)!r})"
            ":\n    print('held', flush=True)\n    time.sleep(600)")
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(CheckpointError, match=f"process {process.pid} on host"):
        with checkpoints.lock(tmp_path):
            pass
    process.kill()
    process.wait()
    process.stdout.close()
    with checkpoints.lock(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()


def test_a_file_in_the_place_of_the_directory(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(CheckpointError, match="Cannot write to"):
        with checkpoints.lock(path):
            pass
    with pytest.raises(CheckpointError, match=f"{path} .* bytes free"):
        checkpoints.save(path, 1, {}, {})
    assert path.read_text() == "x"


def test_a_failing_write_keeps_the_older_step_and_names_the_free_bytes(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, 1, make_state(1), {})
    written = checkpoints._write

    def full(path, buffer, manifest):
        written(path, buffer, manifest)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_write", full)
    with pytest.raises(CheckpointError, match=rf"step 2 to {tmp_path} \(\d+ bytes free there\): "):
        checkpoints.save(tmp_path, 2, make_state(2), {}, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    assert contents(checkpoints.restore(tmp_path, make_state()).state) == contents(make_state(1))
