"""Flags, run directories, interruption, compilation and exit codes, on an experiment of one sum.

The file is a program too: some tests run it as another process.
"""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common, settings
from jaxnas import checkpoints, genotypes, reporting
from jaxnas.data import DatasetError

ROOT = Path(__file__).parents[1]
DATASET = {"name": "none", "sha256": "0" * 64, "splits": {"train": 4}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    """How much is added."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.DatasetConfig):
    """A counter."""

    steps: int = 6
    """Steps of the counter."""
    inner: Inner = Inner()
    channels: tuple[int, ...] = (1, 2)
    pause: float = 0.0


PRESETS = {"short": Config(), "long": Config(steps=9)}
SMOKE = Config(steps=2)


def result(config, complete, total, timer, programs):
    return reporting.Result(
        complete=complete, experiment="dummy", system="Dummy",
        architecture=reporting.Architecture("none"),
        metrics={"total": reporting.Metric(reporting.summarize([total]))},
        evaluations=reporting.Evaluations(0, 0, 0), compilations=programs.count,
        seconds=reporting.Seconds(programs.seconds, timer.total, 0.0, 1.0),
        step_seconds=timer.summary(), seed=config.seed,
        device=common.device_facts(config.devices), programs=programs.names)


def run(config, stop_at=None):
    with common.validation():
        if config.steps < 1:
            raise ValueError(f"steps must be >= 1,\n got {config.steps}.")
    if config.dry_run:
        print(common.describe(config, dataset=DATASET))
        return
    programs, timer = common.Programs(), common.StepTimer()
    state = {"total": jnp.float32(0.0), "key": jax.random.key(config.seed)}
    step = programs.add("add", jax.jit(
        lambda s: {**s, "total": s["total"] + config.inner.rate + jax.random.uniform(s["key"])}),
        state)
    with common.progress(config) as progress:
        if config.compile_only:
            programs.compile_all(progress)
            print(programs.report())
            return
        with common.open_run(config, "dummy", DATASET) as directory, \
                common.Interrupt() as interrupt:
            programs.compile_all(progress)
            restored = directory.restore(state)
            at, state = (0, state) if restored is None else (restored.step, restored.state)
            with progress.phase("count", config.steps, at) as phase:
                while at < config.steps and not interrupt.requested and at != stop_at:
                    with timer.measure():
                        state = jax.block_until_ready(step(state))
                    at += 1
                    time.sleep(config.pause)
                    directory.metrics.write("step", step=at, total=state["total"])
                    phase.advance()
            directory.save(at, state, {"note": "x"})
            directory.metrics.write("event", name="torn")  # after the checkpoint
            total = float(state["total"])
            directory.write_result(result(config, at >= config.steps, total, timer, programs))


def call(*argv, function=run):
    return common.main(Config, PRESETS, SMOKE, function, [str(item) for item in argv])


def steps_in(directory):
    return [(line["step"], line["total"]) for line in reporting.read_metrics(
        directory / "metrics.jsonl") if line["kind"] == "step"]


def error_of(capsys):
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1, text
    assert "Traceback" not in text
    return text


# ---- flags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv, changes", [
    ((), {}), (("--preset", "long"), {"preset": "long", "steps": 9}),
    (("--preset=long", "--steps", "3"), {"preset": "long", "steps": 3}),
    (("--smoke",), {"smoke": True, "steps": 2}),
    (("--num_seeds", "4", "--inner.rate", "2"), {"num_seeds": 4, "inner": Inner(rate=2.0)}),
    (("--output", "a", "--channels", "3"), {"output": Path("a"), "channels": (3,)}),
])
def test_parse(argv, changes):
    expected = dataclasses.replace(Config(preset="short"), **changes)
    assert common.parse(Config, PRESETS, SMOKE, argv) == expected


def test_help_shows_types_and_the_presets_defaults(capsys):
    assert call("--preset", "long", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("--steps INT", "default: 9", "Presets: short, long", "Steps of the counter",
                 "--dry-run"):
        assert part in text, part


@pytest.mark.parametrize("argv, message", [
    (("--preset", "x"), "--preset must be one of short, long, got 'x'"),
    (("--preset",), "expected one argument"),
    (("--seed", "one"), "--seed"), (("--seed", "-1"), "seed must be >= 0, got -1"),
    (("--devices", "0"), "devices must be >= 1"), (("--num-seeds", "0"), "num_seeds must be >= 1"),
    (("--sed", "1"), "Unrecognized options: --sed"), (("--steps", "0"), "steps must be >= 1"),
    (("--resume", "nothing"), "is no run directory"), (("--output", "a/b"), "parent"),
])
def test_bad_flags_are_one_sentence(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(*argv) == 2
    assert message in error_of(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error, code", [
    (settings.InputError("a"), 2), (DatasetError("a"), 2), (genotypes.GenotypeError("a\nb"), 2),
    (ValueError("a"), 1), (RuntimeError("a"), 1), (KeyboardInterrupt(), 1)])
def test_exit_codes(error, code, capsys):
    def fail(config):
        raise error

    assert call(function=fail) == code
    assert ("Traceback" in capsys.readouterr().err) == (
        code == 1 and not isinstance(error, KeyboardInterrupt))


@dataclasses.dataclass(frozen=True)
class Odd:
    a: float | None = None
    b: tuple[int, str] = (1, "x")
    c: Inner = Inner()


@pytest.mark.parametrize("value", [Odd(), Odd(a=1.5), Odd(b=(2, "y"), c=Inner(rate=3.0))])
def test_configurations_survive_json(value):
    text = json.dumps(settings.to_json(value))
    assert settings.from_json(Odd, json.loads(text), "config") == value


@pytest.mark.parametrize("value, message", [
    ([], "an object"), ({"a": 1}, "lacks the field 'b'"),
    ({"a": None, "b": [1, "x"], "c": {"rate": "fast"}}, r"c\.rate"),
    ({"a": None, "b": [True, "x"], "c": {"rate": 1}}, r"b\[0\] must be int"),
    ({"a": None, "b": [1], "c": {"rate": 1}}, "config.b"), ({"z": 1}, "unknown field 'z'")])
def test_foreign_configurations_are_refused(value, message):
    with pytest.raises(settings.InputError, match=message):
        settings.from_json(Odd, value, "config")


# ---- the run directory ---------------------------------------------------------------------------


def test_a_run_owes_only_the_drawings(tmp_path):
    assert call("--output", tmp_path / "a", "--quiet") == 0
    assert {line.split(":")[0] for line in reporting.validate_run_directory(tmp_path / "a")} == {
        "genotype.json", "report.html", "checklist.md", "*.svg"}
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["config"]["inner"] == {"rate": 0.5} and config["seed"] == 0
    assert config["versions"] == common.versions() and config["experiment"] == "dummy"
    assert reporting.read_result(tmp_path / "a").compilations == 1


def test_default_directories_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260101-000000")
    assert call("--quiet") == call("--quiet") == 0
    assert sorted(path.name for path in (tmp_path / "runs" / "dummy").iterdir()) == [
        "20260101-000000", "20260101-000000-2"]


def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, capsys):
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert call("--preset", "long", "--seed", "3", "--output", whole, "--quiet") == 0
    stop = lambda config: run(config, stop_at=4)
    assert call("--preset", "long", "--seed", "3", "--output", part, "--quiet", function=stop) == 0
    assert f"To continue: python -m experiments.dummy --resume {part}" in capsys.readouterr().err
    assert reporting.validate_run_directory(part) == []
    assert not reporting.read_result(part).complete
    with open(part / "metrics.jsonl", "a") as file:
        file.write('{"kind": "step", "step": 5, "total": 99.0, "seconds": 1}\n{"torn')
    assert call("--resume", part, "--quiet") == 0
    assert steps_in(part) == steps_in(whole) and len(steps_in(part)) == 9
    results = [reporting.read_result(path) for path in (whole, part)]
    assert results[0].metrics == results[1].metrics and results[1].complete
    seconds = [line["seconds"] for line in reporting.read_metrics(part / "metrics.jsonl")]
    assert seconds == sorted(seconds)
    assert checkpoints.read_metadata(part / "checkpoints")[1]["extra"] == {"note": "x"}


@pytest.mark.parametrize("argv, message", [
    (("--steps", "9"), "steps 6, now it is 9"), (("--inner.rate", "1"), "inner.rate 0.5"),
    (("--preset", "long"), "preset 'short', now it is 'long'"), (("--seed", "1"), "seed 0"),
    (("--devices", "2"), "devices 1"), (("--smoke",), "smoke False"),
    (("--output", "elsewhere"), "--output cannot be given with --resume")])
def test_other_flags_are_refused_on_resume(argv, message, tmp_path, capsys):
    assert call("--output", tmp_path / "a", "--quiet") == 0
    before = (tmp_path / "a" / "metrics.jsonl").read_bytes()
    assert call("--resume", tmp_path / "a", *argv) == 2
    assert message in error_of(capsys)
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == before
    assert call("--resume", tmp_path / "a", "--steps", "6", "--quiet") == 0  # the same is no change


def test_force_resume(tmp_path, capsys):
    assert call("--output", tmp_path / "a", "--quiet") == 0
    assert call("--resume", tmp_path / "a", "--steps", "8", "--force-resume", "--quiet") == 0
    assert "steps was 6, is 8: resumed by force" in capsys.readouterr().err
    assert len(steps_in(tmp_path / "a")) == 8
    assert call("--resume", tmp_path / "a", "--quiet") == 0  # 8 is what is recorded now
    assert len(steps_in(tmp_path / "a")) == 8


@pytest.mark.parametrize("group, field, value", [
    ("versions", "jaxlib", "0.0.1"), ("device", "count", 2), ("device", "platform", "gpu"),
    ("dataset", "sha256", "1" * 64), ("dataset", "splits", {"train": 5})])
def test_drift_is_refused(group, field, value, tmp_path, capsys):
    assert call("--output", tmp_path / "a", "--quiet") == 0
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    config[group][field] = value
    path.write_text(json.dumps(config))
    assert call("--resume", tmp_path / "a") == 2
    text = error_of(capsys)
    assert f"{group}.{field} {value}" in text and "--force-resume" in text
    assert call("--resume", tmp_path / "a", "--force-resume", "--quiet") == 0


def test_directories_that_cannot_be_used(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    assert call("--output", tmp_path / "file") == 2
    assert "is a file" in error_of(capsys)
    assert call("--output", tmp_path / "a", "--quiet") == 0
    assert call("--output", tmp_path / "a") == 2
    assert f"already holds a run (config.json); continue it with --resume {tmp_path / 'a'}" in (
        error_of(capsys))
    with checkpoints.lock(tmp_path / "a" / "checkpoints"):
        for flag in ("--output", "--resume"):
            assert call(flag, tmp_path / "a") == 2
            assert f"in use by process {os.getpid()}" in error_of(capsys)
    (tmp_path / "empty").mkdir()
    assert call("--output", tmp_path / "empty", "--quiet") == 0

    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert call("--output", tmp_path / "b") == 2
    assert "is not writable: Permission denied" in error_of(capsys)


def test_damaged_checkpoints_never_start_afresh(tmp_path, capsys):
    assert call("--output", tmp_path / "a", "--quiet") == 0
    for file in (tmp_path / "a" / "checkpoints" / "6").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    assert call("--resume", tmp_path / "a") == 2
    assert "None of the 1 checkpoints" in error_of(capsys)


def test_a_run_without_checkpoint_says_that_it_starts_again(tmp_path, capsys):
    assert call("--output", tmp_path / "a", "--quiet") == 0
    first = steps_in(tmp_path / "a")
    (tmp_path / "a" / "checkpoints" / "6").rename(tmp_path / "gone")
    assert call("--resume", tmp_path / "a", "--quiet") == 0
    assert "has no checkpoint yet: starting from the beginning" in capsys.readouterr().err
    assert steps_in(tmp_path / "a") == first


def test_dry_run_and_compile_only_leave_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("--dry-run") == 0
    assert json.loads(capsys.readouterr().out)["config"]["steps"] == 6
    assert call("--compile-only", "--quiet") == 0
    out = capsys.readouterr().out
    assert re.search(r"^add +\d", out, re.M) and "1 programs compiled in" in out
    assert not list(tmp_path.iterdir())


# ---- interruption --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sets_the_flag_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with common.Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), number)
        assert interrupt.requested
    assert signal.getsignal(number) == before


def start(*argv):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    process = subprocess.Popen([sys.executable, __file__, *map(str, argv)], env=environment,
                               stderr=subprocess.PIPE, text=True, cwd=ROOT)
    return process


def wait_for_steps(directory, count):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        path = directory / "metrics.jsonl"
        if path.exists() and len(path.read_bytes().splitlines()) >= count:
            return
        time.sleep(0.02)
    raise TimeoutError(f"no {count} steps in {directory}")


def test_sigterm_saves_and_exits_0(tmp_path):
    process = start("--output", tmp_path / "a", "--steps", 10_000, "--pause", 0.05)
    wait_for_steps(tmp_path / "a", 2)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert "Stopping after this step" in text and "--resume" in text and "Traceback" not in text
    assert not reporting.read_result(tmp_path / "a").complete
    assert checkpoints.latest_step(tmp_path / "a" / "checkpoints") == len(steps_in(tmp_path / "a"))


def test_the_second_signal_ends_at_once(tmp_path):
    process = start("--output", tmp_path / "a", "--steps", 10_000, "--pause", 1.0)
    wait_for_steps(tmp_path / "a", 1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not (tmp_path / "a" / "result.json").exists()


# ---- programs ------------------------------------------------------------------------------------


def test_programs_compile_once_and_refuse_other_shapes():
    traces = []

    def double(x):
        traces.append(x.shape)
        return 2 * x

    programs = common.Programs()
    struct = jax.ShapeDtypeStruct((3,), jnp.float32)
    first = programs.add("double", jax.jit(double), struct)
    second = programs.add("sum", jax.jit(lambda x, y: x + (x @ y).sum(), donate_argnums=0),
                          jnp.ones((4, 5)), jnp.ones((5, 6)))
    with pytest.raises(RuntimeError, match="double is not compiled"):
        first(jnp.ones(3))
    assert programs.names == () and programs.count == 0
    programs.compile_all()
    np.testing.assert_array_equal(first(jnp.ones(3)), 2 * np.ones(3))
    given = jnp.ones((4, 5))
    np.testing.assert_array_equal(second(given, jnp.ones((5, 6))), np.full((4, 5), 121.0))
    assert given.is_deleted()  # donation works as without Programs
    with pytest.raises(TypeError):
        first(jnp.ones(4))
    with pytest.raises(TypeError):
        first(jnp.ones(3, jnp.int32))
    seconds = programs.seconds
    programs.compile_all()
    assert programs.seconds == seconds > 0
    assert traces == [(3,)] and programs.names == ("double", "sum") and programs.count == 2
    assert programs["sum"] is second
    cost = programs.costs()[1]
    assert sum(cost.memory) >= 4 * (20 + 30 + 1) and cost.hlo_lines > 3 and cost.flops > 200
    with pytest.raises(ValueError, match="already"):
        programs.add("double", jax.jit(double), struct)
    with pytest.raises(ValueError, match="jax.jit"):
        programs.add("plain", double, struct)


def test_programs_take_pmap():
    programs = common.Programs()
    step = programs.add("mean", jax.pmap(lambda x: jax.lax.pmean(x, "i"), axis_name="i"),
                        jax.ShapeDtypeStruct((8, 2), jnp.float32))
    programs.compile_all()
    x = jnp.arange(16.0).reshape(8, 2)
    x = jax.pmap(lambda x: x)(x)
    np.testing.assert_array_equal(step(x)[3], [7.0, 8.0])


def test_a_failing_program_is_named():
    programs = common.Programs()
    programs.add("good", jax.jit(lambda x: x), jnp.ones(2))
    programs.add("bad", jax.jit(lambda x: x @ jnp.ones(3)), jnp.ones(2))
    with pytest.raises(TypeError) as caught:
        programs.compile_all()
    assert "while compiling bad" in caught.value.__notes__


def test_step_timer():
    timer = common.StepTimer()
    assert timer.summary() == reporting.StepSeconds(0.0, 0.0, 0.0)
    for seconds in (1.0, 2.0, 3.0):
        timer.record(10 * seconds, steps=10)
    assert timer.summary() == reporting.StepSeconds(
        pytest.approx(2.0), pytest.approx(1.2), pytest.approx(2.8))
    assert timer.total == 6.0
    with pytest.raises(ValueError):
        timer.record(1.0, steps=0)


# ---- process settings ----------------------------------------------------------------------------


@pytest.fixture
def executed(monkeypatch):
    """Return what `use_huge_pages` executes, as if started by `python -m experiments.darts`."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda path, args, env: calls.append((path, args, env)))
    monkeypatch.setattr(common, "_has_huge_pages", lambda: True)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-W", "error", "-m", "experiments.darts",
                                           "--seed", "1"])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("JAXNAS_HUGE_PAGES", raising=False)
    return calls


