"""Pareto fronts as drawings: a plot for files, and one for the page whose points say what they are.

`front.json` holds what the page shows: `x_label`, `y_label`; `networks`, objects with `x`, `y`,
`front` (bool) and `text`; `true_front`, [[x, y], ...], may be empty; `x_range` and `y_range`; and
`header` [C] and `rows` [[C], ...] of text, the table below the drawing.
"""

import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxnas.reporting.plots import drawing_style, new_figure, save_figure

FILE = "front.json"
MAX_NETWORKS = 3000
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _MARGIN = 980, 520, 76, 56, 16


def plot_fronts(fronts: Mapping[str, np.ndarray], stem: Path, xlabel: str, ylabel: str, *,
                dominated: np.ndarray | None = None, true_front: np.ndarray | None = None,
                y_range: tuple[float, float] | None = None) -> list[Path]:
    """Draw fronts over time as stairs, what they dominate in grey, the true front dashed.

    Args:
      fronts: name -> [K, 2] (cost, metric) in ascending order of the cost.
      stem: path without suffix.
      xlabel: the cost and its unit.
      ylabel: the metric and its unit.
      dominated: [N, 2] other points.
      true_front: [F, 2] in ascending order of the cost.
      y_range: of the vertical axis; what is outside is not shown.

    Returns:
      The paths of the svg and the png.

    Raises:
      ValueError: no front, or one without a point.
    """
    if not fronts or not all(len(points) for points in fronts.values()):
        raise ValueError("fronts must hold at least one front, each with a point or more.")
    with drawing_style():
        figure = new_figure(8.0, 5.0)
        axes = figure.subplots()
        if dominated is not None and len(dominated):
            axes.scatter(dominated[:, 0], dominated[:, 1], s=9, color="#c3c8d0", linewidth=0,
                         label="dominated")
        if true_front is not None and len(true_front):
            axes.step(*np.transpose(true_front), where="post", color="#30343b", linewidth=1,
                      linestyle="--", label="true front")
        shades = np.linspace(0.35, 1.0, len(fronts))  # the later, the stronger
        for shade, (name, points) in zip(shades, fronts.items()):
            axes.step(*np.transpose(points), where="post", color="#1c6dd0", alpha=shade,
                      linewidth=1.6, marker="o", markersize=3.5, label=name)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if y_range is not None:
            axes.set_ylim(y_range)
        figure.legend(loc="outside upper left", ncols=4)
        return save_figure(figure, stem)


def write_front(directory: str | os.PathLike[str], value: Mapping[str, Any]) -> Path:
    """Write `front.json`, see the module.

    Raises:
      ValueError: more than MAX_NETWORKS networks, or a number that is not finite.
    """
    if len(value["networks"]) > MAX_NETWORKS:
        raise ValueError(f"at most {MAX_NETWORKS} networks are shown, got "
                         f"{len(value['networks'])}; leave dominated ones out.")
    path = Path(directory) / FILE
    path.write_text(json.dumps(value, allow_nan=False) + "\n", encoding="utf-8")
    return path


def front_svg(value: Mapping[str, Any]) -> str:
    """Return the drawing of a `front.json` for a page; pointing at a point shows its text.

    By the `<title>` of SVG, without any script. All text is escaped.

    Raises:
      ValueError: a key is missing, or what should be a number is none.
    """
    try:
        x_range, y_range = (_range(value[name]) for name in ("x_range", "y_range"))
        networks = [(float(n["x"]), float(n["y"]), bool(n["front"]), str(n["text"]))
                    for n in value["networks"]]
        stairs = [(float(x), float(y)) for x, y in value["true_front"]]
        labels = str(value["x_label"]), str(value["y_label"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{FILE} is malformed: {error}.") from error

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        up = (y - y_range[0]) / (y_range[1] - y_range[0])
        return (_LEFT + across * (_WIDTH - _LEFT - _MARGIN),
                _HEIGHT - _BOTTOM - up * (_HEIGHT - _BOTTOM - _MARGIN))

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" class="front">',
             *_axes(x_range, y_range, labels, place)]
    inside = [n for n in networks
              if x_range[0] <= n[0] <= x_range[1] and y_range[0] <= n[1] <= y_range[1]]
    if stairs:
        path = [place(*stairs[0])]
        for x, y in stairs[1:]:
            across, up = place(x, y)
            path += [(across, path[-1][1]), (across, up)]
        low = _HEIGHT - _BOTTOM
        text = " ".join(f"{across:.1f},{min(up, low):.1f}" for across, up in path)
        parts.append(f'<polyline class="true" points="{text}"/>')
    for x, y, on_front, text in sorted(inside, key=lambda n: n[2]):  # the front on top
        across, up = place(x, y)
        style = ("on", 5) if on_front else ("off", 3)
        parts.append(f'<circle class="{style[0]}" cx="{across:.1f}" cy="{up:.1f}" r="{style[1]}">'
                     f"<title>{html.escape(text)}</title></circle>")
    return "\n".join([*parts, "</svg>"])


def front_table(value: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a `front.json`, not escaped.

    Raises:
      ValueError: they are missing, or of different lengths.
    """
    try:
        header = [str(cell) for cell in value["header"]]
        rows = [[str(cell) for cell in row] for row in value["rows"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{FILE} is malformed: {error}.") from error
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"{FILE} is malformed: its rows must have {len(header)} cells.")
    return header, rows


def _axes(x_range, y_range, labels, place):
    for value in _ticks(*x_range):
        across, low = place(value, y_range[0])
        yield (f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{_MARGIN}" y2="{low:.1f}"/>'
               f'<text x="{across:.1f}" y="{low + 18:.1f}" text-anchor="middle">{value:g}</text>')
    for value in _ticks(*y_range):
        left, up = place(x_range[0], value)
        yield (f'<line x1="{left:.1f}" x2="{_WIDTH - _MARGIN}" y1="{up:.1f}" y2="{up:.1f}"/>'
               f'<text x="{left - 8:.1f}" y="{up + 4:.1f}" text-anchor="end">{value:g}</text>')
    middle = (_HEIGHT - _BOTTOM + _MARGIN) / 2
    yield (f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 12}" text-anchor="middle">'
           f"{html.escape(labels[0])}</text>"
           f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">'
           f"{html.escape(labels[1])}</text>")


def _range(pair: Sequence[float]) -> tuple[float, float]:
    low, high = map(float, pair)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"a range must ascend, got {pair}")
    return low, high


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers in a range, 4 to 10 of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (5, 2, 1) if (high - low) / (factor * step) >= 4)
    first = math.ceil(low / step)
    return [k * step for k in range(first, math.floor(high / step) + 1)]
