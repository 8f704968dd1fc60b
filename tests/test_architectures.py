"""experiments.architectures: the list, drawings, and what it refuses."""

import pytest

from experiments import architectures
from jaxnas import genotypes, models


def run(capsys, *arguments):
    code = architectures.main(list(arguments))
    return code, *capsys.readouterr()


def test_list_has_every_network_with_its_counts(capsys):
    code, out, _ = run(capsys)
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0 and set(models.names()) < set(rows)
    assert "5,289,978" in rows["nasnet_a_mobile"] and "563.6" in rows["nasnet_a_mobile"]


@pytest.mark.parametrize("name", [
    "nasnet_a_cifar", "AMOEBANET_B", "mnasnet_small_mobile", "enas_macro_cifar"])
def test_drawings(name, tmp_path, capsys):
    code, out, _ = run(capsys, "--draw", name, "--output", str(tmp_path / "figures"))
    assert code == 0
    for suffix in (".svg", ".png"):
        path = tmp_path / "figures" / f"{name}{suffix}"
        assert path.stat().st_size > 2000 and str(path) in out


def test_draws_files(tmp_path, capsys):
    path = tmp_path / "genotype.json"
    for value in (genotypes.PUBLISHED["DARTS_V2"], genotypes.Encoded(
            "nasbench201", (3, 3, 3, 1, 2, 3),
            "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+"
            "|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|")):
        path.write_text(genotypes.to_json(value))
        assert run(capsys, "--draw", str(path), "--output", str(tmp_path))[0] == 0
        assert (tmp_path / "genotype.svg").stat().st_size > 2000


@pytest.mark.parametrize("arguments, message", [
    (["--draw", "nasnet_cifar"], "did you mean nasnet_a_cifar"),
    (["--export", "nothing_like_it"], "there is no model"),
    (["--draw", "missing.json"], "missing.json"),
    (["--batch-size", "0"], "batch_size must be 1 or more"),
    (["--drow", "x"], "--drow")])
def test_bad_input_is_one_sentence(arguments, message, capsys):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    assert message in err
