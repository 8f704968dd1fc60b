"""Drawing of a cell whose operations lie on the edges of a small graph, as NAS-Bench-201's."""

from collections.abc import Sequence
from pathlib import Path

from jaxnas.reporting.plots import drawing_style, new_figure, operation_color, save_figure

ABSENT = "none"  # an edge that carries nothing is drawn faintly


def draw_dag(edges: Sequence[tuple[int, int, str]], stem: Path, title: str = "") -> list[Path]:
    """Draw nodes on a line and every edge as an arc with its operation.

    Arcs between neighbours are straight; the further an arc reaches, the higher it goes, so that
    no two lie on each other.

    Args:
      edges: (source, target, operation), source < target.
      stem: path without suffix.
      title: a headline.

    Returns:
      The paths of `stem`.svg and `stem`.png.

    Raises:
      ValueError: no edges, or one that does not go forward.
    """
    if not edges or any(not 0 <= source < target for source, target, _ in edges):
        raise ValueError(f"edges must go forward, source < target, got {list(edges)}.")
    last = max(target for _, target, _ in edges)
    pitch = 2.3
    with drawing_style():
        figure = new_figure(pitch * last + 1.2, 1.1 + 0.75 * last)
        axes = figure.subplots()
        for source, target, operation in edges:
            span = target - source
            side = 1 if (source + span) % 2 or span == last else -1
            height = 0.0 if span == 1 else side * 0.62 * (span - 0.4)
            absent = operation == ABSENT
            color = operation_color(operation)
            middle = pitch * (source + target) / 2
            axes.annotate(
                "", (pitch * target, 0), (pitch * source, 0),
                arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.0 if absent else 2.2,
                            "ls": ":" if absent else "-", "shrinkA": 15, "shrinkB": 15,
                            "connectionstyle": f"arc3,rad={-2 * height / (pitch * span)}"})
            axes.text(middle, height, operation, ha="center", va="center", fontsize=9,
                      color="#6b7280" if absent else color, fontweight="normal" if absent else
                      "bold", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})
        for node in range(last + 1):
            axes.scatter(pitch * node, 0, s=520, color="white", edgecolor="#30343b", zorder=3)
            name = {0: "in", last: "out"}.get(node, str(node))
            axes.text(pitch * node, 0, name, ha="center", va="center", zorder=4)
        axes.set(xlim=(-0.6, pitch * last + 0.6), ylim=(-0.62 * last, 0.72 * last), title=title)
        axes.set_aspect("equal")  # arcs are bent in the units of the page
        axes.set_axis_off()
        return save_figure(figure, stem)
