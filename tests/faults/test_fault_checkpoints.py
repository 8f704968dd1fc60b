"""Gates 1 to 3 where they begin: damaged checkpoint files, and kill -9 in the middle of a save."""

import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments import common, evolution
from jaxnas import checkpoints
from jaxnas.checkpoints import CheckpointError


def make_state(seed=0):
    key = jax.random.key(seed)
    kernel = np.random.default_rng(seed).normal(size=(17, 5)).astype(np.float32)
    return {"kernel": jax.numpy.asarray(kernel), "nan": np.float64([np.nan, -0.0]), "key": key,
            "epoch": 3 + seed}


def contents(state):
    """Return every leaf as bytes, so that NaN equals itself."""
    return {**state, "key": jax.random.key_data(state["key"]).tobytes(),
            **{name: (str(state[name].dtype), np.asarray(state[name]).tobytes())
               for name in ("kernel", "nan")}}


def rejections(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "jaxnas.checkpoints"]


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


# ---- gate 2 --------------------------------------------------------------------------------------


@pytest.mark.gate(2)
def test_bit_flips_are_never_silent(two_steps, caplog, gate):
    directory, wanted = two_steps
    files = [p for p in files_of(directory / "2") if p.stat().st_size]
    assert len(files) >= 5
    sizes = np.array([p.stat().st_size for p in files])
    rng = np.random.default_rng(0)
    rejected, seen = 0, set()
    for trial in range(50):
        # half of them anywhere, half in a file drawn first, so that small files have their share
        weights = sizes / sizes.sum() if trial % 2 else np.full(len(files), 1 / len(files))
        path = files[rng.choice(len(files), p=weights)]
        good = path.read_bytes()
        flip(path, int(rng.integers(8 * len(good))))
        rejected += restore_or_rejected(directory, wanted, caplog)
        seen.add(path)
        path.write_bytes(good)
    assert rejected > 20 and len(seen) == len(files)
    assert not restore_or_rejected(directory, wanted, caplog)
    gate(f"50 flips in {len(seen)} files: {rejected} rejected by name, {50 - rejected} bit-equal, "
         "0 silent")


@pytest.mark.gate(2)
def test_changed_metadata_is_rejected(two_steps, caplog):
    directory, wanted = two_steps
    path = directory / "2" / "_CHECKPOINT_METADATA"
    text = path.read_text()
    assert "\\\"step\\\": 2}" in text
    path.write_text(text.replace("\\\"step\\\": 2}", "\\\"step\\\": 3}"))
    json.loads(path.read_text())
    assert restore_or_rejected(directory, wanted, caplog)
    assert "digest of its metadata" in rejections(caplog)[0]


# ---- gate 3 --------------------------------------------------------------------------------------


@pytest.mark.gate(3)
def test_truncated_and_deleted_files(two_steps, caplog, gate):
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
    gate(f"{len(rejected)} files cut, emptied or deleted: {sum(rejected)} steps rejected with one "
         f"line, {len(rejected) - sum(rejected)} bit-equal")


@pytest.mark.gate(3)
def test_a_stray_empty_step_and_a_renamed_one(two_steps, caplog):
    directory, wanted = two_steps
    (directory / "9").mkdir()
    shutil.copytree(directory / "1", directory / "8")
    assert checkpoints.latest_step(directory) == 9
    restored = checkpoints.restore(directory, wanted[1])
    assert restored.step == 2 and contents(restored.state) == contents(wanted[2])
    lines = rejections(caplog)
    assert len(lines) == 2 and "the directory is empty" in lines[0] and "says step 1" in lines[1]


@pytest.mark.gate(3)
def test_leftovers_are_ignored_and_then_removed(two_steps):
    directory, wanted = two_steps
    for name in (".saving-3.orbax-checkpoint-tmp", ".saving-4", ".deleting-0"):
        shutil.copytree(directory / "1", directory / name)
    (directory / "notes").mkdir()
    (directory / "007").mkdir()
    assert checkpoints.restore(directory, wanted[1]).step == 2
    checkpoints.save(directory, 3, wanted[2], {})
    assert sorted(p.name for p in directory.iterdir()) == ["007", "2", "3", "notes"]


