"""Gate 12: a run that is resumed with another configuration is refused, unless it is forced."""

import json
import shutil

import numpy as np
import pytest

from experiments import common, evolution
from jaxnas import reporting

pytestmark = pytest.mark.gate(12)


def call(*arguments):
    return common.main(evolution.Config, evolution.PRESETS, evolution.SMOKE, evolution.run,
                       ["--quiet", *map(str, arguments)])


def table(path, choices):
    """Save a table of all architectures of a space."""
    archs = np.stack(np.unravel_index(np.arange(np.prod(choices)), choices), -1)
    np.savez(path, archs=archs.astype(np.int16), num_choices=choices,
             accuracy=np.random.default_rng(0).permutation(len(archs)) + 1.0)
    return path


@pytest.fixture(scope="module")
def original(compiled_once, tmp_path_factory):
    """A search on a table of one's own, and beside it the table."""
    folder = tmp_path_factory.mktemp("drift")
    flags = ("--table", table(folder / "table.npz", (3, 4)), "--metric", "accuracy")
    assert call("--smoke", "--output", folder / "run", "--block", 5, *flags) == 0
    return folder / "run"


@pytest.fixture
def run(original, tmp_path):
    """A copy of the run; the table is as it was again afterwards."""
    yield shutil.copytree(original, tmp_path / "run")
    table(original.parent / "table.npz", (3, 4))


def recorded(group, field, value):
    """Change what config.json says, as if another machine had written it."""
    def change(path):
        config = json.loads((path / "config.json").read_text())
        config[group][field] = value
        (path / "config.json").write_text(json.dumps(config))
        return ()
    return change


def another_table(path):
    config = json.loads((path / "config.json").read_text())
    table(config["config"]["table"], (4, 3))
    return ()


CHANGES = {  # name of the field in the refusal, what changes, whether it can be forced
    "seed": ("seed 0, now it is 1", lambda path: ("--seed", 1), True),
    "batch": ("block 5, now it is 4", lambda path: ("--block", 4), True),
    "population": ("population_size 10", lambda path: (
        "--population-size", 4), False),
    "flag of the space": ("table '", lambda path: (
        "--table", table(path.parent / "other.npz", (3, 4, 2))), False),
    "space": ("dataset.sha256", another_table, True),
    "devices": ("devices 0, now it is 1", lambda path: ("--devices", 1), False),
    "device count": ("device.count 4, now it is", recorded("device", "count", 4), True),
    "platform": ("device.platform gpu", recorded("device", "platform", "gpu"), True),
    "jaxlib": ("versions.jaxlib 0.0.1, now it is", recorded("versions", "jaxlib", "0.0.1"), True),
    "jax": ("versions.jax 0.0.1, now it is", recorded("versions", "jax", "0.0.1"), True),
}


def refused(run, word, flags, capsys):
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    capsys.readouterr()
    assert call("--resume", run, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert word in error and "--force-resume" in error
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()} == before


@pytest.mark.parametrize("name", ["seed", "batch", "population", "flag of the space", "devices",
                                  "platform", "jaxlib", "jax"])
def test_changes_are_refused_by_name(name, whole_run, tmp_path, capsys, gate):
    run = shutil.copytree(whole_run("evolution", "--evaluations", 30, "--block", 3),
                          tmp_path / "run")
    word, change, _ = CHANGES[name]
    refused(run, word.replace("block 5", "block 3"), change(run), capsys)
    gate(f"{name}: refused")


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_changes_can_be_forced(name, run, capsys, gate):
    word, change, forced = CHANGES[name]
    flags = change(run)
    refused(run, word, flags, capsys)
    code = call("--resume", run, *flags, "--force-resume")
    error = capsys.readouterr().err
    assert "resumed by force" in error
    if forced:
        assert code == 0 and reporting.read_result(run).complete
    else:  # what was saved is of another shape, and that is said
        assert code == 2 and "wanted" in error.splitlines()[-1], error
    gate(f"{name}: refused{', forced' if forced else ', and its state fits no other'}")
