"""Checkpoints: bit-exact, and damaged, killed, full or foreign ones never restored in silence."""

import json
import logging
import os
import shutil
import signal
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


def test_after_walking_back_the_damaged_later_step_gives_way(tmp_path):
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, make_state(step), {}, keep=3)
    flip(array_file(tmp_path / "3"), 1000)
    assert checkpoints.restore(tmp_path, make_state()).step == 2
    checkpoints.save(tmp_path, 2, make_state(7), {}, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["2"]


def test_a_damaged_older_step_does_not_count(tmp_path, caplog):
    for step in (2, 3):
        checkpoints.save(tmp_path, step, make_state(step), {}, keep=2)
    flip(array_file(tmp_path / "3"), 1000)
    checkpoints.save(tmp_path, 4, make_state(4), {}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "4"]  # the two good ones
    assert len(rejections(caplog)) == 1 and "3 deleted" in rejections(caplog)[0]


def test_leftovers_are_ignored_and_then_removed(tmp_path):
    checkpoints.save(tmp_path, 1, make_state(), {})
    for name in (".saving-2.orbax-checkpoint-tmp", ".saving-3", ".deleting-0"):
        shutil.copytree(tmp_path / "1", tmp_path / name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "007").mkdir()
    assert checkpoints.restore(tmp_path, make_state()).step == 1
    checkpoints.save(tmp_path, 2, make_state(), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["007", "1", "2", "notes"]


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


# ---- damage --------------------------------------------------------------------------------------


def files_of(step_directory):
    return sorted(p for p in step_directory.rglob("*") if p.is_file())


def array_file(step_directory):
    return max(files_of(step_directory), key=lambda p: p.stat().st_size if "d" in p.parts else 0)


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


def restore_or_rejected(directory, wanted, caplog):
    """Restore; assert it is a saved state bit for bit; return whether the newest was rejected."""
    caplog.clear()
    restored = checkpoints.restore(directory, wanted[1])
    assert contents(restored.state) == contents(wanted[restored.step])
    assert restored.metadata == {"step": restored.step}
    lines = rejections(caplog)
    assert len(lines) == (restored.step == 1)
    if lines:
        assert str(directory / "2") in lines[0] and "\n" not in lines[0]
    return restored.step == 1


@pytest.fixture
def two_steps(tmp_path):
    wanted = {}
    for step in (1, 2):
        wanted[step] = make_state(step)
        checkpoints.save(tmp_path, step, wanted[step], {"step": step})
    return tmp_path, wanted


def test_bit_flips_are_never_silent(two_steps, caplog):
    directory, wanted = two_steps
    files = [p for p in files_of(directory / "2") if p.stat().st_size]
    assert len(files) >= 5
    sizes = np.array([p.stat().st_size for p in files])
    rng = np.random.default_rng(0)
    rejected = 0
    for trial in range(50):
        # half of them anywhere, half in a file drawn first, so that small files have their share
        weights = sizes / sizes.sum() if trial % 2 else np.full(len(files), 1 / len(files))
        path = files[rng.choice(len(files), p=weights)]
        good = path.read_bytes()
        flip(path, int(rng.integers(8 * len(good))))
        rejected += restore_or_rejected(directory, wanted, caplog)
        path.write_bytes(good)
    assert rejected > 20
    assert not restore_or_rejected(directory, wanted, caplog)


def test_truncated_and_deleted_files(two_steps, caplog):
    directory, wanted = two_steps
    rejected = []
    for path in files_of(directory / "2"):
        good = path.read_bytes()
        for bad in (good[:len(good) // 2], b"", None):
            path.unlink()
            if bad is not None:
                path.write_bytes(bad)
            rejected.append(restore_or_rejected(directory, wanted, caplog))
            path.write_bytes(good)
    assert sum(rejected) >= 9
    assert not restore_or_rejected(directory, wanted, caplog)


def test_a_stray_empty_step_and_a_renamed_one(two_steps, caplog):
    directory, wanted = two_steps
    (directory / "9").mkdir()
    shutil.copytree(directory / "1", directory / "8")
    assert checkpoints.latest_step(directory) == 9
    restored = checkpoints.restore(directory, wanted[1])
    assert restored.step == 2 and contents(restored.state) == contents(wanted[2])
    lines = rejections(caplog)
    assert len(lines) == 2 and "the directory is empty" in lines[0] and "says step 1" in lines[1]


def test_all_rejected_is_an_error(two_steps):
    directory, wanted = two_steps
    for step in ("1", "2"):
        flip(array_file(directory / step), 2000)
    for attempt in (lambda: checkpoints.restore(directory, wanted[1]),
                    lambda: checkpoints.read_metadata(directory)):
        with pytest.raises(CheckpointError, match=r"None of the 2 checkpoints .*steps 1, 2"):
            attempt()


def test_changed_metadata_is_rejected(two_steps, caplog):
    directory, wanted = two_steps
    path = directory / "2" / "_CHECKPOINT_METADATA"
    text = path.read_text()
    assert "\\\"step\\\": 2}" in text
    path.write_text(text.replace("\\\"step\\\": 2}", "\\\"step\\\": 3}"))
    json.loads(path.read_text())
    assert restore_or_rejected(directory, wanted, caplog)
    assert "digest of its metadata" in rejections(caplog)[0]


SAVER = """
import sys
import numpy as np
from jaxnas import checkpoints
directory, start = sys.argv[1], int(sys.argv[2])
for step in range(start, start + 10_000):
    state = {f"leaf{i}": np.full(2000, step, np.float32) for i in range(50)}
    checkpoints.save(directory, step, state, {"step": step})
    print(step, flush=True)
"""


def kill_while_saving(directory, start, seconds):
    """Start a saver, kill it `seconds` after its second save, return the last step it reported."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(directory), str(start)], stdout=subprocess.PIPE,
        text=True, cwd=ROOT)
    for _ in range(2):
        process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    lines = process.stdout.read().split()
    process.wait()
    process.stdout.close()
    return int(lines[-1]) if lines else start + 1


def check_kills(directory, kills):
    rng = np.random.default_rng(0)
    target = {f"leaf{i}": np.zeros(2000, np.float32) for i in range(50)}
    start = 0
    for _ in range(kills):
        reported = kill_while_saving(directory, start, rng.uniform(0.0, 0.3))
        restored = checkpoints.restore(directory, target)
        assert restored.step in (reported, reported + 1)
        assert restored.metadata == {"step": restored.step}
        for leaf in restored.state.values():
            np.testing.assert_array_equal(leaf, np.float32(restored.step))
        start = restored.step + 1
    checkpoints.save(directory, start, target, {})
    assert len(list(directory.iterdir())) == 2  # no leftovers


def test_kill_9_while_saving(tmp_path):
    check_kills(tmp_path, 2)


@pytest.mark.slow
def test_kill_9_while_saving_many_times(tmp_path):
    check_kills(tmp_path, 20)


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


@pytest.fixture
def small_disk(tmp_path):
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("a full disk is simulated with a small tmpfs, which needs root and mount")
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(path)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_full_disk(small_disk):
    rng = np.random.default_rng(0)
    state = {"x": rng.integers(0, 256, 2_000_000, dtype=np.uint8)}
    checkpoints.save(small_disk, 1, state, {})
    with pytest.raises(CheckpointError, match=rf"step 2 to {small_disk} \(\d+ bytes free there\)"):
        checkpoints.save(small_disk, 2, {"x": state["x"] + 1}, {})
    assert [p.name for p in small_disk.iterdir()] == ["1"]
    assert shutil.disk_usage(small_disk).free > 900_000  # the unfinished save is gone
    assert contents(checkpoints.restore(small_disk, state).state) == contents(state)
