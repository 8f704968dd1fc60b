"""Gates 4 and 5: a disk that is full, and places that cannot be written to."""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import common, evolution
from jaxnas import checkpoints, reporting
from jaxnas.checkpoints import CheckpointError


@pytest.fixture
def mounted(tmp_path):
    """Return what mounts a small tmpfs: (name, options) -> its path."""
    mount, paths = shutil.which("mount"), []

    def make(name, options):
        if os.geteuid() != 0 or mount is None:
            pytest.skip("a disk of its own needs root and mount; test_limited_files needs neither")
        path = tmp_path / name
        path.mkdir()
        done = subprocess.run([mount, "-t", "tmpfs", "-o", options, "tmpfs", str(path)],
                              capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"tmpfs cannot be mounted here: {done.stderr.strip()}")
        paths.append(path)
        return path

    yield make
    for path in paths:
        subprocess.run(["umount", str(path)], check=True)


# ---- gate 4 --------------------------------------------------------------------------------------


@pytest.mark.gate(4)
def test_full_disk_keeps_the_older_step(mounted, gate):
    disk = mounted("disk", "size=3m")
    rng = np.random.default_rng(0)
    state = {"x": rng.integers(0, 256, 2_000_000, dtype=np.uint8)}
    checkpoints.save(disk, 1, state, {})
    with pytest.raises(CheckpointError, match=rf"step 2 to {disk} \(\d+ bytes free there\)"):
        checkpoints.save(disk, 2, {"x": state["x"] + 1}, {})
    assert [p.name for p in disk.iterdir()] == ["1"]
    assert shutil.disk_usage(disk).free > 900_000  # the unfinished save is gone
    np.testing.assert_array_equal(checkpoints.restore(disk, state).state["x"], state["x"])
    gate("3 MB tmpfs: path and free bytes named, step 1 bit-exact, no half save left")


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from jaxnas import checkpoints
directory = Path(sys.argv[1])
state = {"x": np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8)}
checkpoints.save(directory, 1, state, {})
old = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
try:
    checkpoints.save(directory, 2, state, {})
except checkpoints.CheckpointError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, old)
checkpoints.save(directory, 3, state, {})
"""


@pytest.mark.gate(4)
def test_limited_files(tmp_path, environment, gate):
    # what a user without root can see: files may not grow
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], env=environment, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    assert f"step 2 to {tmp_path} (" in done.stdout and "bytes free there)" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "3"]
    gate("RLIMIT_FSIZE: the same")


@pytest.mark.gate(4)
def test_a_log_on_a_full_disk(mounted, gate):
    disk, text = mounted("disk", "size=16k"), "x" * 300
    with reporting.MetricsWriter(disk / "metrics.jsonl") as writer:
        written = 0
        with pytest.raises(OSError) as error:
            while True:
                writer.write("event", text=text, number=written)
                written += 1
        assert str(disk / "metrics.jsonl") in str(error.value)
        with pytest.raises(OSError, match="0 bytes free.*metrics.jsonl"):
            writer.write("event", text=text)  # nothing of it
    found = reporting.read_metrics(disk / "metrics.jsonl")
    assert [row["number"] for row in found] == list(range(written))
    with reporting.MetricsWriter(disk / "metrics.jsonl"):
        pass  # the torn line is gone
    assert len(reporting.read_metrics(disk / "metrics.jsonl")) == written > 10
    gate(f"a log that fills the disk: {written} lines whole, path and free bytes named")


@pytest.mark.gate(4)
@pytest.mark.slow
def test_full_disk_under_a_run(mounted, nursery, whole_run, assert_equal_runs, gate):
    whole = whole_run("evolution", "--evaluations", 60, "--block", 3)
    disk = mounted("disk", "size=3m")
    path = disk / "run"
    life = nursery("evolution", path, "--evaluations", 60, "--block", 3)
    while (checkpoints.latest_step(path / "checkpoints") or 0) < 5:
        assert life.status(0.003) is None, life.log.read_text()[-2000:]
    with open(disk / "ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:  # full
            pass
    assert life.status(60.0) == 1
    error = life.log.read_text() if life.log.exists() else ""
    last, found = checkpoints.read_metadata(path / "checkpoints")
    assert last >= 4
    lines = reporting.read_metrics(path / "metrics.jsonl")
    assert sum(line["kind"] == "step" for line in lines) >= last
    (disk / "ballast").unlink()
    nursery("evolution", path).finish()
    assert_equal_runs(path, whole)
    assert str(path) in error and "bytes free" in error, error[-2000:]
    gate(f"a run whose disk fills up at step {last}: exit 1, log readable, resumed bit-equal")


# ---- gate 5 --------------------------------------------------------------------------------------


def a_file(folder, mounted):
    (folder / "file").write_text("")
    return folder / "file"


def read_only(folder, mounted):
    disk = mounted("disk", "size=1m")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    return disk / "run"


def full(folder, mounted):
    disk = mounted("disk", "size=16k")
    (disk / "ballast").write_bytes(bytes(4096 * 4))
    return disk / "run"


PLACES = {
    "a file": (a_file, "is a file; give a directory"),
    "in a file": (lambda *given: a_file(*given) / "run", "its parent"),
    "no parent": (lambda folder, mounted: folder / "missing" / "run", "does not exist"),
    "read-only": (read_only, "is not writable: Read-only file system"),
    "full": (full, "No space left on device"),
    "name too long": (lambda folder, mounted: folder / ("x" * 300),
                      "no path that can be used: File name too long"),
    "null byte": (lambda folder, mounted: folder / "a\0b", "null byte"),
}


@pytest.mark.gate(5)
@pytest.mark.parametrize("name", PLACES)
def test_output_that_cannot_be_written(name, tmp_path, mounted, capsys, compilations, gate):
    make, message = PLACES[name]
    path = make(tmp_path, mounted)
    # of this process, which others on the machine do not slow down
    before, compiled = time.process_time(), len(compilations)
    code = common.main(evolution.Config, evolution.PRESETS, evolution.SMOKE, evolution.run,
                       ["--smoke", "--output", str(path)])
    seconds = time.process_time() - before
    error = capsys.readouterr().err
    assert code == 2 and message in error, error
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    assert seconds < 2 and len(compilations) == compiled
    gate(f"{name}: {seconds:.2f} s")