@pytest.mark.gate(3)
def test_after_walking_back_the_damaged_later_step_gives_way(two_steps):
    directory, wanted = two_steps
    checkpoints.save(directory, 3, wanted[1], {}, keep=3)
    flip(array_file(directory / "3"), 1000)
    assert checkpoints.restore(directory, wanted[1]).step == 2
    checkpoints.save(directory, 2, make_state(7), {}, keep=1)
    assert [p.name for p in directory.iterdir()] == ["2"]


@pytest.mark.gate(3)
def test_a_damaged_older_step_does_not_count(two_steps, caplog):
    directory, wanted = two_steps
    flip(array_file(directory / "2"), 1000)
    checkpoints.save(directory, 4, wanted[2], {}, keep=2)
    assert sorted(p.name for p in directory.iterdir()) == ["1", "4"]  # the two good ones
    assert len(rejections(caplog)) == 1 and "2 deleted" in rejections(caplog)[0]


@pytest.mark.gate(3)
def test_all_rejected_is_an_error(two_steps):
    directory, wanted = two_steps
    for step in ("1", "2"):
        flip(array_file(directory / step), 2000)
    for attempt in (lambda: checkpoints.restore(directory, wanted[1]),
                    lambda: checkpoints.read_metadata(directory)):
        with pytest.raises(CheckpointError, match=r"None of the 2 checkpoints .*steps 1, 2"):
            attempt()


@pytest.mark.gate(3)
def test_a_run_without_a_good_checkpoint_is_refused(tmp_path, nursery, whole_run, capsys, gate):
    path = shutil.copytree(
        whole_run("evolution", "--evaluations", 30, "--block", 3), tmp_path / "run")
    steps = sorted(p for p in (path / "checkpoints").iterdir() if p.name.isdigit())
    flip(array_file(steps[-1]), 1000)
    life = nursery("evolution", path)
    life.finish()  # from the step before, and says so
    assert life.log.read_text().count("rejected") >= 1
    for step in (p for p in (path / "checkpoints").iterdir() if p.name.isdigit()):
        flip(array_file(step), 1000)
    before = (path / "metrics.jsonl").read_bytes()
    assert common.main(evolution.Config, evolution.PRESETS, evolution.SMOKE, evolution.run,
                       ["--quiet", "--resume", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: None of the ") and "afresh" in error
    assert (path / "metrics.jsonl").read_bytes() == before
    gate("a run with no good checkpoint: exit 2, nothing changed")


# ---- gate 1, where it is hardest -----------------------------------------------------------------

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


def kill_while_saving(environment, directory, start, seconds):
    """Start a saver, kill it `seconds` after its second save, return the last step it reported."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(directory), str(start)], stdout=subprocess.PIPE,
        text=True, env=environment)
    for _ in range(2):
        process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    lines = process.stdout.read().split()
    process.wait()
    process.stdout.close()
    return int(lines[-1]) if lines else start + 1


@pytest.mark.gate(1)
@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_while_saving(tmp_path, kills, environment, gate):
    rng = np.random.default_rng(0)
    target = {f"leaf{i}": np.zeros(2000, np.float32) for i in range(50)}
    start = halves = 0
    for _ in range(kills):
        reported = kill_while_saving(environment, tmp_path, start, rng.uniform(0.0, 0.3))
        halves += any(not p.name.isdigit() for p in tmp_path.iterdir())
        restored = checkpoints.restore(tmp_path, target)
        assert restored.step in (reported, reported + 1)
        assert restored.metadata == {"step": restored.step}
        for leaf in restored.state.values():
            np.testing.assert_array_equal(leaf, np.float32(restored.step))
        start = restored.step + 1
    checkpoints.save(tmp_path, start, target, {})
    assert len(list(tmp_path.iterdir())) == 2  # no leftovers
    gate(f"{kills} kills of a process that only saves ({halves} left half a save): the last step "
         "each time")
