"""Gate 9, the trial store: other processes, kill -9, a full disk, files that are no stores."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jaxnas import trials
from jaxnas.trials import Busy, Claimed, Counts, TrialError

pytestmark = pytest.mark.gate(9)
RECIPE = {"seed": 0}
# Does every trial that it can get. Its notes are appended to a file, whole lines in their true
# order. After `doom` evaluations have begun it kills itself with signal 9 at a random moment soon.
WORKER = """
import os, random, signal, sys, threading, time
from jaxnas import trials
path, notes, count, seed, doom = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
draw = random.Random(seed)
file = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def note(*words):
    os.write(file, (" ".join(map(str, words)) + "\\n").encode())

def die():
    time.sleep(draw.choice([0.0, 0.001, 0.01]) * draw.random())
    os.kill(os.getpid(), signal.SIGKILL)

with trials.open_store(path) as store:
    todo, begun = draw.sample(range(count), count), 0
    while todo:
        i = todo.pop(0)
        # Nothing but the process's end can free a lease of eleven days.
        claimed = store.claim("toy", (i,), {"seed": 0}, lease_seconds=1e6)
        if isinstance(claimed, trials.Busy):
            todo.append(i)
            time.sleep(0.001)
        elif isinstance(claimed, trials.Claimed):
            note("began", i)
            begun += 1
            if begun == doom:
                threading.Thread(target=die).start()
            time.sleep(draw.choice([0.0, 0.004]))
            nonce = draw.random() + seed
            store.finish(claimed, {"i": i, "nonce": nonce})
            note("done", i, nonce.hex())
"""
HOLDER = """
import sys
from jaxnas import trials
with trials.open_store(sys.argv[1]) as store:
    claimed = store.claim("toy", (1,), {"seed": 0}, lease_seconds=60.0)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        store.heartbeat(claimed)
    except trials.LeaseLost:
        print("lost", flush=True)
