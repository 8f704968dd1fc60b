"""The NAS reproducibility checklist, filled by machine.

After Lindauer & Hutter, "Best practices for scientific research on neural architecture search"
(2020, https://arxiv.org/abs/1909.02453, appendix), in our own words. What the run directory shows
is answered from it; what only the author knows is taken from `facts`; the rest is "not stated".
A missing answer is never a pass.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from jaxnas.reporting import metrics as metrics_file
from jaxnas.reporting.result import Result, read_object, read_result

Answer = Literal["pass", "fail", "not stated"]


class Item(NamedTuple):
    """One question of the checklist."""

    name: str  # the key in `facts`
    section: str
    question: str


_CODE, _COMPARE, _REPORT = (
    "Releasing code", "Comparing methods", "Reporting important details")
CHECKLIST: tuple[Item, ...] = (
    Item("training_code", _CODE, "Is the code that trains the final architectures released?"),
    Item("space_code", _CODE, "Is the code of the search space released?"),
    Item("training_hyperparameters", _CODE,
         "Are the hyper-parameters and seeds of the final training released?"),
    Item("method_code", _CODE, "Is the code of the search method released?"),
    Item("method_hyperparameters", _CODE,
         "Are the hyper-parameters and seeds of the search released?"),
    Item("same_pipeline", _COMPARE, "Do all compared methods share data set, split, search space "
         "and training pipeline?"),
    Item("confounders", _COMPARE, "Are confounding factors controlled: hardware, library versions, "
         "running time?"),
    Item("same_protocol", _COMPARE, "Are all compared methods evaluated by the same protocol?"),
    Item("ablations", _COMPARE, "Are there ablation studies?"),
    Item("performance_over_time", _COMPARE, "Is performance compared over time or budget, not only "
         "at the end?"),
    Item("random_search", _COMPARE, "Is random search a baseline?"),
    Item("multiple_runs", _COMPARE, "Are there several independent runs, with their seeds?"),
    Item("tabular_benchmark", _COMPARE, "Is a tabular or surrogate benchmark used for deeper "
         "evaluation?"),
    Item("tuning", _REPORT, "Is it said how hyper-parameters were tuned, and what that cost?"),
    Item("end_to_end_time", _REPORT, "Is the time of the whole method reported, not of the search "
         "phase alone?"),
    Item("setup", _REPORT, "Are all details of the setup reported: data with checksum, hardware, "
         "versions?"),
)


def write_checklist(directory: str | os.PathLike[str],
                    facts: Mapping[str, str | bool | None] | None = None) -> Path:
    """Write `checklist.md` from `result.json`, `config.json`, `metrics.jsonl` and `facts`.

    Args:
      directory: a run directory that already holds the three files.
      facts: item name of CHECKLIST -> True (pass), False (fail), None (not stated), or a text: the
        evidence of a pass. A fact overrides what the files show, except that True or a text
        cannot turn a "fail" of the files into a pass.

    Returns:
      The path of the file.

    Raises:
      ValueError: an unknown item, an ill-typed fact, or a malformed file.
      FileNotFoundError: result.json or config.json is missing.
    """
    directory = Path(directory)
    answers = evaluate(directory, {} if facts is None else facts)
    counts = {answer: sum(given == answer for given, _ in answers.values())
              for answer in ("pass", "fail", "not stated")}
    lines = ["# Reproducibility checklist", "",
             "After Lindauer & Hutter (2020), https://arxiv.org/abs/1909.02453; filled by machine.",
             "", ", ".join(f"{count} {answer}" for answer, count in counts.items()) + ".", ""]
    section = ""
    for item in CHECKLIST:
        if item.section != section:
            section = item.section
            lines += [*([""] if lines[-1] else []), f"## {section}", "",
                      "| answer | question | evidence |", "| --- | --- | --- |"]
        answer, evidence = answers[item.name]
        lines.append(f"| {answer} | {item.question} | {_cell(evidence)} |")
    path = directory / "checklist.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def evaluate(directory: str | os.PathLike[str],
             facts: Mapping[str, str | bool | None]) -> dict[str, tuple[Answer, str]]:
    """Return the answer and the evidence of every item; see `write_checklist`."""
    directory = Path(directory)
    names = [item.name for item in CHECKLIST]
    for name, fact in facts.items():
        if name not in names:
            raise ValueError(f"facts has the unknown item {name!r}; items: {', '.join(names)}.")
        if fact is not None and not isinstance(fact, (str, bool)):
            raise ValueError(f"facts[{name!r}] must be text, True, False or None, got {fact!r}.")
    path = directory / "metrics.jsonl"
    lines = metrics_file.read_metrics(path) if path.is_file() else []
    shown = _from_files(read_result(directory), read_object(directory / "config.json"), lines)
    answers: dict[str, tuple[Answer, str]] = {}
    for name in names:
        answer, evidence = shown.get(name, ("not stated", ""))
        fact = facts.get(name)
        if fact is False:
            answer, evidence = "fail", "stated by the author"
        elif fact is not None and fact != "" and answer != "fail":
            answer, evidence = "pass", fact if isinstance(fact, str) else "stated by the author"
        answers[name] = (answer, evidence)
    return answers


def _from_files(result: Result, config: Mapping[str, object],
                lines: list[dict[str, object]]) -> dict[str, tuple[Answer, str]]:
    """Answer what the files of the run directory prove, for or against."""
    versions = config.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    dataset = config.get("dataset")
    dataset = dataset if isinstance(dataset, dict) else {}
    code = f"`experiments.{result.experiment}` of jaxnas {versions.get('jaxnas')}"
    has_config = isinstance(config.get("config"), dict)
    answers: dict[str, tuple[Answer, str]] = {}
    if versions.get("jaxnas"):
        answers["space_code"] = ("pass", f"{code}; space {result.architecture.space}")
        answers["method_code"] = ("pass", f"{code}; system {result.system}")
        if result.seconds.retrain > 0:
            answers["training_code"] = ("pass", code)
    if has_config:
        answers["method_hyperparameters"] = ("pass", f"config.json, seed {result.seed}")
        if result.seconds.retrain > 0:
            answers["training_hyperparameters"] = ("pass", f"config.json, seed {result.seed}")
    if result.metrics:
        without = [name for name, metric in result.metrics.items() if metric.random is None]
        answers["random_search"] = (
            ("fail", f"no random search for {', '.join(without)}") if without else
            ("pass", "result.json, metrics.*.random"))
        # Costs such as params may have one value where accuracies have one a seed.
        seeds = max(len(metric.found["values"]) for metric in result.metrics.values())
        answers["multiple_runs"] = ("pass" if seeds > 1 else "fail",
                                    f"{seeds} run{'s' * (seeds > 1)}, first seed {result.seed}")
    timed = sum(line.get("kind") in ("epoch", "evaluation") for line in lines)
    if timed > 1:
        answers["performance_over_time"] = ("pass", f"metrics.jsonl, {timed} timed records")
    seconds = result.seconds
    if result.complete and seconds.total > 0:
        answers["end_to_end_time"] = (
            "pass", f"{seconds.total:.4g} s in all: search {seconds.search:.4g}, retraining "
            f"{seconds.retrain:.4g}, compilation {seconds.compile:.4g}")
    missing = [name for name, there in (
        ("library versions", {"python", "jax", "jaxlib"} <= versions.keys()),
        ("data set name", bool(dataset.get("name"))),
        ("data set checksum", bool(dataset.get("sha256"))),
        ("split sizes", bool(dataset.get("splits")))) if not there]
    answers["setup"] = (
        ("fail", f"config.json lacks {', '.join(missing)}") if missing else
        ("pass", f"{dataset['name']}, sha256 {str(dataset['sha256'])[:12]}; "
                 f"{result.device.count} x {result.device.kind}; jax {versions['jax']}"))
    return answers


def _cell(text: str) -> str:
    """Make text safe inside a table cell of Markdown."""
    text = " ".join(text.split())
    for character, escaped in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|")):
        text = text.replace(character, escaped)
    return text
