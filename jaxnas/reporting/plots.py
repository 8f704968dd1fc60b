"""Plots of a search: who wins on which edge and when, curves, and found beside random.

Figures are built on the Agg canvas without pyplot: no window, no global state, and the same bytes
from the same numbers.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One colour an operation everywhere: convolutions blue to green, pools warm, skip grey, none beige.
OPERATION_COLORS: Mapping[str, str] = {
    "none": "#d8c7a8", "zero": "#d8c7a8", "noise": "#e6dcc8",
    "skip_connect": "#6b7280", "identity": "#6b7280",
    "max_pool_3x3": "#d9480f", "avg_pool_3x3": "#b87503",
    "sep_conv_3x3": "#1c6dd0", "sep_conv_5x5": "#12438c", "sep_conv_7x7": "#5b3fa0",
    "dil_conv_3x3": "#12a38a", "dil_conv_5x5": "#0b6b4f", "conv_7x1_1x7": "#b0247a",
    "nor_conv_1x1": "#12a38a", "nor_conv_3x3": "#1c6dd0"}
_SPARE_COLORS = ("#1c6dd0", "#d9480f", "#12a38a", "#b0247a", "#5b3fa0", "#b87503", "#0b6b4f",
                 "#6b7280", "#12438c", "#a0522d")
_STYLE: Mapping[str, object] = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#9aa1ab", "axes.labelcolor": "#30343b", "xtick.color": "#4a5059",
    "ytick.color": "#4a5059", "axes.grid": True, "grid.color": "#e7e9ed", "axes.axisbelow": True,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "legend.frameon": False, "svg.fonttype": "none", "svg.hashsalt": "jaxnas",
    "text.parse_math": False}  # a $ in a name is a $


def operation_color(name: str, index: int = 0) -> str:
    """Return the colour of an operation; `index` picks one for a name that is not listed."""
    return OPERATION_COLORS.get(name, _SPARE_COLORS[index % len(_SPARE_COLORS)])


def drawing_style() -> AbstractContextManager[None]:
    """Return the context in which figures are built and saved; it ends with the old settings."""
    import matplotlib

    return matplotlib.rc_context(dict(_STYLE))  # type: ignore[arg-type]  # keys are literals there


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of width x height inches, on the Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: "Figure", stem: Path) -> list[Path]:
    """Write `stem`.svg and `stem`.png (150 dots an inch); call it inside `drawing_style()`.

    Returns:
      The two paths; their folder is made if absent.
    """
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(stem.name + suffix) for suffix in (".svg", ".png")]
    figure.savefig(paths[0], format="svg", metadata={"Date": None})
    figure.set_layout_engine("none")  # the layout stays, and is not computed again
    figure.savefig(paths[1], format="png", dpi=150)
    return paths


def edge_names(num_edges: int) -> list[str]:
    """Name the edges of a DARTS cell `source→node`, else count them.

    Node i (0-based) has the sources k-2, k-1, 0, ..., i-1, so N nodes have N (N + 3) / 2 edges.
    """
    nodes = next((n for n in range(1, num_edges + 1) if n * (n + 3) // 2 >= num_edges), 0)
    if nodes * (nodes + 3) // 2 != num_edges:
        return [str(edge) for edge in range(num_edges)]
    sources = ["k−2", "k−1", *map(str, range(nodes))]
    return [f"{sources[j]}→{i}" for i in range(nodes) for j in range(i + 2)]


def require_matplotlib() -> None:
    """Check that drawings can be made, before anything long begins.

    Raises:
      ValueError: matplotlib is missing; the message says how to install it.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("drawings need matplotlib: pip install 'jaxnas[viz]'.")


