"""The programs that the README shows run as they are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def programs() -> list[str]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", readme, re.DOTALL)


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_first_program_is_twelve_lines_and_finds_good_cells():
    program = programs()[0]
    assert len(program.strip().splitlines()) == 12
    assert 84.0 < float(run(program)) < 84.892  # the optimum


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, len(programs())))
def test_other_programs_run(number):
    assert "CellGenotype" in run(programs()[number])
