"""One SQLite file of evaluations that several processes share, so that none is made twice.

Training one architecture takes minutes to hours. A process therefore claims a trial before it
starts, and finishes it as soon as the metrics are known: a crash costs the evaluation in flight,
and a search that is run again gets the metrics that are stored, bit for bit.

A trial is identified by the name of its space, its architecture in canonical form, and the recipe:
everything else that changes the metrics (sha256 of the data, seed, hyper-parameters, versions).
Write-ahead logging (https://www.sqlite.org/wal.html) needs a local disk: all processes run on one
machine. The file can be read by any SQLite program: `select arch, metrics from trials`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxnas import processes, trial_json
from jaxnas.trial_json import JSON, Metrics, TrialError

APPLICATION_ID = 0x4E415354  # "NAST", at a fixed place of the file: what tells ours from others
SCHEMA_VERSION = 1
SCHEMA = (
    "CREATE TABLE recipes (sha256 TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE trials (
      space TEXT NOT NULL,
      arch TEXT NOT NULL,            -- JSON list of integers
      recipe TEXT NOT NULL REFERENCES recipes (sha256),
      token TEXT,                    -- of the claim in force, else NULL
      machine TEXT, pid INTEGER, started TEXT,  -- the process that claimed it last
      lease_seconds REAL, claimed_at REAL, heartbeat_at REAL, expires_at REAL,  -- wall clock
      lost INTEGER NOT NULL DEFAULT 0,
      finish_order INTEGER UNIQUE,   -- 1, 2, ...; NULL until it is finished
      finished_at REAL, seconds REAL, failed INTEGER, error TEXT,
      metrics TEXT,                  -- JSON; a number that is not finite is its bits, in hex
      PRIMARY KEY (space, arch, recipe))""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
THIS = "space = ? AND arch = ? AND recipe = ?"
FINISHED = """SELECT space, arch, json AS recipe, metrics, failed, error, seconds, finish_order,
  finished_at FROM trials JOIN recipes ON recipe = sha256 WHERE finish_order"""
PAGE = 256  # trials read at a time
_now = time.time  # tests set it
REASONS = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space: all that was stored before is kept",
    sqlite3.SQLITE_READONLY: "it cannot be written; give a file in a folder that you may write to",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; give a file in a folder that you may write to",
    sqlite3.SQLITE_NOTADB: "it is no SQLite file; give another path",
    sqlite3.SQLITE_CORRUPT: "it is damaged; give another path, or `sqlite3 FILE .recover` a copy",
    sqlite3.SQLITE_BUSY: "another process keeps it locked; end that process, or try again",
    sqlite3.SQLITE_IOERR: "the disk failed, or a limit on file sizes was met; give another path",
}


class LeaseLost(TrialError):
    """The trial was finished by another claim, or (heartbeat only) is claimed by another now."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A finished trial, as stored."""
    space: str
    arch: tuple[int, ...]  # [L]
    recipe: dict[str, JSON]
    metrics: Metrics  # as finished, float64; empty if it failed before there were any
    failed: bool
    error: str | None  # why it failed
    seconds: float
    order: int  # 1, 2, ...: of finishing, over the whole store
    finished_at: float  # seconds since 1970


@dataclasses.dataclass(frozen=True)
class Claimed:
    """The right to do one trial; plain values, so it may be handed to another process."""
    identity: tuple[str, str, str]  # space, arch as JSON, sha256 of the recipe
    token: str
    lease_seconds: float
    lost: int  # earlier claims that ended in neither finish nor release


