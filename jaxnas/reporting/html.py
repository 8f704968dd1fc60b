"""`report.html`: one self-contained page of a run directory.

Works offline and runs no script. All text from files is escaped, and drawings are embedded as
`<img>` data, in which a browser neither runs scripts nor mixes up the ids of two drawings.
"""

import base64
import html
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxnas.reporting import fronts
from jaxnas.reporting import metrics as metrics_file
from jaxnas.reporting.result import Metric, Result, Summary, read_object, read_result

MAX_DRAWING_BYTES = 8 * 1024 * 1024
MAX_ROWS = 20
# Metrics that one wants small; all others are better when larger.
_SMALLER_IS_BETTER = ("perplexity", "bits_per", "latency", "energy", "params", "multiply_adds",
                      "error", "loss", "seconds", "flops", "regret")

_CSS = """
:root { --ink: #1d2129; --soft: #5b6370; --line: #e2e5ea; --tint: #f6f7f9; --blue: #1c6dd0; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif;
  color: var(--ink); margin: 0; background: var(--tint); }
main { max-width: 1060px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 28px; margin: 0; } h2 { font-size: 18px; margin: 0 0 12px; }
h3 { font-size: 15px; margin: 18px 0 6px; }
.sub { color: var(--soft); margin: 2px 0 20px; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 18px 22px;
  margin: 0 0 18px; }
.verdict { border-left: 5px solid var(--blue); }
.verdict.better { border-left-color: #0b8a5f; } .verdict.worse { border-left-color: #d9480f; }
.verdict.open { border-left-color: #b87503; }
.big { font-size: 26px; font-weight: 650; margin: 0 0 4px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; } td.number, th.number { text-align: right; }
table.facts td:first-child { white-space: nowrap; color: var(--soft); }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); gap: 0 34px; }
svg.front { width: 100%; height: auto; font-size: 13px; fill: var(--soft); }
.front line { stroke: var(--line); } .front circle:hover { stroke: var(--ink); stroke-width: 2; }
.front .on { fill: var(--blue); } .front .off { fill: #b9bfc8; }
.front .true { fill: none; stroke: var(--ink); stroke-dasharray: 5 4; }
figure { margin: 0 0 20px; } figure img { max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: 13px; }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: 6px;
  padding: 10px 12px; overflow-x: auto; font-size: 13px; margin: 8px 0; }
.pass { color: #0b7a54; font-weight: 600; } .fail { color: #c23a06; font-weight: 600; }
.not { color: var(--soft); } .warning { background: #fff4e0; border-color: #f0d9ad; }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""


def write_report(directory: str | os.PathLike[str]) -> Path:
    """Write `report.html` from the other files of a run directory.

    `result.json` and `config.json` must exist; drawings, metrics, genotype and checklist are shown
    if they are there, so that an interrupted run has a report too.

    Returns:
      The path of the page.

    Raises:
      FileNotFoundError: result.json or config.json is missing.
      ValueError: one of the JSON files is malformed.
    """
    directory = Path(directory)
    result, config = read_result(directory), read_object(directory / "config.json")
    metrics_path = directory / "metrics.jsonl"
    lines = metrics_file.read_metrics(metrics_path) if metrics_path.is_file() else []
    compared = [name for name, metric in result.metrics.items() if metric.random is not None
                and min(len(metric.found["values"]), len(metric.random["values"])) > 1]
    body = [_headline(result), *(_verdict(name, result.metrics[name])
                                 for name in compared or list(result.metrics)[:1]),
            _metrics_table(result), _front(directory), _architecture(directory, result),
            _drawings(directory),
            _cost(result), _history(lines), _again(directory, result), _configuration(config),
            _checklist(directory)]
    page = (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{_text(result.system)} · {_text(result.experiment)}</title>\n"
            f"<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
            + "\n".join(part for part in body if part) + "\n</main>\n</body>\n</html>\n")
    path = directory / "report.html"
    temporary = directory / ".report.html.part"
    temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, path)
    return path


def smaller_is_better(name: str) -> bool:
    """Tell from a metric's name whether one wants it small, as a latency or a loss."""
    return any(word in name.lower() for word in _SMALLER_IS_BETTER)


