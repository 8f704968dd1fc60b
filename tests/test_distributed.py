"""Several processes: who belongs to a run, how they meet, one step over all their devices.

The file is a program too: `PROGRAM` is one process of a run of two, with two devices each.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import checkpoints, distributed, parallel, training
from jaxnas.distributed_start import Cluster, ClusterError, find, host_and_port, meet
from jaxnas.searchers import bilevel

ROOT = Path(__file__).parents[1]
JAX = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"}
SLURM = {"SLURM_JOB_ID": "4100", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1",
         "SLURM_STEP_NODELIST": "node[003-005,7],other"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3",
            "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}


# ---- who belongs to it ---------------------------------------------------------------------------


@pytest.mark.parametrize("flags, environ, expected", [
    ({}, {}, None),
    ({"num_processes": 1}, {}, None),
    ({"coordinator": "h:1", "num_processes": 1, "process_id": 0}, {}, None),
    ({"coordinator": "h:1", "num_processes": 2, "process_id": 1}, {}, Cluster("h:1", 2, 1)),
    ({"coordinator": "[::1]:9", "num_processes": 2, "process_id": 0}, {},
     Cluster("[::1]:9", 2, 0)),
    ({}, JAX, Cluster("a:1", 3, 2)),
    ({"process_id": 0}, JAX, Cluster("a:1", 3, 0)),
    ({}, SLURM, Cluster("node003:61444", 4, 1)),
    ({}, {**SLURM, "SLURM_STEP_NODELIST": "n1,n2", "JAX_COORDINATOR_PORT": "7"},
     Cluster("n1:7", 4, 1)),
    ({}, {**SLURM, **JAX}, Cluster("a:1", 3, 2)),
    ({}, {**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, None),
    ({}, {name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_PROCID")}, None),
    ({}, OPEN_MPI, Cluster(f"10.96.0.1:{61440 + 1531576320 // 4096 % 4096}", 4, 3)),
    ({"coordinator": "h:5"}, {**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": ""}, Cluster("h:5", 4, 3)),
])
def test_find(flags, environ, expected):
    assert find(**flags, environ=environ) == expected


@pytest.mark.parametrize("flags, environ, message", [
    ({"coordinator": "h:1"}, {}, "--num-processes and --process-id must be known.*coordinator=h:1"),
    ({"num_processes": 2, "process_id": 0}, {}, "--coordinator must be known"),
    ({}, {**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": ""}, "--coordinator must be known.*=4"),
    ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, {}, r"in \[0, 1\].*got 2"),
    ({"coordinator": "h:1", "num_processes": 2, "process_id": -1}, {}, "got -1"),
    ({"num_processes": 0}, {}, "num_processes must be 1 or more, got 0"),
    ({"coordinator": "h", "num_processes": 2, "process_id": 0}, {}, "HOST:PORT.*'h'"),
    ({"coordinator": "h:0", "num_processes": 2, "process_id": 0}, {}, "HOST:PORT"),
    ({}, {**JAX, "JAX_NUM_PROCESSES": "two"}, "num_processes must be an integer, got 'two'"),
])
def test_find_says_what_is_wrong(flags, environ, message):
    with pytest.raises(ValueError, match=message):
        find(**flags, environ=environ)


def test_host_and_port():
    assert host_and_port("a.b:80") == ("a.b", 80) and host_and_port("[fe80::1]:2") == ("fe80::1", 2)


# ---- how they meet -------------------------------------------------------------------------------


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def meeting(port, members, timeout=60.0, zero_timeout=None):
    """Let (process_id, num_processes) meet, each in a thread; return what each got to hear.

    Where process 0 is to give up on someone, `zero_timeout` seconds are its own and long enough
    for the others to reach it on a machine that is busy; theirs end later, so its word reaches
    them.
    """
    said = [""] * len(members)

    def one(place, number, count):
        own = timeout if number or zero_timeout is None else zero_timeout
        try:
            meet(Cluster(f"127.0.0.1:{port}", count, number), own)
        except ClusterError as error:
            said[place] = str(error)

    threads = [threading.Thread(target=one, args=(place, *member))
               for place, member in enumerate(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def connection(port):
    """Connect as soon as somebody listens, within a minute."""
    end = time.monotonic() + 60.0
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def test_all_meet_and_strangers_do_not_matter(port):
    done = []
    thread = threading.Thread(target=lambda: done.append(meeting(port, [(0, 3), (1, 3)])))
    thread.start()
    for hello in (b"GET / HTTP/1.0\n", b"[null, 3]\n", b""):
        with connection(port) as stranger:
            stranger.sendall(hello)
    assert meeting(port, [(2, 3)]) == [""]
    thread.join()
    assert done == [["", ""]]


def test_timeouts_name_whom_was_waited_for(port):
    zero, one = meeting(port, [(0, 4), (1, 4)], zero_timeout=3.0)
    assert zero == one and "waited 3 s" in zero and "for process 2, 3 of 4" in zero
    alone, = meeting(port, [(1, 2)], timeout=0.3)
    assert "process 1 waited 0.3 s for process 0" in alone and "refused" in alone
    with socket.create_server(("127.0.0.1", port)):  # it is reached, and says nothing
        alone, = meeting(port, [(1, 2)], timeout=0.3)
    assert "process 1 waited 0.3 s" in alone and "others may not have come" in alone


def test_two_with_one_number_and_another_count(port):
    zero, *others = meeting(port, [(0, 3), (1, 3), (1, 3), (2, 4)], zero_timeout=3.0)
    assert "for process 2 of 3" in zero
    assert "process 2 was started with num_processes=4, process 0 with 3: give all" in others[2]
    assert sum("process_id=1 was given to two processes" in said for said in others) == 1


def test_a_taken_port_and_an_unknown_host(port):
    with socket.create_server(("127.0.0.1", port)):
        said, = meeting(port, [(0, 2)])
    assert f"cannot listen at port {port}" in said and "choose another port" in said
    with pytest.raises(ClusterError, match="cannot find the host of the coordinator no.invalid:1"):
        meet(Cluster("no.invalid:1", 2, 1), 5.0)


def test_one_that_left_may_come_again(port):
    waiting = threading.Thread(target=lambda: done.append(meeting(port, [(0, 2)])))
    done = []
    waiting.start()
    gone = connection(port)
    # A run of two waits for one process only; this one says three, and is refused.
    gone.sendall(b"[1, 3]\n")
    assert b"num_processes=3" in gone.recv(500)
    gone.close()
    assert meeting(port, [(1, 2)]) == [""]
    waiting.join()
    assert done == [[""]]


def test_the_service_of_an_earlier_attempt_is_not_joined(port):
    with socket.create_server(("127.0.0.1", port)) as service:
        service.settimeout(5.0)
        said = []
        thread = threading.Thread(
            target=lambda: said.extend(meeting(port, [(1, 2)], timeout=1.0)))
        thread.start()
        peer, _ = service.accept()
        with peer:
            peer.sendall(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\n")  # as HTTP/2 does
        service.close()
        thread.join()
    assert "waited 1 s for process 0" in said[0]


# ---- one step over all devices -------------------------------------------------------------------


def make_step(axis_name, program):
    """DARTS's exact second order on a layer of three operations."""
    def loss_fn(weights, alphas, batch):
        hidden = batch["x"] @ weights["in"]
        outputs = jnp.stack([hidden, jnp.tanh(hidden), jax.nn.relu(hidden)])
        hidden = jnp.tensordot(jax.nn.softmax(alphas), outputs, 1)
        mean = hidden.mean(0)
        if axis_name is not None:  # statistics of the whole batch
            mean = jax.lax.pmean(mean, axis_name)
        return training.cross_entropy((hidden - mean) @ weights["out"], batch["y"])

    return bilevel(loss_fn, training.sgd(0.1, clip_norm=0.5), training.adam(0.03),
                   gradient="hessian_vector", axis_name=axis_name, program=program)