@dataclasses.dataclass(frozen=True)
class Busy:
    """Another claim holds the trial, perhaps one of this very process: look at `pid`."""
    machine: str
    pid: int
    heartbeat_at: float  # seconds since 1970
    expires_at: float  # without another heartbeat


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many trials there are in each state."""
    done: int  # finished, not failed
    failed: int
    claimed: int  # by processes alive or dead
    free: int  # released, and not claimed again


def open_store(path: str | os.PathLike[str], *, busy_seconds: float = 60.0) -> Store:
    """Open the store at `path`, made if there is none; use it in a `with`.

    Args:
      path: a file on a local disk, in a folder that exists.
      busy_seconds: how long a call waits for the short transactions of other processes, at least 0.

    Raises:
      TrialError: the file cannot be written, is damaged, is something else, or is a newer store.
    """
    if not 0 <= busy_seconds < math.inf:
        raise TrialError(f"busy_seconds must be at least 0 and finite, got {busy_seconds}.")
    path = Path(path).absolute()  # else SQLite takes ":memory:" for no file at all
    if path.is_dir() or not path.parent.is_dir():
        raise TrialError(f"A trial store is a file in a folder that exists, and {path} is not: "
                         "give the path of a file, and make its folder first.")
    with _explained(path):
        connection = sqlite3.connect(
            path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
        try:
            connection.row_factory = sqlite3.Row
            _prepare(connection, path, time.monotonic() + busy_seconds)
        except BaseException:
            connection.close()
            raise
    return Store(path, connection)


class Store:
    """The open file; `open_store` makes it.

    Every write is on disk when its call returns. Threads may share a store (a heartbeat in the
    background); a forked process opens its own. No method waits for a trial of another process.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection):
        self._path, self._connection = path, connection
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._held: dict[str, Claimed] = {}
        self._closed = False

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release what this store has claimed and not finished, and close the file."""
        if self._closed or self._pid != os.getpid():
            return  # a connection carried through a fork belongs to the parent
        # A full disk must not hide the caller's own error: unreleased leases end by themselves.
        with contextlib.suppress(TrialError):
            for claimed in list(self._held.values()):
                self.release(claimed)
        with self._lock:
            self._closed = True
            self._connection.close()

    def claim(self, space: str, arch: Iterable[Any], recipe: Mapping[str, Any], *,
              lease_seconds: float = 600.0) -> Trial | Claimed | Busy:
        """Return the finished trial, or else the right to do it, or else who is doing it.

        A claim is lost when its lease ends without a heartbeat, and at once when its process is
        gone from this machine (process id and start time), as after kill -9. `Claimed.lost` counts
        these: a caller that sees 3 may finish the trial as failed, for it kills its processes.

        Args:
          space: the name of the search space, not empty.
          arch: [L] integers, in the space's canonical form.
          recipe: string -> JSON without NaN and infinities. Tuples are lists; 1 and 1.0 differ.
          lease_seconds: above 0; `heartbeat` starts the lease again. Several times as long as the
            longest stretch between two heartbeats.
        """
        text = trial_json.canonical_json(recipe)
        identity = trial_json.identify(space, arch, text)
        if not 0 < lease_seconds < math.inf:
            raise TrialError(f"lease_seconds must be above 0 and finite, got {lease_seconds}.")
        with self._reading() as connection:  # what is known needs no lock
            if done := _find(connection, identity):
                return done
        with self._writing() as connection:
            if done := _find(connection, identity):  # finished since
                return done
            connection.execute("INSERT OR IGNORE INTO recipes VALUES (?, ?)", (identity[2], text))
            connection.execute(
                "INSERT OR IGNORE INTO trials (space, arch, recipe) VALUES (?, ?, ?)", identity)
            row = connection.execute(f"SELECT * FROM trials WHERE {THIS}", identity).fetchone()
            now, lost = _now(), row["lost"]
            if row["token"] is not None:
                # The clock went back: whoever is alive has one whole lease to say so.
                expires_at = min(row["expires_at"], now + row["lease_seconds"])
                owner = row["machine"], row["pid"], row["started"]
                if now < expires_at and not processes.is_gone(*owner):
                    connection.execute(
                        f"UPDATE trials SET expires_at = ? WHERE {THIS} AND expires_at > ?",
                        (expires_at, *identity, expires_at))
                    return Busy(*owner[:2], row["heartbeat_at"], expires_at)
                lost += 1
            claimed = Claimed(identity, secrets.token_hex(16), float(lease_seconds), lost)
            connection.execute(
                f"""UPDATE trials SET token = ?, lost = ?, machine = ?, pid = ?, started = ?,
                    lease_seconds = ?, claimed_at = ?, heartbeat_at = ?, expires_at = ?
                    WHERE {THIS}""",
                (claimed.token, lost, *processes.this_process(), lease_seconds, now, now,
                 now + lease_seconds, *identity))
        self._held[claimed.token] = claimed
        return claimed

    def heartbeat(self, claimed: Claimed) -> None:
        """Start the lease of a claim again.

        Raises:
          LeaseLost: another claim has taken the trial over or finished it; stop working on it.
        """
        with self._writing() as connection:
            now = _now()
            renewed = connection.execute(
                f"UPDATE trials SET heartbeat_at = ?, expires_at = ? WHERE {THIS} AND token = ?",
                (now, now + claimed.lease_seconds, *claimed.identity, claimed.token)).rowcount
        if not renewed:
            self._held.pop(claimed.token, None)
            raise LeaseLost("The trial {1} of {0} is no longer held by this claim: stop working on "
                            "it, and claim it again to get its metrics.".format(*claimed.identity))

    def release(self, claimed: Claimed) -> None:
        """Give a claim back without a result; a claim that is lost or finished is left alone."""
        with self._writing() as connection:
            connection.execute(f"UPDATE trials SET token = NULL WHERE {THIS} AND token = ?",
                               (*claimed.identity, claimed.token))
        self._held.pop(claimed.token, None)

    def finish(self, claimed: Claimed, metrics: Mapping[str, Any], *,
               seconds: float | None = None, failed: bool = False,
               error: str | None = None) -> Trial:
        """Store the result of a claim for good, and return the finished trial.

        A claim that ran out may still finish, as long as nobody else did: whoever took the trial
        over learns it from `heartbeat` or `finish`.

        Args:
          metrics: name -> number or [n] numbers, arrays included. They are kept as float64, NaN
            and its payload, -0.0 and infinities too; float32 goes there and back unchanged.
          seconds: what it took; since the claim if None.
          failed: it is never to be tried again with this recipe, and has no fitness.
          error: why it failed; only with `failed`.

        Raises:
          LeaseLost: the trial is finished already; its first metrics stay.
        """
        text = trial_json.metrics_to_json(metrics)
        if error is not None and not failed:
            raise TrialError("error must be None unless failed is True: pass failed=True.")
        if seconds is not None and not 0 <= seconds < math.inf:
            raise TrialError(f"seconds must be at least 0 and finite, or None, got {seconds}.")
        with self._writing() as connection:
            now = _now()
            updated = connection.execute(
                f"""UPDATE trials SET token = NULL, metrics = ?, failed = ?, error = ?,
                    finished_at = ?, seconds = coalesce(?, max(0.0, ? - claimed_at)),
                    finish_order = (SELECT coalesce(max(finish_order), 0) + 1 FROM trials)
                    WHERE {THIS} AND finish_order IS NULL""",
                (text, bool(failed), trial_json.printable(error), now, seconds, now,
                 *claimed.identity)).rowcount
            trial = _find(connection, claimed.identity)
        if trial is None:
            raise TrialError(f"The trial {claimed.identity[1]} was never claimed in {self._path}: "
                             "finish it in the store that it was claimed in.")
        self._held.pop(claimed.token, None)
        if not updated:
            raise LeaseLost("The trial {1} of {0} is finished already, and its first metrics stay: "
                            "claim it again to get them.".format(*claimed.identity))
        return trial

    def lookup(self, space: str, arch: Iterable[Any], recipe: Mapping[str, Any]) -> Trial | None:
        """Return the finished trial, or None; arguments as for `claim`."""
        identity = trial_json.identify(space, arch, trial_json.canonical_json(recipe))
        with self._reading() as connection:
            return _find(connection, identity)

    def trials(self, space: str | None = None,
               recipe: Mapping[str, Any] | None = None) -> Iterator[Trial]:
        """Yield the finished trials in order of finishing, all or those of a space or recipe.

        What is finished meanwhile is yielded too, and the store may be written to meanwhile.
        """
        sha256 = None if recipe is None else trial_json.sha256(trial_json.canonical_json(recipe))
        order = 0
        while True:
            with self._reading() as connection:  # page by page: a long read would block writers
                page = [_trial(row) for row in connection.execute(
                    f"""{FINISHED} > ? AND space = coalesce(?, space)
                        AND recipe = coalesce(?, recipe) ORDER BY finish_order LIMIT {PAGE}""",
                    (order, space, sha256))]
            yield from page
            if not page:
                return
            order = page[-1].order

    def counts(self) -> Counts:
        """Count the trials of the whole store by state."""
        with self._reading() as connection:
            return Counts(*connection.execute(
                """SELECT count(*) FILTER (WHERE failed = 0), count(*) FILTER (WHERE failed = 1),
                   count(token), count(*) FILTER (WHERE finish_order IS NULL AND token IS NULL)
                   FROM trials""").fetchone())

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        if self._pid != os.getpid():
            raise TrialError(f"The trial store {self._path} was opened before a fork: open it "
                             "again in this process.")
        with self._lock, _explained(self._path):
            if self._closed:
                raise TrialError(f"The trial store {self._path} is closed: open it again.")
            yield self._connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as connection, _transaction(connection):
            yield connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    # IMMEDIATE: who reads first and then wants to write is refused if another wrote meanwhile.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        reason = REASONS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "SQLite refused a call")
        raise TrialError(f"The trial store {path} failed: {reason} ({error}).") from error


def _prepare(connection: sqlite3.Connection, path: Path, deadline: float) -> None:
    """Tell our file from others before anything in it changes, and make the tables of a new one."""
    def read(query: str) -> Any:
        return connection.execute(query).fetchone()[0]

    tables = "SELECT count(*) FROM sqlite_master"
    if read(tables):
        if read("PRAGMA application_id") != APPLICATION_ID:
            raise TrialError(f"{path} is an SQLite file of another program: give another path.")
        if (version := read("PRAGMA user_version")) != SCHEMA_VERSION:
            raise TrialError(f"The trial store {path} has format {version} and this jaxnas reads "
                             f"format {SCHEMA_VERSION}: use the jaxnas that wrote it.")
        if (problem := read("PRAGMA quick_check(1)")) != "ok":
            raise TrialError(f"The trial store {path} is damaged: give another path, or "
                             f"`sqlite3 FILE .recover` a copy ({problem.splitlines()[-1]}).")
    while True:
        try:
            mode = read("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:  # two processes that make it: SQLite won't wait
            late = time.monotonic() > deadline
            if late or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise TrialError(f"The disk of {path} has no write-ahead log: give a path on a local disk.")
    # NORMAL survives kill -9; a power cut may take its last transactions. FULL flushes each one,
    # which is nothing beside a training.
    connection.execute("PRAGMA synchronous = FULL")
    with _transaction(connection):
        if not read(tables):
            for statement in SCHEMA:
                connection.execute(statement)


def _find(connection: sqlite3.Connection, identity: tuple[str, str, str]) -> Trial | None:
    row = connection.execute(f"{FINISHED} IS NOT NULL AND {THIS}", identity).fetchone()
    return row and _trial(row)


def _trial(row: sqlite3.Row) -> Trial:
    return Trial(row["space"], tuple(json.loads(row["arch"])), json.loads(row["recipe"]),
                 trial_json.metrics_from_json(row["metrics"]), bool(row["failed"]), row["error"],
                 row["seconds"], row["finish_order"], row["finished_at"])