def test_huge_pages_start_the_process_again_once(executed, monkeypatch):
    common.use_huge_pages()
    (path, args, environment), = executed
    assert path == sys.executable
    assert args == [sys.executable, "-W", "error", "-m", "experiments.darts", "--seed", "1"]
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    monkeypatch.setenv("JAXNAS_HUGE_PAGES", environment["JAXNAS_HUGE_PAGES"])
    common.use_huge_pages()
    assert len(executed) == 1


@pytest.mark.parametrize("argv, environment", [
    (["python", "-m", "pytest", "tests"], {}), (["python", "x.py"], {}), (["python", "-m"], {}),
    (["python", "-m", "experiments.darts"], {"GLIBC_TUNABLES": "glibc.malloc.check=1"})])
def test_huge_pages_leave_other_processes_alone(executed, monkeypatch, argv, environment):
    monkeypatch.setattr(sys, "orig_argv", argv)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    common.use_huge_pages()
    assert not executed


def test_compilation_cache(tmp_path, monkeypatch, capsys):
    chosen = {}
    monkeypatch.setattr(jax.config, "update", chosen.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("JAXNAS_CACHE_DIR", "")
    assert common.enable_compilation_cache() is None and not chosen
    monkeypatch.delenv("JAXNAS_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert common.enable_compilation_cache() == tmp_path / "jaxnas"
    assert chosen["jax_compilation_cache_dir"] == str(tmp_path / "jaxnas")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXNAS_CACHE_DIR", str(tmp_path / "file" / "x"))
    assert common.enable_compilation_cache() is None
    assert "No compilation cache" in capsys.readouterr().err


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