def start():
    rng = np.random.default_rng(0)
    weights = {"in": rng.normal(size=(5, 8)), "out": rng.normal(size=(8, 3))}
    batches = [{"x": rng.normal(size=(8, 5)).astype(np.float32), "y": rng.integers(3, size=8)}
               for _ in range(6)]
    return jax.tree.map(jnp.float32, weights), jnp.zeros(3), batches


def one_process(folder):
    """Search on the devices of all processes, agree, save, and restore."""
    cluster = find()
    distributed.initialize(cluster, timeout=60.0)
    devices = parallel.global_devices(2)
    placed = [device.process_index for device in devices]
    weights, alphas, batches = start()
    step = make_step(parallel.AXIS, lambda name, f: parallel.mapped(f, devices))
    state = parallel.replicate(step.init(weights, alphas), devices)
    here = slice(4 * cluster.process_id, 4 * cluster.process_id + 4)
    parts = [parallel.place(parallel.shard_batch(
        jax.tree.map(lambda leaf: leaf[here], batch), 2), devices) for batch in batches]
    losses = []
    for train, valid in zip(parts[::2], parts[1::2]):
        state, info = step.update(state, train, valid)
        losses.append(float(parallel.unreplicate(info["valid_loss"])))
    found = parallel.host_copy(state)
    for number in range(3):  # twice and more: older ones are read and removed
        checkpoints.save(folder / "checkpoints", number, found, {})
    distributed.check_equal("the alphas", found.alphas.tobytes())  # and process 0 has saved
    restored = checkpoints.restore(folder / "checkpoints", found).state
    agreed = [distributed.any_process(flag) for flag in (False, cluster.process_id == 1)]
    try:
        distributed.check_equal("the process", bytes([cluster.process_id]))
        differs = ""
    except ClusterError as error:
        differs = str(error)
    np.savez(folder / f"{cluster.process_id}.npz", **found.weights, alphas=found.alphas,
             restored=restored.alphas)
    (folder / f"{cluster.process_id}.json").write_text(json.dumps(
        {"devices": placed, "losses": losses, "agreed": agreed, "differs": differs}))
    distributed.leave()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two processes of two devices each found: their arrays, and their facts."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    running = [subprocess.Popen(
        [sys.executable, __file__, str(folder)], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
             "JAX_COORDINATOR_ADDRESS": place, "JAX_NUM_PROCESSES": "2",
             "JAX_PROCESS_ID": str(number)}) for number in range(2)]
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    return [(np.load(folder / f"{number}.npz"), json.loads(
        (folder / f"{number}.json").read_text())) for number in range(2)]


