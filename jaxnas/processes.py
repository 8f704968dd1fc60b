"""Which process is it, and is it still there? Process ids are used again; start times are not."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from pathlib import Path


@functools.cache
def machine() -> str:
    """Name what process ids are unique in: the host, the boot of its kernel, the container."""
    boot = namespace = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {boot} {namespace}".strip()


def this_process() -> tuple[str, int, str]:
    """Return (machine, process id, start time) of the caller; the time is "" where unknown."""
    return machine(), os.getpid(), start_time(os.getpid()) or ""


def is_gone(where: str, pid: int, started: str) -> bool:
    """Tell whether a process is gone for certain, so that there is nobody to wait for.

    Args:
      where, pid, started: what `this_process` returned in it; of another machine nothing is
        certain.
    """
    if where != machine() or os.name != "posix":  # elsewhere signal 0 is not harmless
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it is there, and of another user
    now = start_time(pid)
    return bool(started) and now is not None and now != started


def start_time(pid: int) -> str | None:
    """Return when a process started, in ticks since the boot; "" for a dead one; None unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2:].split()  # the name before may hold spaces; proc(5)
    return "" if fields[0] in "ZX" else fields[19]
