"""Drawings of recurrent cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxnas.reporting.plots import drawing_style, new_figure, operation_color, save_figure


def draw_tree(steps: Sequence[tuple[str, int]], stem: Path, title: str) -> list[Path]:
    """Draw a cell as a tree: states from left to right, on each edge its activation.

    Args:
      steps: [N] (activation, source) of every node.
      stem: path without suffix.
      title: a headline.

    Returns:
      The paths of the svg and the png.
    """
    sources = [-1, *(source for _, source in steps)]
    depth, height = {0: 0}, {}
    leaves = 0.0

    def place(node: int) -> float:
        nonlocal leaves
        below = [child for child in range(len(sources)) if sources[child] == node]
        depth.update((child, depth[node] + 1) for child in below)
        leaves += not below
        height[node] = float(np.mean([place(child) for child in below])) if below else leaves
        return height[node]

    place(0)
    with drawing_style():
        figure = new_figure(1.6 * max(depth.values()) + 2.4, 0.8 * leaves + 1.2)
        axes = figure.subplots()
        for node in range(len(sources)):
            if node:
                source, name = sources[node], steps[node - 1][0]
                ends = [(depth[n], height[n]) for n in (source, node)]
                color = operation_color(name, ("tanh", "relu", "sigmoid", "identity").index(name))
                axes.annotate("", ends[1], ends[0], arrowprops={
                    "arrowstyle": "-|>", "color": color, "lw": 2.0, "shrinkA": 14, "shrinkB": 14})
                middle = np.mean(ends, 0)
                axes.text(middle[0], middle[1], name, ha="center", va="center", fontsize=9,
                          color=color, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
            axes.scatter(depth[node], height[node], s=420, color="white", edgecolor="#30343b",
                         zorder=3)
            axes.text(depth[node], height[node], str(node) if node else "x, h", ha="center",
                      va="center", zorder=4, fontsize=9)
        axes.set(title=f"{title}; output: mean of 1 to {len(steps)}",
                 xlim=(-0.5, max(depth.values()) + 0.5), ylim=(0.4, leaves + 0.6))
        axes.set_axis_off()
        return save_figure(figure, stem)
