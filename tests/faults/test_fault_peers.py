"""Gate 13: processes of an SPMD run die, and all begin again; the killing is tests/'s."""

import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.gate(13), pytest.mark.slow]  # two processes compile a supernet


def test_five_peers_die(monkeypatch, environment, tmp_path, gate):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    monkeypatch.delitem(sys.modules, "test_distributed_darts", raising=False)
    import test_distributed_darts as spmd

    whole, path = tmp_path / "whole", tmp_path / "run"
    process = spmd.supervisor(environment, whole, *spmd.SEARCH, "--output", str(whole))
    assert "died" not in spmd.finish(process, whole)
    said = spmd.kill_peers(environment, path, kills=5)
    deaths = said.count(" died (SIGKILL)")
    assert deaths == 5 and "restart 5 of 20" in said
    assert spmd.outcome(path) == spmd.outcome(whole)
    gate(f"{deaths} deaths of one of two processes: restarted each time, bit-equal")
