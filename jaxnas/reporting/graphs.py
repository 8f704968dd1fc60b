"""Drawings of cells: a layered layout in which labels cannot overlap, and Graphviz text.

A node is drawn as a block: the two operations that it adds, as labelled boxes, and the sum behind
them. Layers go from left to right by longest path; an edge that skips a layer gets a lane of its
own there (a dummy item, Sugiyama et al., 1981), so that it passes between the blocks.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxnas.genotypes import CELLS, CellGenotype, CellRules, Genotype, validate
from jaxnas.reporting.plots import drawing_style, new_figure, operation_color, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BOX_WIDTH, _BOX_HEIGHT, _BOX_PITCH = 1.62, 0.42, 0.62  # an operation; in inches, as everything
_RADIUS = 0.24                  # a sum or an input
_LAYER_PITCH = 3.5              # from sum to sum
_OUTPUT_SHIFT = 1.5
_TERMINAL_HALF_WIDTH = 0.46     # of an input or the output
_ITEM_GAP, _LANE_HEIGHT = 0.34, 0.24
_CONCAT_COLOR = "#9aa1ab"


@dataclasses.dataclass(eq=False)
class _Item:
    """What takes vertical room in a layer: a state of the cell, or the lane of a passing edge."""

    kind: Literal["input", "node", "output", "lane"]
    layer: int
    label: str
    height: float
    y: float = 0.0
    before: list["_Item"] = dataclasses.field(default_factory=list)
    after: list["_Item"] = dataclasses.field(default_factory=list)
    upper: int = 0     # which of a block's two edges is drawn above the other


@dataclasses.dataclass
class _Path:
    """An edge as drawn: from a state, through lanes, to an operation box or the output."""

    items: list[_Item]
    color: str
    edge: int | None  # index in `cell.edges`; None for the concatenation


def draw_genotype(
    genotype: Genotype, stem: Path, title: str = "", rules: CellRules | None = None
) -> list[Path]:
    """Draw both cells, normal above reduction.

    Args:
      genotype: a valid genotype.
      stem: path without suffix.
      title: a headline, such as the name of the system.
      rules: of the genotype's space, if it or an operation is not the library's.

    Returns:
      The paths of `stem`.svg and `stem`.png.

    Raises:
      GenotypeError: the genotype is not valid.
    """
    genotype = validate(genotype, rules)
    cells = (genotype.normal, genotype.reduction)
    layouts = [_layout(cell) for cell in cells]
    bounds = [_bounds(items) for items, _ in layouts]
    width = max(right - left for left, right, _, _ in bounds)
    heights = [top - bottom for _, _, bottom, top in bounds]
    with drawing_style():
        figure = new_figure(width, sum(heights) + 0.9 + 0.4 * bool(title))
        axes = figure.subplots(2, 1, height_ratios=heights)
        for ax, name, cell, (items, paths), (left, _, bottom, top) in zip(
                axes, ("normal cell", "reduction cell"), cells, layouts, bounds):
            _draw_cell(ax, cell, items, paths)
            ax.set(xlim=(left, left + width), ylim=(bottom, top), title=name)
            ax.set_aspect("equal", anchor="W")
            ax.set_axis_off()
        if title:
            figure.suptitle(title, fontsize=13, fontweight="bold", x=0.003, ha="left")
        return save_figure(figure, stem)


def to_dot(genotype: Genotype, rules: CellRules | None = None) -> str:
    """Return Graphviz text: one digraph, one cluster a cell, operations as edge labels.

    Arguments as in `draw_genotype`.

    Raises:
      GenotypeError: the genotype is not valid.
    """
    lines = ["digraph genotype {", "  rankdir=LR;", "  node [shape=circle, fontname=Helvetica];",
             "  edge [fontname=Helvetica, fontsize=10];"]
    genotype = validate(genotype, rules)
    for name, cell in zip(CELLS, (genotype.normal, genotype.reduction)):
        lines += [f"  subgraph cluster_{name} {{", f'    label="{name} cell";']
        lines += [f'    {name}_{state} [label="{_state_name(state)}"];'
                  for state in range(cell.num_nodes + 2)]
        lines.append(f'    {name}_out [label="c_{{k}}", shape=doublecircle];')
        for index, (operation, source) in enumerate(cell.edges):
            color = operation_color(operation)
            lines.append(f'    {name}_{source} -> {name}_{index // 2 + 2} [label="{operation}", '
                         f'color="{color}", fontcolor="{color}"];')
        lines += [f'    {name}_{state} -> {name}_out [color="{_CONCAT_COLOR}", style=dashed];'
                  for state in cell.concat]
        lines.append("  }")
    return "\n".join([*lines, "}"]) + "\n"


def _state_name(state: int) -> str:
    return ("c_{k-2}", "c_{k-1}")[state] if state < 2 else str(state - 2)


def _layout(cell: CellGenotype) -> tuple[list[_Item], list[_Path]]:
    """Assign layers, add lanes, order each layer, and set every item's y."""
    depth = [0, 0]
    for i in range(cell.num_nodes):
        depth.append(1 + max(depth[edge.source] for edge in cell.edges[2 * i:2 * i + 2]))
    last = max(depth) + 1
    states = [_Item("input", 0, f"$c_{{k-{2 - i}}}$", 2 * _RADIUS) for i in range(2)]
    states += [_Item("node", layer, str(i), _BOX_PITCH + _BOX_HEIGHT)
               for i, layer in enumerate(depth[2:])]
    output = _Item("output", last, "$c_k$", 2 * _RADIUS)
    items, paths = [*states, output], []

    def connect(source: _Item, target: _Item, color: str, edge: int | None) -> None:
        path = [source]
        for layer in range(source.layer + 1, target.layer):
            path.append(_Item("lane", layer, "", _LANE_HEIGHT))
        path.append(target)
        for left, right in zip(path, path[1:]):
            left.after.append(right)
            right.before.append(left)
        items.extend(path[1:-1])
        paths.append(_Path(path, color, edge))

    for index, (operation, source) in enumerate(cell.edges):
        connect(states[source], states[index // 2 + 2], operation_color(operation), index)
    for state in cell.concat:
        connect(states[state], output, _CONCAT_COLOR, None)
    layers = [[item for item in items if item.layer == layer] for layer in range(last + 1)]
    _order(layers)
    _place(layers)
    for item in items:  # the edge that comes from above enters the upper box
        if item.kind == "node":
            item.upper = int(item.before[1].y > item.before[0].y)
    return items, paths


def _order(layers: list[list[_Item]]) -> None:
    """Sort each layer by the mean position of its neighbours; keep the order that crosses least."""
    best, best_crossings = [list(layer) for layer in layers], _crossings(layers)
    for sweep in range(24):
        forward = sweep % 2 == 0
        for layer in layers[1:] if forward else layers[-2::-1]:
            neighbours = [item.before if forward else item.after for item in layer]
            rank = {id(item): position / max(len(other), 1)
                    for other in layers for position, item in enumerate(other)}
            means = {id(item): sum(rank[id(n)] for n in near) / len(near) if near
                     else rank[id(item)] for item, near in zip(layer, neighbours)}
            layer.sort(key=lambda item: means[id(item)])
        crossings = _crossings(layers)
        if crossings < best_crossings:
            best, best_crossings = [list(layer) for layer in layers], crossings
    for layer, ordered in zip(layers, best):
        layer[:] = ordered


def _crossings(layers: list[list[_Item]]) -> int:
    total = 0
    for left, right in zip(layers, layers[1:]):
        place = {id(item): position for position, item in enumerate(right)}
        pairs = [(position, place[id(after)]) for position, item in enumerate(left)
                 for after in item.after]
        total += sum((a - c) * (b - d) < 0 for i, (a, b) in enumerate(pairs) for c, d in pairs[:i])
    return total


def _place(layers: list[list[_Item]]) -> None:
    """Set y: every item near the mean of its neighbours, none closer than the gap allows."""
    for layer in layers:
        _separate(layer, [0.0] * len(layer))
    for sweep in range(30):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wanted = []
            for item in layer:
                near = item.before + item.after
                wanted.append(sum(other.y for other in near) / len(near) if near else item.y)
            _separate(layer, wanted)


def _separate(layer: list[_Item], wanted: list[float]) -> None:
    """Least squares to `wanted` under the order and the gaps: pool adjacent violators.

    With the offsets of a gapless packing subtracted, "far enough apart" is "non-decreasing", which
    isotonic regression solves: neighbours out of order are merged at their mean.
    """
    offsets = [0.0]
    for above, below in zip(layer, layer[1:]):
        offsets.append(offsets[-1] + (above.height + below.height) / 2 + _ITEM_GAP)
    blocks: list[tuple[float, int]] = []  # mean, count
    for value, offset in zip(wanted, offsets):
        mean, count = value - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, size = blocks.pop()
            mean, count = (mean * count + other * size) / (count + size), count + size
        blocks.append((mean, count))
    levels = [mean for mean, count in blocks for _ in range(count)]
    for item, level, offset in zip(layer, levels, offsets):
        item.y = level + offset


def _x(item: _Item) -> float:
    # The last layer holds the output alone, which needs no room for boxes before it.
    return item.layer * _LAYER_PITCH - (_OUTPUT_SHIFT if item.kind == "output" else 0.0)


def _half_width(item: _Item) -> float:
    return _RADIUS if item.kind == "node" else _TERMINAL_HALF_WIDTH


def _box_left(item: _Item) -> float:
    return _x(item) - _BOX_WIDTH - 0.62


def _bounds(items: list[_Item]) -> tuple[float, float, float, float]:
    """Return left, right, bottom, top of the drawing."""
    return (-0.75, max(map(_x, items)) + 0.75,
            min(item.y - item.height / 2 for item in items) - 0.15,
            max(item.y + item.height / 2 for item in items) + 0.15)


def _draw_cell(axes: "Axes", cell: CellGenotype, items: list[_Item], paths: list[_Path]) -> None:
    for path in paths:
        target = path.items[-1]
        if path.edge is None:
            end = (_x(target) - _half_width(target), target.y)
        else:
            end = (_box_left(target), _box_y(target, path.edge))
        points = [(_x(path.items[0]) + _half_width(path.items[0]), path.items[0].y)]
        for lane in path.items[1:-1]:  # straight past the blocks of the layer
            points += [(_box_left(lane), lane.y), (_x(lane) + _RADIUS, lane.y)]
        _draw_curve(axes, [*points, end], path.color, arrow=True, thin=path.edge is None)
        if path.edge is not None:
            _draw_box(axes, cell.edges[path.edge].operation, end, path.color)
            _draw_curve(axes, [(end[0] + _BOX_WIDTH, end[1]), (_x(target) - _RADIUS, target.y)],
                        path.color, arrow=False, thin=False)
    for item in items:
        if item.kind != "lane":
            _draw_state(axes, item)


def _box_y(item: _Item, edge: int) -> float:
    return item.y + (_BOX_PITCH / 2 if edge % 2 == item.upper else -_BOX_PITCH / 2)


def _draw_curve(axes: "Axes", points: list[tuple[float, float]], color: str, arrow: bool,
                thin: bool) -> None:
    """Join points by curves that leave and arrive horizontally."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    vertices, codes = [points[0]], [Curve.MOVETO]
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        reach = 0.5 * (x1 - x0)
        vertices += [(x0 + reach, y0), (x1 - reach, y1), (x1, y1)]
        codes += [Curve.CURVE4] * 3
    axes.add_patch(FancyArrowPatch(
        path=Curve(vertices, codes), color=color, linewidth=1.1 if thin else 1.7, zorder=1,
        linestyle=(0, (4, 2)) if thin else "-", mutation_scale=9, fill=False,
        arrowstyle="->" if arrow else "-", shrinkA=0, shrinkB=0))


def _draw_box(axes: "Axes", operation: str, left: tuple[float, float], color: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(FancyBboxPatch(
        (left[0] + 0.06, left[1] - _BOX_HEIGHT / 2 + 0.06), _BOX_WIDTH - 0.12, _BOX_HEIGHT - 0.12,
        boxstyle="round,pad=0.06", facecolor=color, edgecolor="none", zorder=3))
    axes.text(left[0] + _BOX_WIDTH / 2, left[1], operation, color="white", ha="center",
              va="center_baseline", fontsize=10, zorder=4)


def _draw_state(axes: "Axes", item: _Item) -> None:
    from matplotlib.patches import Circle, FancyBboxPatch

    x = _x(item)
    if item.kind == "node":
        axes.add_patch(Circle((x, item.y), _RADIUS, facecolor="white", edgecolor="#30343b",
                              linewidth=1.4, zorder=3))
    else:
        half = _TERMINAL_HALF_WIDTH - 0.04
        axes.add_patch(FancyBboxPatch(
            (x - half, item.y - _RADIUS), 2 * half, 2 * _RADIUS, zorder=3,
            boxstyle="round,pad=0.04", facecolor="#eef0f3", edgecolor="#30343b", linewidth=1.2))
    axes.text(x, item.y, item.label, ha="center", va="center", fontsize=11, zorder=4,
              parse_math=True)