def welch_interval(first: Sequence[float], second: Sequence[float],
                   ) -> tuple[float, float, float] | None:
    """Return mean(first) - mean(second), its standard error, and half its 95 % interval.

    Welch (1947): the variances may differ; degrees of freedom by Welch-Satterthwaite.

    Returns:
      None if a side has fewer than two values: then nothing can be said about the spread.
    """
    if len(first) < 2 or len(second) < 2:
        return None
    difference = float(np.mean(first) - np.mean(second))
    parts = [float(np.var(side, ddof=1)) / len(side) for side in (first, second)]
    error = math.sqrt(sum(parts))
    if error == 0:
        return difference, 0.0, 0.0
    freedom = sum(parts) ** 2 / sum(part ** 2 / (len(side) - 1)
                                    for part, side in zip(parts, (first, second)))
    return difference, error, error * _t_quantile(freedom)


def _t_quantile(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t.

    With t = sqrt(freedom) tan(a), the density is proportional to cos(a) ** (freedom - 1), so the
    quantile is where the cumulative sum over a in [0, pi/2) reaches 0.95.
    """
    angle = np.linspace(0, math.pi / 2, 200_001)[:-1]
    density = np.cos(angle) ** (freedom - 1)
    cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(0.95, cumulative / cumulative[-1], angle)))


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _number(value: float | int | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, int) or value == int(value) and abs(value) >= 1e5:
        return f"{int(value):,}"
    return f"{value:.5g}"


def _spread(summary: Summary | None) -> str:
    if summary is None:
        return "–"
    if len(summary["values"]) < 2:
        return f"{_number(summary['mean'])} (one seed)"
    if not summary["std"]:
        return f"{_number(summary['mean'])} ± 0"
    # Two digits of the standard deviation, and the mean to the same decimal.
    decimals = max(0, 1 - math.floor(math.log10(summary["std"])))
    return f"{summary['mean']:,.{decimals}f} ± {summary['std']:,.{decimals}f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]], numbers: int = 0) -> str:
    """Return a table of escaped cells; the last `numbers` columns are aligned right."""
    def cells(tag: str, row: Sequence[object]) -> str:
        first = len(row) - numbers
        return "".join(f'<{tag}{" class=" + chr(34) + "number" + chr(34) if i >= first else ""}>'
                       f"{_text(cell)}</{tag}>" for i, cell in enumerate(row))
    head = f"<thead><tr>{cells('th', header)}</tr></thead>" if header else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    style = "" if header else ' class="facts"'
    return f'<div class="scroll"><table{style}>{head}<tbody>{body}</tbody></table></div>'


def _section(title: str, content: str, style: str = "") -> str:
    return f'<section class="{style}">\n<h2>{_text(title)}</h2>\n{content}\n</section>'


def _headline(result: Result) -> str:
    device = result.device
    page = (f"<h1>{_text(result.system)}</h1>\n"
            f'<p class="sub">experiment {_text(result.experiment)} · search space '
            f"{_text(result.architecture.space)} · seed {result.seed} · {device.count} × "
            f"{_text(device.kind)} ({_text(device.platform)})</p>")
    if not result.complete:
        page += _section("Interrupted", "<p>This run did not finish; the numbers below are those "
                         "of the moment it was saved.</p>", "warning")
    return page


def _verdict(name: str, metric: Metric) -> str:
    """State found against random, and how sure that is."""
    found, random = metric.found, metric.random
    seeds = len(found["values"])
    headline = f"{name}: {_spread(found)}"
    style, sentences = "open", [f"{seeds} seed{'s' * (seeds > 1)}."]
    if random is None:
        sentences.append("There is no random baseline to compare with.")
    else:
        headline += f" against random {_spread(random)}"
        interval = welch_interval(found["values"], random["values"])
        if interval is None:
            sentences.append(f"Difference {found['mean'] - random['mean']:+.3g}; with fewer than "
                             "two seeds a side, chance cannot be ruled out.")
        else:
            difference, error, half = interval
            smaller = smaller_is_better(name)
            low, high = difference - half, difference + half
            sentences.append(f"Difference {difference:+.3g}, standard error {error:.2g}, 95 % "
                             f"Welch interval [{low:+.3g}, {high:+.3g}].")
            if abs(difference) <= half:
                sentences.append("The interval holds zero: not distinguishable from random search.")
            elif (difference < 0) == smaller:
                style = "better"
                sentences.append("Better than random search.")
            else:
                style = "worse"
                sentences.append("Worse than random search.")
    if metric.published is not None:
        spread = "" if metric.published.std is None else f" ± {metric.published.std:.2g}"
        sentences.append(f"Published: {_number(metric.published.mean)}{spread} "
                         f"({metric.published.source}).")
    if metric.optimum is not None:
        sentences.append(f"Optimum of the space: {_number(metric.optimum)}.")
    return (f'<section class="verdict {style}">\n<p class="big">{_text(headline)}</p>\n'
            f"<p>{_text(' '.join(sentences))}</p>\n</section>")


def _metrics_table(result: Result) -> str:
    if not result.metrics:
        return _section("Metrics", "<p>None yet.</p>")
    rows = [(name, _spread(metric.found), _spread(metric.random), _number(metric.optimum),
             "–" if metric.published is None else _number(metric.published.mean))
            for name, metric in result.metrics.items()]
    seeds = [(f"{name}, {group}", ", ".join(map(_number, summary["values"][:MAX_ROWS]))
              + (f", … ({len(summary['values'])} in all)"
                 if len(summary["values"]) > MAX_ROWS else ""))
             for name, metric in result.metrics.items()
             for group, summary in (("found", metric.found), ("random", metric.random))
             if summary is not None]
    return _section("Metrics", _table(("metric", "found", "random", "optimum", "published"), rows,
                                      numbers=4)
                    + "<h3>Every seed</h3>" + _table((), seeds))


def _front(directory: Path) -> str:
    path = directory / fronts.FILE
    if not path.is_file():
        return ""
    value = read_object(path)
    header, rows = fronts.front_table(value)
    return _section("Front", "<p>Point at a network to see which it is; blue is the front that was "
                    "found, grey what it dominates, the dashed line the true front.</p>\n"
                    + fronts.front_svg(value) + _table(header, rows))


def _architecture(directory: Path, result: Result) -> str:
    genotype = result.architecture.genotype
    if (directory / "genotype.json").is_file():
        genotype = read_object(directory / "genotype.json")
    parts = []
    if result.architecture.arch is not None:
        parts.append(f"<p>Encoding: <code>{_text(list(result.architecture.arch))}</code></p>")
    if genotype is not None:
        parts.append(f"<details><summary>genotype.json</summary><pre>"
                     f"{_text(json.dumps(genotype))}</pre></details>")
    return _section("Architecture", "\n".join(parts) or "<p>None yet.</p>")


def _drawings(directory: Path) -> str:
    figures = []
    for path in sorted(directory.glob("*.svg")):
        name = path.stem.replace("_", " ")
        if path.stat().st_size > MAX_DRAWING_BYTES:
            figures.append(f"<p>{_text(path.name)} is too big to embed.</p>")
            continue
        data = base64.b64encode(path.read_bytes()).decode()
        figures.append(f'<figure><img alt="{_text(name)}" src="data:image/svg+xml;base64,{data}">'
                       f"<figcaption>{_text(name)}</figcaption></figure>")
    return _section("Drawings", "\n".join(figures)) if figures else ""


def _cost(result: Result) -> str:
    seconds, step, counts = result.seconds, result.step_seconds, result.evaluations
    times = [("total, end to end", f"{seconds.total:,.2f} s"),
             ("search", f"{seconds.search:,.2f} s"), ("retraining", f"{seconds.retrain:,.2f} s"),
             ("compilation", f"{seconds.compile:,.2f} s, {result.compilations} programs"),
             ("one step, median", f"{1000 * step.median:,.3f} ms"),
             ("one step, 10th to 90th percentile",
              f"{1000 * step.p10:,.3f} to {1000 * step.p90:,.3f} ms")]
    budget = [("architectures evaluated", f"{counts.total:,}"), ("unique", f"{counts.unique:,}"),
              ("failed", f"{counts.failed:,}")]
    if result.programs:
        budget.append(("compiled programs", ", ".join(result.programs)))
    return _section("Time and budget", f'<div class="grid"><div>{_table((), times, numbers=1)}'
                    f"</div><div>{_table((), budget, numbers=1)}</div></div>")


def _history(lines: list[dict[str, object]]) -> str:
    if not lines:
        return ""
    kinds = [line.get("kind") for line in lines]
    parts = ["<p>" + _text(", ".join(f"{kinds.count(kind):,} {kind}s" for kind in metrics_file.KINDS
                                     if kind in kinds)) + "; all of them are in metrics.jsonl.</p>"]
    best = [line for line in lines if line.get("kind") == "evaluation"
            and isinstance(line.get("fitness"), (int, float)) and not line.get("failed")]
    best.sort(key=lambda line: float(line["fitness"]), reverse=True)  # type: ignore[arg-type]
    for title, chosen in (("Best evaluations", best[:10]),
                          ("Last epochs", [x for x in lines if x.get("kind") == "epoch"][-10:])):
        if chosen:
            names = [name for name in dict.fromkeys(name for line in chosen for name in line)
                     if name != "kind"][:10]
            rows = [[_brief(line.get(name)) for name in names] for line in chosen]
            parts.append(f"<h3>{title}</h3>" + _table(names, rows))
    return _section("History", "\n".join(parts))


def _brief(value: object) -> str:
    if value is None:
        return "–"
    text = f"{value:.5g}" if isinstance(value, float) else (
        value if isinstance(value, str) else json.dumps(value))
    return text if len(text) <= 80 else text[:79] + "…"


def _again(directory: Path, result: Result) -> str:
    name = directory.resolve().name
    commands = [f"python -m experiments.{result.experiment} --resume {name}"]
    if (directory / "genotype.json").is_file():
        commands += [f"python -m experiments.retrain --genotype {name}/genotype.json",
                     f"python -m experiments.architectures --draw {name}/genotype.json"]
    return _section("Resume, retrain, draw", f"<pre>{_text(chr(10).join(commands))}</pre>")


def _flat(value: object, prefix: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(item, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


def _configuration(config: Mapping[str, object]) -> str:
    left = {name: value for name, value in config.items()
            if name not in ("versions", "device", "dataset")}
    right = {name: config[name] for name in ("dataset", "device", "versions") if name in config}
    return _section("Configuration", f'<div class="grid"><div>{_table((), _flat(left))}</div>'
                    f"<div>{_table((), _flat(right))}</div></div>")


def _checklist(directory: Path) -> str:
    """Render the tables and headings of `checklist.md`; everything else in it as plain text."""
    path = directory / "checklist.md"
    if not path.is_file():
        return ""
    parts: list[str] = []
    rows: list[str] = []
    for line in [*path.read_text(encoding="utf-8", errors="replace").splitlines(), ""]:
        if line.startswith("|"):
            cells = [html.unescape(cell.replace("\0", "|").strip())
                     for cell in line.replace("\\|", "\0").strip("|").split("|")]
            if not all(cell and set(cell) <= set("-:") for cell in cells):
                style = {"pass": "pass", "fail": "fail", "not stated": "not"}.get(cells[0], "")
                rows.append(f'<tr><td class="{style}">{_text(cells[0])}</td>' + "".join(
                    f"<td>{_text(cell)}</td>" for cell in cells[1:]) + "</tr>")
            continue
        if rows:
            parts.append(f'<div class="scroll"><table>{"".join(rows)}</table></div>')
            rows = []
        if line.startswith("## "):
            parts.append(f"<h3>{_text(line[3:])}</h3>")
        elif line and not line.startswith("# "):
            parts.append(f"<p>{_text(line)}</p>")
    return _section("Reproducibility checklist", "\n".join(parts))
