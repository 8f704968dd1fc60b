"""Drawing of networks that are a chain of layers, with skip connections beside it."""

from collections.abc import Sequence
from pathlib import Path

from jaxnas.reporting.plots import drawing_style, new_figure, operation_color, save_figure

_PITCH, _WIDTH, _HEIGHT = 0.42, 3.4, 0.3  # inches


def draw_chain(layers: Sequence[str], skips: Sequence[tuple[int, int]], stem: Path,
               title: str = "") -> list[Path]:
    """Draw layers from top to bottom as labelled boxes, and skips as arcs at their right.

    Args:
      layers: a label for each; boxes of equal first words have one colour.
      skips: (from, to), numbers of layers, from < to; may be empty.
      stem: path without suffix.
      title: a headline.

    Returns:
      The paths of `stem`.svg and `stem`.png.

    Raises:
      ValueError: no layers, or a skip that does not go forward.
    """
    if not layers or any(not 0 <= a < b < len(layers) for a, b in skips):
        raise ValueError(f"skips must go forward within {len(layers)} layers, got {list(skips)}.")
    kinds = list(dict.fromkeys(label.split()[0] for label in layers))
    reach = max((b - a for a, b in skips), default=0)
    with drawing_style():
        from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

        figure = new_figure(_WIDTH + 0.5 + 0.16 * reach, _PITCH * len(layers) + 0.5)
        axes = figure.subplots()
        for a, b in skips:
            axes.add_patch(FancyArrowPatch(
                (_WIDTH, -_PITCH * a), (_WIDTH, -_PITCH * b), arrowstyle="-|>", mutation_scale=7,
                connectionstyle=f"arc3,rad={-0.35}", color="#9aa1ab", linewidth=0.7))
        for number, label in enumerate(layers):
            color = operation_color(label.split()[0], kinds.index(label.split()[0]))
            y = -_PITCH * number
            axes.add_patch(FancyBboxPatch(
                (0.05, y - _HEIGHT / 2), _WIDTH - 0.1, _HEIGHT, boxstyle="round,pad=0.02",
                facecolor=color, edgecolor="none", alpha=0.18))
            axes.text(_WIDTH / 2, y, label, ha="center", va="center", fontsize=8)
            if number:
                axes.annotate("", (_WIDTH / 2, y + _HEIGHT / 2),
                              (_WIDTH / 2, y + _PITCH - _HEIGHT / 2),
                              arrowprops={"arrowstyle": "-", "color": "#9aa1ab"})
        axes.set(xlim=(-0.1, _WIDTH + 0.4 + 0.16 * reach),
                 ylim=(-_PITCH * len(layers), _PITCH), title=title)
        axes.set_axis_off()
        return save_figure(figure, stem)
