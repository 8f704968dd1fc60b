"""What is installed: one version, the data, the commands that the README shows."""

import configparser
import importlib.resources
import subprocess
import sys
from pathlib import Path

import jaxnas

ROOT = Path(__file__).parents[1]


def read_setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string((ROOT / "setup.cfg").read_text(encoding="utf-8"))
    return parser


def test_setup_parses_and_has_one_version():
    setup = read_setup()
    assert setup["metadata"]["version"] == jaxnas.__version__
    assert setup["metadata"]["license"] == "Apache-2.0"
    assert setup["options"]["python_requires"] == ">=3.11"
    requirements = setup["options"]["install_requires"].split()
    assert {line.split(">")[0] for line in requirements} == {
        "jax", "flax", "optax", "scipy", "chex", "numpy", "orbax-checkpoint",
        "tensorflow-datasets", "flatbuffers", "tyro", "rich"}
    assert set(setup["options.extras_require"]) == {
        "benchmarks", "cuda", "datasets", "optuna", "ray", "tensorboard", "test", "tune", "viz"}


def test_data_is_in_the_package():
    files = importlib.resources.files("jaxnas.data") / "files"
    names = {entry.name for entry in files.iterdir()}
    shipped = {name for name in names if name.endswith(".npz")}
    assert shipped >= {
        "digits.npz", "fashion_mnist.npz", "nasbench201.npz", "nasbench_macro.npz"}
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for name in shipped:
        assert name.replace(".npz", ".LICENSE.txt") in names, f"{name} has no licence beside it"
        assert name in notice, f"NOTICE does not name {name}"


def test_licence_is_apache():
    assert "Apache License\n                           Version 2.0" in (
        ROOT / "LICENSE").read_text(encoding="utf-8")


def test_readme_has_the_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in ("make search", "make test"):
        assert command in readme, f"README.md does not show `{command}`"


def test_importing_the_package_is_light():
    code = "import sys, jaxnas; print('jax' in sys.modules, jaxnas.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    assert done.stdout.split() == ["False", jaxnas.__version__]


def test_makefile_explains_a_missing_python():
    done = subprocess.run(["make", "test", "PYTHON=no-such-python", "VENV=no-such-venv"], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: Python >= 3.11" in done.stderr
    assert not (ROOT / "no-such-venv").exists()


def test_makefile_lists_its_targets():
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("make search", "make test", "make lint"):
        assert target in done.stdout