def plot_alphas(history: np.ndarray, operation_names: Sequence[str], stem: Path) -> list[Path]:
    """Show which operation wins on each edge, and when.

    One row a cell (normal, reduction): the mean probability of each operation over time; the
    winner of each edge over time, the paler the closer the race; the final probabilities.

    Args:
      history: [T, 2, E, O] softmax probabilities, one entry an epoch, T >= 1.
      operation_names: O names.
      stem: path without suffix.

    Returns:
      The paths of the svg and the png.

    Raises:
      ValueError: a shape does not fit, or a value is no probability.
    """
    history = np.asarray(history, dtype=np.float64)
    if history.ndim != 4 or history.shape[1] != 2 or 0 in history.shape:
        raise ValueError(f"history must be [T >= 1, 2, E, O], got {list(history.shape)}.")
    if history.shape[3] != len(operation_names):
        raise ValueError(f"operation_names must hold {history.shape[3]} names, "
                         f"got {len(operation_names)}.")
    if not ((history >= 0) & (history <= 1 + 1e-4)).all():  # also refuses NaN
        raise ValueError("history must hold probabilities in [0, 1]: apply softmax to the alphas.")
    colors = [operation_color(name, i) for i, name in enumerate(operation_names)]
    edges = edge_names(history.shape[2])
    with drawing_style():
        figure = new_figure(13.5, 2 * max(3.0, 1.2 + 0.19 * len(edges)))
        axes = figure.subplots(2, 3, width_ratios=(1.0, 1.25, 1.0))
        for row, cell in enumerate(("normal cell", "reduction cell")):
            _mean_lines(axes[row, 0], history[:, row], operation_names, colors, cell)
            _winners(axes[row, 1], history[:, row], edges, colors, cell)
            _final(axes[row, 2], history[-1, row], edges, operation_names, cell)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8))
        return save_figure(figure, stem)


def _mean_lines(axes: "Axes", history: np.ndarray, names: Sequence[str], colors: Sequence[str],
                cell: str) -> None:
    epochs = np.arange(1, len(history) + 1)
    for index, name in enumerate(names):
        axes.plot(epochs, history[:, :, index].mean(axis=1), color=colors[index], label=name,
                  linewidth=1.8, marker="o" if len(history) == 1 else None,
                  linestyle="--" if name == "none" else "-")
    axes.axhline(1 / len(names), color="#9aa1ab", linewidth=0.8, linestyle=":")
    axes.set(title=f"{cell}: mean over edges", xlabel="epoch", ylabel="probability", ylim=(0, None))


def _winners(axes: "Axes", history: np.ndarray, edges: Sequence[str], colors: Sequence[str],
             cell: str) -> None:
    from matplotlib.colors import to_rgb

    winner = history.argmax(axis=2).T                                     # [E, T]
    ordered = np.sort(history, axis=2)
    second = ordered[..., -2] if history.shape[2] > 1 else np.zeros(history.shape[:2])
    margin = np.clip((ordered[..., -1] - second).T / 0.25, 0, 1)          # [E, T]
    strength = (0.3 + 0.7 * margin)[..., None]
    image = strength * np.array([to_rgb(color) for color in colors])[winner] + (1 - strength)
    axes.imshow(image, aspect="auto", interpolation="nearest",
                extent=(0.5, len(history) + 0.5, len(edges) - 0.5, -0.5))
    axes.set(title=f"{cell}: winner of each edge, pale = close", xlabel="epoch", ylabel="edge")
    axes.set_yticks(range(len(edges)), edges)
    axes.grid(False)


def _final(axes: "Axes", final: np.ndarray, edges: Sequence[str], names: Sequence[str],
           cell: str) -> None:
    top = max(float(final.max()), 1e-9)
    axes.imshow(final, aspect="auto", cmap="Blues", vmin=0, vmax=top, interpolation="nearest")
    for edge, row in enumerate(final):
        for column, value in enumerate(row):
            axes.text(column, edge, f"{100 * value:.0f}", ha="center", va="center", fontsize=6.5,
                      fontweight="bold" if column == row.argmax() else "normal",
                      color="white" if value > 0.6 * top else "#30343b")
    axes.set(title=f"{cell}: final, percent")
    axes.set_yticks(range(len(edges)), edges)
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=7.5)
    axes.grid(False)


