"""Drawings of cells with operations on edges: files, labels that can be read, refusals."""

import itertools
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxnas.reporting import dags, draw_dag, plot_curves, plots
from jaxnas.search_spaces.nasbench201 import EDGES, OPERATIONS

NAMES = ("nor_conv_3x3", "none", "avg_pool_3x3", "skip_connect", "nor_conv_1x1", "nor_conv_3x3")
CELL = [(source, target, name) for (source, target), name in zip(EDGES, NAMES)]


def text_of(paths) -> str:
    assert [path.suffix for path in paths] == [".svg", ".png"]
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    return "".join(ElementTree.parse(paths[0]).getroot().itertext())


def kept_figure(monkeypatch, module):
    """Return the list that will hold figures instead of files being written."""
    figures = []
    monkeypatch.setattr(module, "save_figure", lambda figure, stem: figures.append(figure) or [])
    return figures


def test_files_and_labels(tmp_path):
    text = text_of(draw_dag(CELL, tmp_path / "deep" / "cell.v1", "evolution on $x^ & <B>"))
    for word in ("in", "out", "1", "2", "evolution on $x^ & <B>", *OPERATIONS):
        assert word in text, word
    assert text.count("nor_conv_3x3") == 2
    first, second = (draw_dag(CELL, tmp_path / name)[0].read_bytes() for name in "ab")
    assert first == second


def test_every_label_can_be_read(monkeypatch):
    figures = kept_figure(monkeypatch, dags)
    longest = max(OPERATIONS, key=len)
    draw_dag([(source, target, longest) for source, target in EDGES], "unused")
    figure, = figures
    figure.canvas.draw()
    axes, = figure.axes
    boxes = {text: text.get_window_extent() for text in axes.texts if text.get_text()}
    assert sum(text.get_text() == longest for text in boxes) == len(EDGES)
    for (one, box), (other, other_box) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(other_box), (one.get_text(), other.get_text())
    width, height = figure.canvas.get_width_height()
    for box in boxes.values():
        assert 0 <= box.x0 and box.x1 <= width and 0 <= box.y0 and box.y1 <= height


def test_absent_edges_are_faint(monkeypatch):
    figures = kept_figure(monkeypatch, dags)
    draw_dag(CELL, "unused")
    axes, = figures[0].axes
    styles = [text.arrow_patch.get_linestyle() for text in axes.texts
              if getattr(text, "arrow_patch", None) is not None]
    assert len(styles) == len(CELL) and styles.count(":") == NAMES.count("none") == 1


@pytest.mark.parametrize("edges", [[], [(1, 1, "none")], [(2, 1, "none")], [(-1, 1, "none")],
                                   [*CELL, (3, 0, "none")]])
def test_refuses_what_goes_backwards(edges, tmp_path):
    with pytest.raises(ValueError, match="must go forward, source < target"):
        draw_dag(edges, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_curves_on_logarithmic_axes(tmp_path, monkeypatch):
    x = np.arange(1, 101)
    regret = np.maximum(0.0, 10.0 / x - 0.5)  # 0 from x = 20 on
    curves, bands = {"found": (x, regret)}, {"found": (regret / 2, regret * 2)}
    text = text_of(plot_curves(curves, tmp_path / "x", "evaluations", "regret", bands, log=True))
    assert "evaluations" in text and "regret" in text
    figures = kept_figure(monkeypatch, plots)
    for log, scale in ((True, "log"), (False, "linear")):
        plot_curves(curves, tmp_path / "x", "evaluations", "regret", bands, log=log)
        axes, = figures.pop().axes
        assert axes.get_xscale() == axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low <= 0 and high >= 19
