"""The layers of the library, and what no file may do, read from every syntax tree."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# From the bottom up; a unit imports lower layers only, and within its own folder freely.
LAYERS = (
    ("published", "genotype_json", "leaves", "draws", "trial_json", "processes",
     "distributed_start"),
    ("base", "genotypes", "trials"),
    ("encodings", "mutations", "data", "parallel", "distributed", "checkpoints", "fast_keys",
     "hoisting",
     "device_memory", "conv_chains", "pareto", "farms"),
    ("networks", "morphisms", "edit_distances", "training", "precision", "gaussian_processes"),
    ("search_spaces", "searchers", "evaluators", "costs", "objectives", "latency", "export",
     "recurrent_training"),
    ("search", "histories", "models", "reporting", "pending"),
    ("integrations", "asynchronous"),
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
LATE = ("tensorflow_datasets", "tensorflow", "orbax", "matplotlib")  # slow, or in an extra
UNSAFE = ("pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib")
MACHINE_PATH = re.compile(r"(?<![\w.~])/(home|root|work|Users|tmp|mnt|scratch)/|\b[A-Z]:\\")


class Import(NamedTuple):
    module: str       # dotted and absolute
    line: int
    late: bool        # inside a function, or only for type checkers


def library_files() -> list[Path]:
    return sorted((ROOT / "jaxnas").rglob("*.py"))


def program_files() -> list[Path]:
    return [path for folder in ("experiments", "benchmarks")
            for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.AST, late: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield Import("." * node.level, node.lineno, late)
            elif node.module == "jaxnas":  # from jaxnas import genotypes
                yield from (Import(f"jaxnas.{alias.name}", node.lineno, late)
                            for alias in node.names)
            else:
                yield Import(str(node.module), node.lineno, late)
        checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from imports(node, late or checked or function)


def unit_of(path: Path) -> str:
    part = path.relative_to(ROOT / "jaxnas").parts[0]
    return part.removesuffix(".py")


@pytest.mark.parametrize("path", library_files(), ids=name_of)
def test_layers(path):
    unit = unit_of(path)
    found = list(imports(parse(path)))
    if unit == "__init__":
        assert not found, f"{name_of(path)} imports nothing, so that any part loads alone"
        return
    assert unit in LEVEL, f"{name_of(path)} belongs to no layer: add {unit!r} to LAYERS"
    for module, line, _ in found:
        where = f"{name_of(path)}:{line}"
        assert not module.startswith("."), f"{where}: imports are absolute"
        top, *rest = module.split(".")
        assert top not in ("experiments", "benchmarks", "tests"), f"{where} imports {module}"
        if top == "jaxnas" and rest and rest[0] != "__version__":
            assert rest[0] in LEVEL, f"{where} imports {module}, which belongs to no layer"
            assert rest[0] == unit or LEVEL[rest[0]] < LEVEL[unit], (
                f"{where}: {unit} (layer {LEVEL[unit]}) imports {module} "
                f"(layer {LEVEL[rest[0]]}); only lower layers may be imported")


def test_experiments_do_not_import_benchmarks():
    for path in program_files():
        if path.parts[len(ROOT.parts)] == "experiments":
            for module, line, _ in imports(parse(path)):
                where = f"{name_of(path)}:{line}"
                assert module.split(".")[0] not in ("benchmarks", "tests"), where


@pytest.mark.parametrize("path", library_files() + program_files(), ids=name_of)
def test_forbidden_things(path):
    tree = parse(path)
    for module, line, late in imports(tree):
        where, top = f"{name_of(path)}:{line}", module.split(".")[0]
        if "benchmarks" not in path.relative_to(ROOT).parts[:1]:  # a benchmark has baselines
            assert top != "flax" or "networks" in path.parts, f"{where}: only networks import flax"
        assert top not in LATE or late, f"{where}: import {top} inside the function that needs it"
        assert top not in UNSAFE, f"{where}: {top} runs what it reads"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), f"{name_of(path)}:{node.lineno}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert ast.unparse(node.value) == "False", f"{name_of(path)}: allow_pickle"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = MACHINE_PATH.search(node.value)
            assert not found, f"{name_of(path)}:{node.lineno} holds a machine's path: {found}"


@pytest.mark.parametrize(
    "path", [path for path in library_files() if path.name == "__init__.py"], ids=name_of)
def test_package_files_hold_imports_and_all_only(path):
    body = parse(path).body
    assert ast.get_docstring(parse(path)), f"{name_of(path)} has no docstring"
    top = path.parent == ROOT / "jaxnas"
    for node in body[1:]:
        if isinstance(node, ast.Assign):
            names = [ast.unparse(target) for target in node.targets]
            assert names == ["__version__" if top else "__all__"], f"{name_of(path)}: {names}"
        else:
            assert isinstance(node, (ast.Import, ast.ImportFrom)), (
                f"{name_of(path)}:{node.lineno}: imports and __all__ only")


@pytest.mark.parametrize("source, late", [
    ("import flax", False), ("def f():\n  import flax", True),
    ("if TYPE_CHECKING:\n  import flax", True), ("class A:\n  import flax", False)])
def test_late_imports_are_told_apart(source, late):
    assert list(imports(ast.parse(source))) == [Import("flax", source.count("\n") + 1, late)]


def test_machine_paths_are_told_apart():
    for path in ("/home/me/x", "file:///tmp/x", "C:\\data"):
        assert MACHINE_PATH.search(path), path
    for path in ("/usr/share/datasets", "runs/home/x", "https://a.org/home/x", "~/home/x"):
        assert not MACHINE_PATH.search(path), path
