"""Flags of the experiments on tables: bad input is one sentence, dry runs, compilation alone."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import common, compare, evolution, local_search, ppo, random_search, reinforce
from tests.table_cases import STRATEGIES, VALID, call, name_of


@pytest.fixture(scope="module")
def compilations():
    """Names of the events of compilation so far, those of other tests too."""
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: events.append(event) if "backend_compile" in event else None)
    return events


def saved(path, **arrays):
    np.savez(path / "bad.npz", **arrays)
    return path / "bad.npz"


def text_file(path):
    (path / "bad.npz").write_text("no archive")
    return path / "bad.npz"


def finished(path):
    (path / "run").mkdir()
    (path / "run" / "config.json").write_text("{}")
    return path / "run"


ARCHS = np.arange(4)[:, None]
BAD = {
    "unknown table": (evolution, lambda p: ["--table", "nasbench202"], "no table nasbench202"),
    "missing file": (evolution, lambda p: ["--table", p / "x.npz"], "x.npz"),
    "folder of nothing": (evolution, lambda p: ["--table", p], str),
    "no archive": (evolution, lambda p: ["--table", text_file(p)], "bad.npz"),
    "hostile array": (evolution, lambda p: ["--table", saved(
        p, archs=ARCHS, accuracy=np.array([print] * 4, object))], "Python objects"),
    "hostile archs": (evolution, lambda p: ["--table", saved(
        p, archs=np.array([[open]], object), accuracy=np.ones(1))], "Python objects"),
    "no archs": (evolution, lambda p: ["--table", saved(p, accuracy=np.ones(4))], "archs"),
    "a row twice": (evolution, lambda p: ["--table", saved(
        p, archs=0 * ARCHS, accuracy=np.ones(4))], "twice"),
    "nothing finite": (evolution, lambda p: ["--table", saved(
        p, archs=ARCHS, accuracy=np.full(4, np.nan))], "no finite value"),
    "several metrics": (evolution, lambda p: ["--table", saved(
        p, archs=ARCHS, a=np.ones(4), b=np.ones(4))], "--metric"),
    "nothing to choose": (evolution, lambda p: ["--table", saved(
        p, archs=ARCHS[:1], accuracy=np.ones(1))], "two choices"),
    "unknown metric": (evolution, lambda p: ["--metric", VALID[:-1]], f"did you mean {VALID}"),
    "unknown report metric": (evolution, lambda p: ["--report-metric", "x"], "no metric 'x'"),
    "unknown cost": (evolution, lambda p: ["--cost-metric", "x", "--cost-budget", "1"],
                     "no metric 'x'"),
    "no evaluations": (evolution, lambda p: ["--evaluations", "0"], "evaluations must be >= 1"),
    "unique": (evolution, lambda p: ["--unique-evaluations", "-1"], "unique_evaluations"),
    "no block": (evolution, lambda p: ["--block", "0"], "block must be >= 1"),
    "log seeds": (evolution, lambda p: ["--log-seeds", "-1"], "log_seeds"),
    "no seeds": (evolution, lambda p: ["--num-seeds", "0"], "num_seeds"),
    "a cost alone": (evolution, lambda p: ["--cost-metric", VALID], "go together"),
    "a budget alone": (evolution, lambda p: ["--cost-budget", "5"], "go together"),
    "infinite budget": (evolution, lambda p: ["--cost-metric", VALID, "--cost-budget", "inf"],
                        "cost_budget"),
    "budget of nan": (evolution, lambda p: ["--cost-metric", VALID, "--cost-budget", "nan"],
                      "cost_budget"),
    "population": (evolution, lambda p: ["--population-size", "0"], "population_size"),
    "tournament": (evolution, lambda p: ["--tournament-size", "0"], "tournament_size"),
    "children": (evolution, lambda p: ["--children", "3"], "batch_size must divide"),
    "removal": (evolution, lambda p: ["--removal", "youngest"], "removal"),
    "mutation": (evolution, lambda p: ["--mutation", "cell"], "mutation"),
    "devices": (evolution, lambda p: ["--devices", "99"], "devices must be in [1, 8]"),
    "no devices": (evolution, lambda p: ["--devices", "-1"], "devices must be >= 0"),
    "output with a run": (evolution, lambda p: ["--output", finished(p)], "already holds a run"),
    "preset": (evolution, lambda p: ["--preset", "nasnet"], "--preset must be one of"),
    "move": (local_search, lambda p: ["--move", "last"], "move"),
    "policy": (reinforce, lambda p: ["--policy", "gru"], "policy"),
    "learning rate": (reinforce, lambda p: ["--learning-rate", "0"], "learning_rate"),
    "batch": (ppo, lambda p: ["--batch-size", "0"], "batch_size"),
    "clip": (ppo, lambda p: ["--clip-range", "-0.1"], "clip_range"),
    "a strategy twice": (compare, lambda p: ["--strategies", "ppo", "ppo"], "each once"),
    "unknown strategy": (compare, lambda p: ["--strategies", "annealing"], "strategies"),
    "inside compare": (compare, lambda p: ["--ppo.num-epochs", "0"], "num_epochs"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name, compilations, tmp_path, monkeypatch, capsys):
    module, arguments, word = BAD[name]
    arguments = arguments(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = len(compilations)
    code = call(module, "--smoke", *arguments)
    err = capsys.readouterr().err
    assert code == 2, err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err, err
    assert word is str or word in err, err
    assert len(err) < 1500 and len(compilations) == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("module, preset", [
    (module, preset) for module in STRATEGIES for preset in module.PRESETS],
    ids=lambda value: value if isinstance(value, str) else name_of(value))
def test_dry_run_of_every_preset(module, preset, compilations, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = len(compilations)
    assert call(module, "--preset", preset, "--dry-run") == 0
    facts = json.loads(capsys.readouterr().out)
    macro = preset == "macro"
    assert facts["dataset"]["name"] == facts["space"] == ("nasbench_macro" if macro
                                                          else "nasbench201")
    assert facts["dataset"]["splits"] == {"architectures": 3 ** 8 if macro else 5 ** 6}
    assert facts["metric"] == ("run0_accuracy" if macro else VALID)
    assert facts["config"] == common.to_json(dataclasses.replace(
        module.PRESETS[preset], preset=preset, dry_run=True, quiet=True))
    assert len(compilations) == before and not list(tmp_path.iterdir())


def test_compile_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(random_search, "--smoke", "--compile-only", "--devices", 2) == 0
    out = capsys.readouterr().out
    lines = [line.split()[0] for line in out.splitlines()]
    assert lines[1:4] == ["random_init", "random", "digest"] and "3 programs compiled" in out
    assert not list(tmp_path.iterdir())