def plot_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], stem: Path,
                xlabel: str, ylabel: str,
                bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
                *, log: bool = False) -> list[Path]:
    """Draw y over x, one line a name.

    Args:
      curves: name -> (x [K], y [K]); NaN leaves a gap.
      stem: path without suffix.
      xlabel: label of the horizontal axis.
      ylabel: label of the vertical axis.
      bands: name -> (low [K], high [K]) around the curve of that name.
      log: both axes logarithmic, for regret over a budget; what is not positive is not drawn.

    Returns:
      The paths of the svg and the png.

    Raises:
      ValueError: lengths differ, no curve at all, or a band without its curve.
    """
    bands = {} if bands is None else bands
    if not curves:
        raise ValueError("curves must hold at least one curve.")
    for name in bands:
        if name not in curves:
            raise ValueError(f"bands has {name!r}, which is no curve; curves: {', '.join(curves)}.")
    for name, (x, y) in curves.items():
        for part in (y, *bands.get(name, ())):
            if len(part) != len(x):
                raise ValueError(f"curve {name!r} has {len(x)} values of x, but {len(part)} of y.")
    with drawing_style():
        figure = new_figure(7.0, 4.2)
        axes = figure.subplots()
        for index, (name, (x, y)) in enumerate(curves.items()):
            color = _SPARE_COLORS[index % len(_SPARE_COLORS)]
            if name in bands:
                axes.fill_between(x, *bands[name], color=color, alpha=0.15, linewidth=0)
            axes.plot(x, y, color=color, label=name, linewidth=1.8,
                      marker="o" if len(x) < 15 else None, markersize=4)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if log:
            axes.set(xscale="log", yscale="log")
            lowest = min(np.min(y, where=np.asarray(y) > 0, initial=np.inf)
                         for _, y in curves.values())
            if np.isfinite(lowest):  # a band that reaches zero must not flatten the curves
                axes.set_ylim(bottom=lowest / 3)
            for axis in (axes.xaxis, axes.yaxis):  # numbers, not the markup of powers
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("")
        if len(curves) > 1:
            figure.legend(loc="outside upper left", ncols=min(len(curves), 4))
        return save_figure(figure, stem)


def plot_groups(groups: Mapping[str, Sequence[float]], stem: Path, ylabel: str,
                optimum: float | None = None,
                published: float | tuple[float, float | None] | None = None) -> list[Path]:
    """Draw groups of seeds side by side: one dot a seed, mean and standard deviation beside.

    Args:
      groups: name ("found", "random") -> finite values, one a seed.
      stem: path without suffix.
      ylabel: the metric and its unit.
      optimum: the best value of the space, a dashed line.
      published: the paper's mean, or (mean, standard deviation or None), a dotted line and band.

    Returns:
      The paths of the svg and the png.

    Raises:
      ValueError: no group, an empty one, or a value that is not finite.
    """
    if not groups:
        raise ValueError("groups must hold at least one group.")
    for name, values in groups.items():
        if len(values) == 0 or not np.isfinite(np.asarray(values, dtype=np.float64)).all():
            raise ValueError(f"group {name!r} must hold at least one finite value and no other.")
    with drawing_style():
        figure = new_figure(1.8 + 1.5 * len(groups), 4.2)
        axes = figure.subplots()
        ticks = []
        for index, (name, values) in enumerate(groups.items()):
            array = np.asarray(values, dtype=np.float64)
            color = _SPARE_COLORS[index % len(_SPARE_COLORS)]
            # The golden ratio spreads any number of dots evenly, and the same way every time.
            spread = 0.22 * ((np.arange(len(array)) * 0.618034) % 1 - 0.5)
            axes.scatter(index - 0.1 + spread, array, s=22, color=color, alpha=0.65, linewidth=0)
            std = array.std(ddof=1) if len(array) > 1 else 0.0
            axes.errorbar(index + 0.2, array.mean(), yerr=std, fmt="o", color=color, capsize=4,
                          markersize=7, markeredgecolor="white")
            ticks.append(f"{name}\n{array.mean():.4g} ± {std:.2g}\n"
                         f"{len(array)} seed{'s' * (len(array) > 1)}")
        axes.set_xticks(range(len(groups)), ticks)
        axes.set(ylabel=ylabel, xlim=(-0.6, len(groups) - 0.4))
        axes.grid(axis="x", visible=False)
        if optimum is not None:
            axes.axhline(optimum, color="#30343b", linestyle="--", linewidth=1,
                         label=f"optimum {optimum:.4g}")
        if published is not None:
            mean, std_published = published if isinstance(published, tuple) else (published, None)
            spread_text = "" if std_published is None else f" ± {std_published:.2g}"
            axes.axhline(mean, color="#b0247a", linestyle=":", linewidth=1.4,
                         label=f"published {mean:.4g}{spread_text}")
            if std_published is not None:
                axes.axhspan(mean - std_published, mean + std_published, color="#b0247a",
                             alpha=0.08, linewidth=0)
        if optimum is not None or published is not None:
            figure.legend(loc="outside upper left")
        return save_figure(figure, stem)
