"""Drawings of recurrent cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxnas.reporting.plots import drawing_style, new_figure, operation_color, save_figure

ACTIVATIONS = ("tanh", "relu", "sigmoid", "identity")
SIGNS = {"add": "+", "multiply": "\u00d7"}


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
                color = operation_color(name, ACTIVATIONS.index(name))
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


def draw_binary_tree(nodes: Sequence[tuple[str, str]], inject: tuple[str, str], place: int,
                     source: int, stem: Path, title: str) -> list[Path]:
    """Draw a cell that is a binary tree: leaves on the left, the root on the right.

    Args:
      nodes: [2 n - 1] (combiner, activation), leaves first, then level by level.
      inject: combiner and activation that the old second state meets.
      place: the node whose value it meets.
      source: the node whose value before its activation is the new second state.
      stem: path without suffix.
      title: a headline.

    Returns:
      The paths of the svg and the png.
    """
    leaves = (len(nodes) + 1) // 2
    at: list[tuple[float, float]] = [(0.0, float(leaf)) for leaf in range(leaves)]
    for node in range(leaves, len(nodes)):
        (x, low), (_, high) = (at[2 * (node - leaves) + half] for half in range(2))
        at.append((x + 1, (low + high) / 2))
    depth = at[-1][0]
    with drawing_style():
        figure = new_figure(2.4 * (depth + 1) + 1.0, 0.6 * leaves + 1.6)
        axes = figure.subplots()
        arrow = {"arrowstyle": "-|>", "lw": 1.5, "shrinkA": 40, "shrinkB": 40}
        for node, ((x, y), (combiner, activation)) in enumerate(zip(at, nodes)):
            if node >= leaves:
                for half in range(2):
                    axes.annotate("", (x, y), at[2 * (node - leaves) + half],
                                  arrowprops={**arrow, "color": "#30343b"})
            color = operation_color(activation, ACTIVATIONS.index(activation))
            lines = [f"{node}: {SIGNS[combiner]} {activation}"]
            if node == place:
                lines.append(f"then {SIGNS[inject[0]]} c, {inject[1]}")
            if node == source:
                lines.append("new c before it")
            axes.text(x, y, "\n".join(lines), ha="center", va="center", fontsize=8, zorder=4,
                      bbox={"facecolor": "white", "edgecolor": color, "lw": 1.5,
                            "boxstyle": "round"})
        axes.set(title=f"{title}\na leaf combines x and h, the last node is the new h",
                 xlim=(-0.6, depth + 0.6), ylim=(-0.8, leaves - 0.2))
        axes.set_axis_off()
        return save_figure(figure, stem)
