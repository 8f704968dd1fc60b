"""Which processes make up a run, and how they find each other before JAX starts.

JAX's own client ends its process (SIGABRT) when it cannot connect in time, and says neither whom
it waited for nor why. So the processes first meet here, at the port where process 0 will start
JAX's coordination service: what is wrong is an exception, and a process that was started again
does not join the service of the attempt before.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_REMEDY = "give --coordinator HOST:PORT, --num-processes N and --process-id I, or start under srun"
_LINE = 2000     # bytes of what two processes tell each other, at most
_RETRY = 0.2     # seconds between two tries to connect


class ClusterError(RuntimeError):
    """The processes of a run cannot meet, or do not agree; the message is one sentence."""


class Cluster(NamedTuple):
    """Several processes that run one program."""

    coordinator: str    # "host:port" of process 0
    num_processes: int  # 2 or more
    process_id: int     # of this process, in [0, num_processes)


def find(coordinator: str | None = None, num_processes: int | None = None,
         process_id: int | None = None, environ: Mapping[str, str] | None = None) -> Cluster | None:
    """Find out which processes make up this run; None if it is this one alone.

    What is not given is taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID,
    then from SLURM (`srun`) or Open MPI (`mpirun`). Their coordinator is the first node of the step
    or where `mpirun` runs, at a port that follows from the job's number; JAX_COORDINATOR_PORT
    chooses another.

    Args:
      coordinator: "host:port" of process 0; the port is free there, and all processes reach it.
      num_processes: 1 or more; 1 means no cluster.
      process_id: of this process, in [0, num_processes); each only once.
      environ: environment variables; by default those of this process.

    Raises:
      ValueError: one of the three is missing where another is known, is malformed or out of range.
    """
    environ = os.environ if environ is None else environ
    sources = [_from_jax(environ), _from_slurm(environ), _from_open_mpi(environ)]
    known: dict[str, str | int | None] = {
        "coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    for source in sources:
        known |= {name: source.get(name) for name, value in known.items() if value is None}
    missing = [f"--{name.replace('_', '-')}" for name, value in known.items() if value is None]
    if len(missing) == 3:
        return None
    count, own = (_integer(name, known[name]) for name in ("num_processes", "process_id"))
    if count is not None and count < 1:
        raise ValueError(f"num_processes must be 1 or more, got {count}.")
    if count == 1 and not own:
        return None
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be known too, since "
                         f"{', '.join(f'{n}={v}' for n, v in known.items() if v is not None)}: "
                         f"{_REMEDY}.")
    assert count is not None and own is not None
    if not 0 <= own < count:
        raise ValueError(f"process_id must be in [0, {count - 1}] for num_processes={count}, got "
                         f"{own}.")
    address = str(known["coordinator"])
    host_and_port(address)
    return Cluster(address, count, own)


def host_and_port(address: str) -> tuple[str, int]:
    """Split "host:port", or "[v6 address]:port".

    Raises:
      ValueError: it is neither.
    """
    found = re.fullmatch(r"(?:\[([^][]+)\]|([^][:]+)):([0-9]{1,5})", address)
    if not found or not 1 <= int(found[3]) <= 65535:
        raise ValueError(f"coordinator must be HOST:PORT with a port in [1, 65535], got "
                         f"{address!r}.")
    return found[1] or found[2], int(found[3])


def _integer(name: str, value: str | int | None) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError:
        raise ValueError(f"{name} must be an integer, got {value!r}.") from None


def _from_jax(environ: Mapping[str, str]) -> dict[str, str]:
    names = {"coordinator": "JAX_COORDINATOR_ADDRESS", "num_processes": "JAX_NUM_PROCESSES",
             "process_id": "JAX_PROCESS_ID"}
    return {name: environ[variable] for name, variable in names.items() if environ.get(variable)}


def _from_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """Read a step of `srun`; a batch script outside of one is a process of its own."""
    count = environ.get("SLURM_STEP_NUM_TASKS")
    nodes = environ.get("SLURM_STEP_NODELIST")
    if not (count and nodes and environ.get("SLURM_PROCID") and environ.get("SLURM_JOB_ID")):
        return {}
    if int(count) == 1:
        return {}
    first = re.match(r"([^,\[]+)(?:\[([0-9]+))?", nodes)  # node[001-004,7],other[...]
    host = "" if first is None else first[1] + (first[2] or "")
    return {"coordinator": f"{host}:{_port(environ, int(environ['SLURM_JOB_ID']))}",
            "num_processes": count, "process_id": environ["SLURM_PROCID"]}


def _from_open_mpi(environ: Mapping[str, str]) -> dict[str, str]:
    """Read what `mpirun` set; since Open MPI 5 that does not say where it runs."""
    count, own = (environ.get(f"OMPI_COMM_WORLD_{name}") for name in ("SIZE", "RANK"))
    if not count or not own or int(count) == 1:
        return {}
    found = {"num_processes": count, "process_id": own}
    launcher = environ.get("OMPI_MCA_orte_hnp_uri", "")
    place = re.match(r"([0-9]+)\..*?tcp://([^,:]+)", launcher)
    if place:
        found["coordinator"] = f"{place[2]}:{_port(environ, int(place[1]) // 4096)}"
    return found


def _port(environ: Mapping[str, str], job: int) -> str:
    """Return JAX_COORDINATOR_PORT, or one of the last 4096, which JAX takes too."""
    return environ.get("JAX_COORDINATOR_PORT") or str(61440 + job % 4096)


def meet(cluster: Cluster, timeout: float) -> None:
    """Return when all processes are there, each with another number and the same count.

    Args:
      cluster: of this process.
      timeout: seconds to wait for the others, > 0.

    Raises:
      ClusterError: the port is taken; the host is unknown; a process was refused; or the time is
        over, naming whom was waited for.
    """
    deadline = time.monotonic() + timeout
    if cluster.process_id == 0:
        _receive(cluster, timeout, deadline)
    else:
        _arrive(cluster, timeout, deadline)


def _receive(cluster: Cluster, timeout: float, deadline: float) -> None:
    _, port = host_and_port(cluster.coordinator)
    try:
        both = socket.has_dualstack_ipv6()
        server = socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both)
    except OSError as error:
        raise ClusterError(f"process 0 cannot listen at port {port} of {cluster.coordinator} "
                           f"({error.strerror}): choose another port.") from error
    wanted = set(range(1, cluster.num_processes))
    there: dict[int, socket.socket] = {}
    with server, contextlib.ExitStack() as stack:
        while wanted - set(there):
            left = deadline - time.monotonic()
            ready, _, _ = select.select([server, *there.values()], [], [], max(0.0, left))
            if not ready:
                absent = ", ".join(map(str, sorted(wanted - set(there))[:20]))
                message = (f"process 0 waited {timeout:g} s at {cluster.coordinator} for process "
                           f"{absent} of {cluster.num_processes}, which did not come: start it, "
                           "or see why it failed.")
                _tell(there.values(), message)
                raise ClusterError(message)
            # They have nothing to say: one that can be read is gone.
            there = {number: peer for number, peer in there.items() if peer not in ready}
            if server in ready:
                guest = stack.enter_context(server.accept()[0])
                found, problem = _introduced(guest, cluster, there)
                if problem:
                    _tell([guest], problem)
                elif found is not None:
                    there[found] = guest
        _tell(there.values(), "")


def _introduced(peer: socket.socket, cluster: Cluster,
                there: Mapping[int, socket.socket]) -> tuple[int | None, str]:
    """Return (number, why it is refused) of a process that came; (None, "") for a stranger."""
    line = _read_line(peer, 2.0)
    try:
        number, count = json.loads(line)
        if type(number) is not int or type(count) is not int:
            return None, ""
    except (ValueError, TypeError):
        return None, ""
    if count != cluster.num_processes:
        return number, (f"process {number} was started with num_processes={count}, process 0 with "
                        f"{cluster.num_processes}: give all the same.")
    if not 1 <= number < cluster.num_processes or number in there:
        return number, f"process_id={number} was given to two processes: give each its own."
    return number, ""


def _arrive(cluster: Cluster, timeout: float, deadline: float) -> None:
    address, reason = host_and_port(cluster.coordinator), "nobody answers"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=min(5.0, left)) as peer:
                hello = json.dumps([cluster.process_id, cluster.num_processes])
                peer.sendall(hello.encode("ascii") + b"\n")
                line = _read_line(peer, deadline - time.monotonic())
            if not line and time.monotonic() >= deadline:
                reason = "it listens, and others may not have come to it"
                break
            answer = json.loads(line)
            if answer == "":
                return
            if isinstance(answer, str):
                raise ClusterError(answer)
        except socket.gaierror as error:
            raise ClusterError(f"process {cluster.process_id} cannot find the host of the "
                               f"coordinator {cluster.coordinator}: {error.strerror}.") from error
        except OSError as error:
            reason = error.strerror or "no answer"
        except ValueError:
            reason = "another program, or an earlier attempt, answers"
        time.sleep(_RETRY)
    raise ClusterError(f"process {cluster.process_id} waited {timeout:g} s for process 0 at "
                       f"{cluster.coordinator} ({reason}): start it, or see why it failed.")


def _tell(peers: Iterable[socket.socket], message: str) -> None:
    for peer in peers:
        with contextlib.suppress(OSError):  # one that is gone will be missed by JAX
            peer.sendall(json.dumps(message).encode("ascii") + b"\n")


def _read_line(peer: socket.socket, seconds: float) -> str:
    """Return a line of ASCII; "" if none comes in time, or the other end closes."""
    deadline, data = time.monotonic() + seconds, b""
    while not data.endswith(b"\n") and len(data) < _LINE:
        try:
            peer.settimeout(max(0.01, deadline - time.monotonic()))
            chunk = peer.recv(_LINE - len(data))
        except OSError:
            break
        if not chunk:
            break
        data += chunk
    return data.decode("ascii", errors="replace")
