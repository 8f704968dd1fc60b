"""The trial store: every trial finished once, metrics bit for bit, leases, and one clear error."""

import math
import os
import random
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from jaxnas import processes, trial_json, trials
from jaxnas.trials import Busy, Claimed, Counts, LeaseLost, Store, Trial, TrialError

RECIPE = {"data": "ab12", "seed": 0, "optimizer": {"name": "sgd", "rates": [0.1, 0.01]}}


class Clock:
    """A wall clock that tests set."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(trials, "_now", clock)
    return clock


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with trials.open_store(tmp_path / "trials.sqlite") as store:
        yield store


def claim(store: Store, *arch: int, lease_seconds: float = 600.0) -> Claimed:
    claimed = store.claim("toy", arch, RECIPE, lease_seconds=lease_seconds)
    assert isinstance(claimed, Claimed), claimed
    return claimed


def sql(store_path: Path, statement: str, *values: object) -> list:
    connection = sqlite3.connect(store_path)
    with connection:
        rows = connection.execute(statement, values).fetchall()
    connection.close()
    return rows


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def test_finished_trial_is_found_by_every_later_store(tmp_path, clock):
    path = tmp_path / "trials.sqlite"
    metrics = {"accuracy": 0.1 + 0.2, "curve": [0.5, 1.0]}
    with trials.open_store(path) as store:
        claimed = claim(store, 2, 0, 1)
        clock.now += 7.5
        finished = store.finish(claimed, metrics)
        assert finished == Trial("toy", (2, 0, 1), RECIPE, metrics, False, None, 7.5, 1, 1e9 + 7.5)
        assert list(finished.metrics) == ["accuracy", "curve"]
    with trials.open_store(path) as store:
        assert store.claim("toy", np.array([2, 0, 1], np.int32), dict(reversed(RECIPE.items()))
                           ) == finished
        assert store.lookup("toy", jnp.array([2, 0, 1]), RECIPE) == finished
        assert store.lookup("toy", (2, 0), RECIPE) is None
        assert store.lookup("other", (2, 0, 1), RECIPE) is None
        assert store.lookup("toy", (2, 0, 1), {**RECIPE, "seed": 1}) is None
        assert list(store.trials()) == [finished]
    assert sql(path, "SELECT json_extract(metrics, '$.accuracy') FROM trials") == [(0.1 + 0.2,)]
    assert not path.with_name("trials.sqlite-wal").exists()


def test_metrics_come_back_bit_for_bit(store):
    draw = random.Random(0)
    doubles = [struct.unpack("<d", draw.randbytes(8))[0] for _ in range(1000)]
    nans = [struct.unpack("<Q", struct.pack("<Q", base + i))[0] for i in range(3)
            for base in (0x7FF8000000000000, 0xFFF8000000000000)]
    doubles += [struct.unpack("<d", struct.pack("<Q", pattern))[0] for pattern in nans]
    doubles += [0.0, -0.0, math.inf, -math.inf, 5e-324, sys.float_info.max, 1.0, -3.0, 1e22]
    singles = np.frombuffer(draw.randbytes(4000), np.uint32)
    quiet = np.where((singles & 0x7F800000) == 0x7F800000, singles | 0x400000, singles)
    singles = quiet.astype(np.uint32).view(np.float32)
    store.finish(claim(store, 1), {
        "doubles": doubles, "singles": singles, "nan": math.nan, "zero": -0.0, "count": 3,
        "empty": [], "scalar": np.float32(0.1), "jax": jnp.float32(0.1)})
    metrics = store.lookup("toy", (1,), RECIPE).metrics
    assert list(map(bits, metrics["doubles"])) == list(map(bits, doubles))
    back = np.array(metrics["singles"]).astype(np.float32)
    np.testing.assert_array_equal(back.view(np.uint32), singles.view(np.uint32))
    assert bits(metrics["nan"]) == bits(math.nan) and bits(metrics["zero"]) == bits(-0.0)
    assert type(metrics["count"]) is float and metrics["empty"] == []
    assert metrics["scalar"] == metrics["jax"] == float(np.float32(0.1))


def test_order_is_that_of_finishing_and_the_store_may_be_written_meanwhile(store, monkeypatch):
    monkeypatch.setattr(trials, "PAGE", 3)
    claims = [claim(store, i) for i in range(10)]
    order = random.Random(1).sample(range(10), 10)
    for i in order[:7]:
        store.finish(claims[i], {"i": i})
    seen = []
    for trial in store.trials():
        seen.append(trial.arch[0])
        if trial.order == 5:
            for i in order[7:]:
                store.finish(claims[i], {"i": i})
    assert seen == order
    other = store.claim("toy", (0,), {"seed": 1})
    store.finish(other, {}, failed=True, error="no memory \udcff", seconds=2.0)
    [trial] = store.trials(recipe={"seed": 1})
    assert (trial.failed, trial.error, trial.seconds) == (True, "no memory \\udcff", 2.0)
    assert trial.order == 11 and trial.metrics == {}
    assert len(list(store.trials(space="toy"))) == 11 and not list(store.trials(space="x"))
    assert store.claim("toy", (0,), {"seed": 1}) == trial, "a failure is known too"
    store.release(claim(store, 20))
    claim(store, 21)
    assert store.counts() == Counts(done=10, failed=1, claimed=1, free=1)


def test_claims_exclude_each_other(tmp_path, store):
    with trials.open_store(tmp_path / "trials.sqlite") as second:
        claimed = claim(store, 1)
        busy = second.claim("toy", (1,), RECIPE)
        assert isinstance(busy, Busy) and busy.pid == os.getpid()
        assert busy.expires_at == pytest.approx(busy.heartbeat_at + 600.0)
        assert isinstance(store.claim("toy", (1,), RECIPE), Busy), "its own claim too"
        claim(second, 2)
        store.release(claimed)
        taken = claim(second, 1)
        assert taken.lost == 0, "given back, not lost"
        store.release(claimed)  # no longer its own
        assert isinstance(store.claim("toy", (1,), RECIPE), Busy)
    assert claim(store, 1).lost == 0 and claim(store, 2).lost == 0, "closing gives back"


def test_lease_ends_without_heartbeat_and_first_to_finish_wins(tmp_path, store, clock):
    with trials.open_store(tmp_path / "trials.sqlite") as second:
        slow = claim(store, 1, lease_seconds=10.0)
        clock.now += 9.0
        store.heartbeat(slow)
        clock.now += 9.0
        assert second.claim("toy", (1,), RECIPE) == Busy(
            processes.machine(), os.getpid(), 1e9 + 9.0, 1e9 + 19.0)
        clock.now += 1.0
        taken = claim(second, 1, lease_seconds=10.0)
        assert taken.lost == 1
        with pytest.raises(LeaseLost, match="no longer held.*claim it again"):
            store.heartbeat(slow)
        second.heartbeat(taken)
        second.finish(taken, {"accuracy": 1.0})
        for late in (lambda: store.finish(slow, {"accuracy": 2.0}), lambda: store.heartbeat(slow),
                     lambda: second.finish(taken, {"accuracy": 3.0})):
            with pytest.raises(LeaseLost):
                late()
        assert store.lookup("toy", (1,), RECIPE).metrics == {"accuracy": 1.0}
        slow = claim(store, 2, lease_seconds=10.0)
        clock.now += 10.0
        taken = claim(second, 2)
        store.finish(slow, {"accuracy": 4.0})  # taken over, but nobody was faster
        with pytest.raises(LeaseLost):
            second.heartbeat(taken)
        with pytest.raises(LeaseLost, match="finished already"):
            second.finish(taken, {"accuracy": 5.0})
        assert second.lookup("toy", (2,), RECIPE).metrics == {"accuracy": 4.0}


def test_clock_that_goes_back_delays_by_one_lease_at_most(tmp_path, store, clock):
    with trials.open_store(tmp_path / "trials.sqlite") as second:
        alive, hung = claim(store, 1, lease_seconds=10.0), claim(store, 2, lease_seconds=10.0)
        clock.now -= 3600.0
        for arch in (1, 2):
            assert second.claim("toy", (arch,), RECIPE).expires_at == clock.now + 10.0
        clock.now += 5.0
        store.heartbeat(alive)
        clock.now += 5.0
        assert isinstance(second.claim("toy", (1,), RECIPE), Busy)
        assert claim(second, 2).lost == 1
        assert store.finish(hung, {}).seconds == 0.0, "never negative"


@pytest.mark.skipif(sys.platform != "linux", reason="only /proc has start times")
@pytest.mark.parametrize("column, value, gone", [
    ("started", "1", True),  # its process id belongs to a later process
    ("started", "", False),  # unknown
    ("pid", 2 ** 22 + 1, True),  # above Linux's limit of process ids
    ("machine", "another", False)])
def test_dead_owner_is_noticed_at_once(tmp_path, store, column, value, gone):
    claim(store, 1)
    sql(tmp_path / "trials.sqlite", f"UPDATE trials SET {column} = ?", value)
    assert isinstance(store.claim("toy", (1,), RECIPE), Claimed if gone else Busy)


def test_threads_share_a_store(store):
    def work(numbers: list[int]) -> None:
        for i in numbers:
            claimed = store.claim("toy", (i,), RECIPE)
            if isinstance(claimed, Claimed):
                store.heartbeat(claimed)
                done.append(store.finish(claimed, {"i": i}).arch[0])

    done: list[int] = []
    orders = [random.Random(seed).sample(range(40), 40) for seed in range(4)]
    threads = [threading.Thread(target=work, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(40))


@pytest.mark.parametrize("call, message", [
    (lambda store: store.claim("", (1,), RECIPE), "space must be"),
    (lambda store: store.claim("toy", (1.0,), RECIPE), "arch must be integers"),
    (lambda store: store.claim("toy", np.zeros((2, 3), int), RECIPE), "arch must be integers"),
    (lambda store: store.claim("toy", 3, RECIPE), "arch must be integers"),
    (lambda store: store.claim("toy", (1,), RECIPE, lease_seconds=0), "lease_seconds must be"),
    (lambda store: store.claim("toy", (1,), RECIPE, lease_seconds=math.nan), "lease_seconds must"),
    (lambda store: store.claim("toy", (1,), "sgd"), "recipe must be a dictionary"),
    (lambda store: store.claim("toy", (1,), {"a": [1, math.nan]}), r"recipe\['a'\]\[1\] is nan"),
    (lambda store: store.claim("toy", (1,), {"a": np.float32(1)}), "'a'.* is a float32"),
    (lambda store: store.claim("toy", (1,), {"a": {1: 2}}), r"'a'\] has the key 1: use strings"),
    (lambda store: store.finish(claim(store, 1), {"a": "x"}), r"metrics\['a'\] must be a number"),
    (lambda store: store.finish(claim(store, 1), {"a": [[1.0]]}), "must be a number or"),
    (lambda store: store.finish(claim(store, 1), {"a": True}), "must be a number or"),
    (lambda store: store.finish(claim(store, 1), {1: 1.0}), "has the key 1"),
    (lambda store: store.finish(claim(store, 1), {"a": 2 ** 53 + 1}), "no float64 holds"),
    (lambda store: store.finish(claim(store, 1), {"a": 10 ** 400}), "no float64 holds"),
    (lambda store: store.finish(claim(store, 1), {}, error="x"), "error must be None"),
    (lambda store: store.finish(claim(store, 1), {}, seconds=-1.0), "seconds must be"),
    (lambda store: store.finish(Claimed(("toy", "[9]", "0"), "t", 1.0, 0), {}), "never claimed"),
])
def test_bad_arguments_are_refused_in_one_sentence(store, call, message):
    with pytest.raises(TrialError, match=message) as caught:
        call(store)
    assert "\n" not in str(caught.value)
    assert store.counts().done == 0


def test_recipes_are_the_same_in_any_order_and_as_tuples():
    first = {"a": (1, 2.5), "b": {"x": None, "y": True, "ü": "é"}}
    second = {"b": {"ü": "é", "y": True, "x": None}, "a": [1, 2.5]}
    text = trial_json.canonical_json(first)
    assert text == trial_json.canonical_json(second)
    assert text == r'{"a":[1,2.5],"b":{"x":null,"y":true,"\u00fc":"\u00e9"}}'
    # sha256 of the empty object, as `printf {} | sha256sum` prints it
    assert trial_json.sha256("{}") == (
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a")


def test_closed_and_forked_stores_say_so(tmp_path):
    with trials.open_store(tmp_path / "trials.sqlite") as store:
        held = claim(store, 1)
        store._pid += 1  # as a child sees it
        with pytest.raises(TrialError, match="before a fork: open it again"):
            store.counts()
        store.close()
        store._pid -= 1
        store.heartbeat(held)  # the child's close did nothing
    store.close()
    with pytest.raises(TrialError, match="closed: open it again"):
        store.counts()


def test_exception_gives_the_claim_back(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with trials.open_store(tmp_path / "trials.sqlite") as store:
            claim(store, 1)
            raise ZeroDivisionError
    with trials.open_store(tmp_path / "trials.sqlite") as store:
        assert store.counts() == Counts(0, 0, 0, 1)


def test_workers_need_no_jax():
    program = "import sys, jaxnas.trials; sys.exit(bool({'jax', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], check=True)


class Model(RuleBasedStateMachine):
    """Two stores on one file against a dictionary; the owners live on, so only leases end."""

    folder: Callable[[], Path]
    clock: Clock
    archs = st.integers(0, 2)
    which = st.integers(0, 1)

    @initialize()
    def make(self) -> None:
        path = self.folder() / "trials.sqlite"
        self.stores = [trials.open_store(path) for _ in range(2)]
        self.claims: list[tuple[int, Claimed]] = []  # every claim ever made, with its arch
        self.leases: dict[int, tuple[str, float]] = {}  # arch -> token, end
        self.lost = dict.fromkeys(range(3), 0)
        self.done: dict[int, float] = {}

    @rule(seconds=st.sampled_from([1.0, 4.0, 10.0]))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule(which=which, arch=archs)
    def claim(self, which, arch):
        answer = self.stores[which].claim("toy", (arch,), RECIPE, lease_seconds=10.0)
        if arch in self.done:
            assert answer.metrics == {"value": self.done[arch]}
        elif arch in self.leases and self.clock.now < self.leases[arch][1]:
            assert answer.expires_at == self.leases[arch][1]
        else:
            self.lost[arch] += arch in self.leases
            assert answer.lost == self.lost[arch]
            self.claims.append((arch, answer))
            self.leases[arch] = answer.token, self.clock.now + 10.0

    @rule(which=which, data=st.data(), action=st.sampled_from(["finish", "heartbeat", "release"]))
    def use(self, which, data, action):
        if not self.claims:
            return
        arch, claimed = data.draw(st.sampled_from(self.claims))
        store, value = self.stores[which], self.clock.now
        holds = self.leases.get(arch, ("",))[0] == claimed.token
        refused = arch in self.done if action == "finish" else action == "heartbeat" and not holds
        arguments = ({"value": value},) if action == "finish" else ()
        if refused:
            with pytest.raises(LeaseLost):
                getattr(store, action)(claimed, *arguments)
            return
        getattr(store, action)(claimed, *arguments)
        if action == "finish":
            self.done[arch] = value
            self.leases.pop(arch, None)
        elif action == "heartbeat":
            self.leases[arch] = claimed.token, self.clock.now + 10.0
        elif holds:
            del self.leases[arch]

    def teardown(self):
        if hasattr(self, "stores"):
            found = {trial.arch[0]: trial.metrics["value"] for trial in self.stores[0].trials()}
            assert list(found.items()) == list(self.done.items()), "same metrics, same order"
            assert self.stores[1].counts().claimed == len(self.leases)
            for store in self.stores:
                store.close()


def test_any_sequence_of_calls_agrees_with_a_dictionary(tmp_path_factory, clock):
    class OnDisk(Model):
        folder = staticmethod(lambda: tmp_path_factory.mktemp("model"))
    OnDisk.clock = clock
    run_state_machine_as_test(OnDisk, settings=settings(
        max_examples=40, stateful_step_count=30, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck)))
