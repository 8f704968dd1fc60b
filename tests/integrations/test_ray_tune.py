"""Our spaces in Ray Tune."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxnas import data
from jaxnas.integrations import decisions, read_choices, require_tune, tune_space
from jaxnas.search_spaces import NASBench201, Product

ROOT = Path(__file__).parents[2]


def test_a_missing_tune_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"pip install 'jaxnas\[tune\]'"):
        tune_space(Product((2, 3)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_every_draw_is_an_architecture():
    pytest.importorskip("ray.tune")
    require_tune()
    space = NASBench201()
    found = tune_space(space)
    assert {name: tuple(domain.categories) for name, domain in found.items()} == dict(
        decisions(space))
    archs = {tuple(read_choices(space, {name: domain.sample() for name, domain in found.items()}))
             for _ in range(50)}
    assert len(archs) > 40 and all(0 <= value < 5 for arch in archs for value in arch)


@pytest.mark.slow
def test_the_program_looks_archs_up():
    pytest.importorskip("ray.tune")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.tune_table", "--num-samples", "4"], cwd=ROOT,
        capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 trials, 0 failed" in done.stdout
    text, table = done.stdout.strip().splitlines()[-1], data.nasbench201()
    accuracy = float(re.search(r"accuracy_e12: ([\d.]+), optimum 84.89", done.stdout)[1])
    row = (table.archs == NASBench201().encode(text)).all(1).argmax()
    assert table.metric("cifar10_valid_accuracy_e12")[row] == pytest.approx(accuracy, abs=0.006)
