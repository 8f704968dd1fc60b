"""Plots: both files are written, wrong input is refused with a reason."""

from xml.etree import ElementTree

import numpy as np
import pytest

from jaxnas.reporting import edge_names, operation_color, plot_alphas, plot_curves, plot_groups

OPERATIONS = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "something_new")


def check(paths) -> str:
    assert [path.suffix for path in paths] == [".svg", ".png"]
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    return "".join(ElementTree.parse(paths[0]).getroot().itertext())


@pytest.mark.parametrize("epochs, edges", [(1, 14), (7, 14), (3, 6)])
def test_alphas(tmp_path, epochs, edges):
    logits = np.random.default_rng(0).normal(size=(epochs, 2, edges, len(OPERATIONS)))
    history = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    text = check(plot_alphas(history.astype(np.float32), OPERATIONS, tmp_path / "alphas"))
    for word in ("normal cell", "reduction cell", "epoch", *OPERATIONS):
        assert word in text


def test_alphas_refusals(tmp_path):
    good = np.full((2, 2, 14, 5), 0.2)
    for history, names, message in (
            (good[0], OPERATIONS, r"\[T >= 1, 2, E, O\]"), (good[:0], OPERATIONS, "T >= 1"),
            (good, OPERATIONS[:4], "5 names"), (good * np.nan, OPERATIONS, "probabilities"),
            (good - 1, OPERATIONS, "softmax")):
        with pytest.raises(ValueError, match=message):
            plot_alphas(history, names, tmp_path / "alphas")
    assert not list(tmp_path.iterdir())


def test_edge_names():
    assert edge_names(2) == ["k−2→0", "k−1→0"]
    assert edge_names(14)[-1] == "2→3" and len(edge_names(14)) == len(set(edge_names(14))) == 14
    assert edge_names(6) == list("012345")


def test_curves(tmp_path):
    x = np.arange(20.0)
    text = check(plot_curves({"found": (x, x), "random": (x[:3], [1, float("nan"), 2])},
                             tmp_path / "curves", "budget", "accuracy (%)",
                             bands={"found": (x - 1, x + 1)}))
    assert all(word in text for word in ("found", "random", "budget", "accuracy (%)"))
    for curves, bands, message in (({}, None, "at least one"), ({"a": ([1], [1, 2])}, None, "'a'"),
                                   ({"a": ([1], [1])}, {"b": ([1], [1])}, "'b'"),
                                   ({"a": ([1], [1])}, {"a": ([1], [])}, "'a'")):
        with pytest.raises(ValueError, match=message):
            plot_curves(curves, tmp_path / "x", "x", "y", bands)


@pytest.mark.parametrize("published", [None, 94.0, (94.0, 0.2), (94.0, None)])
def test_groups(tmp_path, published):
    text = check(plot_groups({"found": [94.1, 94.3], "random": [93.0]}, tmp_path / "groups",
                             "test accuracy (%)", optimum=94.4, published=published))
    assert "94.2 ± 0.14" in text and "93 ± 0" in text and "1 seed" in text
    assert "optimum 94.4" in text and ("published" in text) == (published is not None)


def test_groups_refusals(tmp_path):
    for groups in ({}, {"found": []}, {"found": [float("nan")]}):
        with pytest.raises(ValueError, match="at least one"):
            plot_groups(groups, tmp_path / "x", "y")


def test_colors_are_stable():
    assert operation_color("sep_conv_3x3") == operation_color("sep_conv_3x3", 5)
    assert operation_color("new", 0) != operation_color("new", 1)