def test_two_processes_of_two_devices_equal_one_device(two_processes):
    weights, alphas, batches = start()
    step = make_step(None, lambda name, f: jax.jit(f))
    state, losses = step.init(weights, alphas), []
    for train, valid in zip(batches[::2], batches[1::2]):
        state, info = step.update(state, train, valid)
        losses.append(float(info["valid_loss"]))
    assert np.abs(state.alphas).max() > 0.01  # they moved
    for arrays, facts in two_processes:
        np.testing.assert_allclose(arrays["alphas"], state.alphas, atol=1e-5)
        for name, value in state.weights.items():
            np.testing.assert_allclose(arrays[name], value, atol=1e-5)
        np.testing.assert_allclose(facts["losses"], losses, atol=1e-5)
        assert facts["devices"] == [0, 0, 1, 1]


def test_processes_have_the_same_and_read_what_the_first_saved(two_processes):
    (zero, _), (one, _) = two_processes
    for name in zero.files:
        np.testing.assert_array_equal(zero[name], one[name])
    np.testing.assert_array_equal(zero["restored"], zero["alphas"])


def test_processes_agree(two_processes):
    for _, facts in two_processes:
        assert facts["agreed"] == [False, True]  # set on the second alone
        assert facts["differs"].startswith("the process of process 1 differs from that of")


def test_with_one_process_nothing_is_asked():
    assert distributed.any_process(True) and not distributed.any_process(False)
    distributed.check_equal("anything", b"")
    distributed.leave()


if __name__ == "__main__":
    one_process(Path(sys.argv[1]))