"""
# Stores trials until files may grow no more, then some more once they may.
FILLER = """
import resource, sys
from jaxnas import trials
with trials.open_store(sys.argv[1]) as store:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, old[1]))
    stored, message = 0, None
    while message is None:
        try:
            claimed = store.claim("toy", (stored,), {"seed": 0})
            store.finish(claimed, {"curve": [0.1] * 500})
            stored += 1
        except trials.TrialError as error:
            message = str(error)
    assert store.counts().done == stored > 10, stored
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    store.finish(store.claim("toy", (10 ** 6,), {"seed": 0}), {})
print(stored, message)
"""


def work(path: Path, count: int, seed: int, doom: int = 0) -> int:
    """Run one worker to its end and return its exit status."""
    return subprocess.run([sys.executable, "-c", WORKER, path, path.with_suffix(".notes"),
                           *map(str, (count, seed, doom))]).returncode


def check(path: Path, count: int, kills: int) -> None:
    """All done, none twice, nothing lost that was acknowledged, no evaluation too many."""
    notes = [line.split() for line in path.with_suffix(".notes").read_text().splitlines()]
    began, done = Counter(), {}
    for word, i, *nonce in notes:
        assert i not in done, "touched after it was done"
        if word == "began":
            began[i] += 1
        else:
            done[i] = float.fromhex(nonce[0])
    with trials.open_store(path) as store:
        stored = list(store.trials())
        assert store.counts() == Counts(done=count, failed=0, claimed=0, free=0)
    assert [trial.order for trial in stored] == list(range(1, count + 1))
    assert sorted(trial.arch[0] for trial in stored) == list(range(count))
    assert all(trial.metrics["i"] == trial.arch[0] for trial in stored)
    nonces = {str(trial.arch[0]): trial.metrics["nonce"] for trial in stored}
    assert len(began) == count and all(nonces[i] == nonce for i, nonce in done.items())
    connection = sqlite3.connect(path)
    [[lost]] = connection.execute("SELECT sum(lost) FROM trials").fetchall()
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    repeated = began.total() - count
    assert repeated <= lost <= kills, (repeated, lost, kills)  # at most what was in flight
    assert count - kills <= len(done) <= count


def test_four_processes_do_each_trial_once(tmp_path, gate):
    path = tmp_path / "trials.sqlite"
    with ThreadPoolExecutor(4) as pool:  # the four make the file, too
        assert list(pool.map(lambda seed: work(path, 200, seed), range(4))) == [0] * 4
    check(path, count=200, kills=0)
    gate("4 processes, 200 trials: 0 lost, 0 twice, integrity ok")


@pytest.mark.parametrize("count, kills", [
    (60, 8), pytest.param(200, 20, marks=pytest.mark.slow),
    pytest.param(2000, 200, marks=pytest.mark.slow)])
def test_kill_9_loses_and_repeats_nothing(tmp_path, count, kills, gate):
    path = tmp_path / "trials.sqlite"
    draw = random.Random(kills)
    dooms = [draw.randint(1, 6) for _ in range(kills)]  # trials, so that all are met
    with ThreadPoolExecutor(4) as pool:
        ends = pool.map(lambda seed: work(path, count, seed, dooms[seed]), range(kills))
        assert list(ends) == [-signal.SIGKILL] * kills
        assert list(pool.map(lambda seed: work(path, count, kills + seed), range(4))) == [0] * 4
    check(path, count, kills)
    gate(f"{kills} kills in {count} trials of 4 processes: 0 lost, 0 twice, integrity ok")


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A process that holds the trial (1,), and beats once when it is sent a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "trials.sqlite"], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="only /proc tells the dead from the living")
def test_killed_owner_is_noticed_at_once_even_as_a_zombie(tmp_path, holder):
    with trials.open_store(tmp_path / "trials.sqlite") as store:
        busy = store.claim("toy", (1,), RECIPE)
        assert isinstance(busy, Busy) and busy.pid == holder.pid
        holder.kill()
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet buried
        claimed = store.claim("toy", (1,), RECIPE)
        assert isinstance(claimed, Claimed) and claimed.lost == 1


def test_hung_owner_loses_its_lease_and_learns_it(tmp_path, holder, monkeypatch):
    with trials.open_store(tmp_path / "trials.sqlite") as store:
        os.kill(holder.pid, signal.SIGSTOP)
        assert isinstance(store.claim("toy", (1,), RECIPE), Busy)
        later = trials._now() + 61.0
        monkeypatch.setattr(trials, "_now", lambda: later)
        claimed = store.claim("toy", (1,), RECIPE)
        assert isinstance(claimed, Claimed) and claimed.lost == 1
        os.kill(holder.pid, signal.SIGCONT)
        assert holder.communicate("beat\n", timeout=60)[0] == "lost\n"
        assert store.finish(claimed, {}).order == 1


def filled(path: Path, count: int = 30) -> list[trials.Trial]:
    with trials.open_store(path) as store:
        for i in range(count):
            store.finish(store.claim("toy", (i,), RECIPE), {"curve": [i / 7] * 50})
        return list(store.trials())


def test_log_cut_anywhere_leaves_a_prefix(tmp_path):
    # As after a power cut: the main file, and as much of the write-ahead log as reached the disk.
    path, copy = tmp_path / "trials.sqlite", tmp_path / "copy.sqlite"
    draw = random.Random(0)
    with trials.open_store(path) as store:
        for i in range(30):
            store.finish(store.claim("toy", (i,), RECIPE), {"value": i / 7})
        stored = list(store.trials())
        main, log = path.read_bytes(), Path(f"{path}-wal").read_bytes()
    lengths = set()
    for _ in range(40):
        for suffix in ("", "-wal", "-shm"):
            Path(f"{copy}{suffix}").unlink(missing_ok=True)
        Path(f"{copy}-wal").write_bytes(log[:draw.randrange(len(log))] + draw.randbytes(50))
        copy.write_bytes(main)
        with trials.open_store(copy) as store:
            found = list(store.trials())
            assert found == stored[:len(found)]
            lengths.add(len(found))
            store.finish(store.claim("toy", (99,), RECIPE), {})
            assert store.counts().done == len(found) + 1
    assert len(lengths) > 10


def foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE trials (x)")
    connection.close()


def newer(path: Path) -> None:
    filled(path, 1)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()


def truncated(path: Path) -> None:
    filled(path)
    os.truncate(path, path.stat().st_size // 2)


def scribbled(path: Path) -> None:
    filled(path)
    with path.open("r+b") as file:  # all but the header's page and the list of tables
        file.seek(4096)
        file.write(random.Random(0).randbytes(path.stat().st_size - 4096))


@pytest.mark.parametrize("make, message", [
    (lambda path: path.write_text("accuracy,0.5\n" * 100), "is no SQLite file; give another path"),
    (lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(84)), "no SQLite file|damaged"),
    (foreign, "of another program: give another path"),
    (newer, "has format 2 and this jaxnas reads format 1: use the jaxnas that wrote it"),
    (truncated, "is damaged"), (scribbled, "is damaged"),
    (lambda path: path.mkdir(), "is a file in a folder that exists")])
def test_what_is_no_store_is_refused_and_left_alone(tmp_path, make, message):
    path = tmp_path / "trials.sqlite"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(TrialError, match=message) as caught:
        trials.open_store(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_missing_folder_and_bad_waits_are_refused(tmp_path):
    with pytest.raises(TrialError, match="make its folder first"):
        trials.open_store(tmp_path / "missing" / "trials.sqlite")
    with pytest.raises(TrialError, match="busy_seconds must be at least 0"):
        trials.open_store(tmp_path / "trials.sqlite", busy_seconds=-1)
    assert not list(tmp_path.iterdir())


def test_empty_file_becomes_a_store(tmp_path):  # a process that was killed while it made one
    path = tmp_path / "trials.sqlite"
    path.touch()
    assert len(filled(path, 2)) == 2


def test_locked_store_says_so(tmp_path):
    path = tmp_path / "trials.sqlite"
    filled(path, 1)
    with trials.open_store(path, busy_seconds=0.01) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TrialError, match="another process keeps it locked"):
            store.claim("toy", (5,), RECIPE)
        assert store.counts().done == 1, "reading needs no lock"
        other.close()
        store.claim("toy", (5,), RECIPE)


def test_full_disk_keeps_what_is_stored_and_the_store_goes_on(tmp_path):
    path = tmp_path / "trials.sqlite"
    stored = filled(path)
    with trials.open_store(path) as store:
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")  # the same error: SQLITE_FULL
        with pytest.raises(TrialError, match="the disk is full; free some space"):
            for i in range(100, 1000):
                claimed = store.claim("toy", (i,), RECIPE)
                store.finish(claimed, {"curve": [0.1] * 500})
        now = list(store.trials())
        assert now[:30] == stored
        store._connection.execute("PRAGMA max_page_count = 100000")
        store.finish(store.claim("toy", (5000,), RECIPE), {})
    with trials.open_store(path) as store:
        assert list(store.trials())[:-1] == now


def test_limit_on_file_sizes_keeps_what_is_stored(tmp_path):
    path = tmp_path / "trials.sqlite"
    run = subprocess.run([sys.executable, "-c", FILLER, path], text=True, check=True,
                         stdout=subprocess.PIPE)
    stored, message = run.stdout.split(maxsplit=1)
    assert "a limit on file sizes was met" in message or "the disk is full" in message
    with trials.open_store(path) as store:
        assert [trial.arch[0] for trial in store.trials()] == [*range(int(stored)), 10 ** 6]


@pytest.mark.parametrize("exists", [False, True])
def test_read_only_folder_is_refused_and_kept(exists):
    folder = Path(tempfile.mkdtemp())  # pytest's own are closed to other users
    path = folder / "trials.sqlite"
    try:
        stored = filled(path) if exists else []
        if exists:
            path.chmod(0o444)
        folder.chmod(0o555)
        if os.geteuid() == 0:
            os.seteuid(65534)  # root may write anywhere
        try:
            with pytest.raises(TrialError, match="give a file in a folder that you may write to"):
                trials.open_store(path)
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
        folder.chmod(0o755)
        if exists:
            path.chmod(0o644)
            with trials.open_store(path) as store:
                assert list(store.trials()) == stored
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)
