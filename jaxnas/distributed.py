"""One program on several hosts: start and end of `jax.distributed`, and what processes agree on.

Every process runs the same Python program (SPMD). The death of one ends the others: JAX's
coordination service aborts them, which no Python code can catch, so what starts them has to start
them again; see experiments/supervise.py.
"""

from __future__ import annotations

import hashlib

import jax
import numpy as np

from jaxnas.distributed_start import Cluster, ClusterError, find, meet

__all__ = ["Cluster", "ClusterError", "any_process", "check_equal", "find", "initialize", "leave"]

_DAYS_30 = 30 * 24 * 3600


def initialize(cluster: Cluster, *, timeout: float = 300.0, heartbeat_seconds: int = 60) -> None:
    """Join the processes of a run; before anything that makes JAX look for devices.

    Args:
      cluster: as `find` returned it.
      timeout: seconds to wait for the other processes, > 0.
      heartbeat_seconds: after so long without a sign of life a process counts as dead, and the
        others are aborted.

    Raises:
      ClusterError: as `distributed_start.meet`, or JAX has found its devices already.
    """
    meet(cluster, timeout)
    # JAX would answer SIGTERM itself, and in the place of those who save on it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            cluster.coordinator, cluster.num_processes, cluster.process_id,
            cluster_detection_method="deactivate",  # `find` looked; SLURM's would hide devices
            initialization_timeout=max(1, round(timeout)),
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=_DAYS_30)  # process 0 may work on while the others wait
        # Opens the connections now: Gloo gives up on a process that comes to the first collective
        # much later than others, and compilation takes them different times.
        any_process(False)
    except RuntimeError as error:
        raise ClusterError(f"jax.distributed cannot start: {' '.join(str(error).split())}"
                           ) from error


def leave() -> None:
    """Wait until all processes have come here, and part; does nothing with one process."""
    jax.distributed.shutdown()


def any_process(flag: bool) -> bool:
    """Return, on all processes the same, whether the flag is set on any; all must call it."""
    if jax.process_count() == 1:
        return flag
    return bool(_gather(np.array(flag)).any())


def check_equal(what: str, content: bytes) -> None:
    """Check that all processes hold the same; all must call it.

    Args:
      what: names it in the message.
      content: anything; only its digest is sent.

    Raises:
      ClusterError: it differs, naming the processes that differ from process 0.
    """
    if jax.process_count() == 1:
        return
    found = _gather(np.frombuffer(hashlib.sha256(content).digest(), np.uint8))
    other = [str(process) for process, digest in enumerate(found) if (digest != found[0]).any()]
    if other:
        raise ClusterError(f"{what} of process {', '.join(other)} differs from that of process 0: "
                           "all processes need the same program, versions, data and flags.")


def _gather(value: np.ndarray) -> np.ndarray:
    """Return [P, ...] from one array [...] a process."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(value))
