"""The checklist: what files prove, what facts add, and that silence is no pass."""

import json

import pytest

from jaxnas.reporting import CHECKLIST, write_checklist
from jaxnas.reporting.checklist import evaluate


def test_filled_from_the_files(tmp_path, make_run):
    make_run(tmp_path)
    answers = {name: answer for name, (answer, _) in evaluate(tmp_path, {}).items()}
    assert list(answers) == [item.name for item in CHECKLIST]
    stated = {"training_code", "space_code", "training_hyperparameters", "method_code",
              "method_hyperparameters", "performance_over_time", "random_search", "multiple_runs",
              "end_to_end_time", "setup"}
    assert {name for name, answer in answers.items() if answer == "pass"} == stated
    assert set(answers.values()) == {"pass", "not stated"}


def test_failures_are_found_and_no_fact_hides_them(tmp_path, make_run):
    make_run(tmp_path, found=(94.0,), random=None)
    config = json.loads((tmp_path / "config.json").read_text())
    config["dataset"] = {"name": "digits"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    answers = evaluate(tmp_path, {"random_search": True, "setup": "all of it"})
    assert {name for name, (answer, _) in answers.items() if answer == "fail"} == {
        "random_search", "multiple_runs", "setup"}
    assert "checksum, split sizes" in answers["setup"][1]


def test_facts(tmp_path, make_run):
    make_run(tmp_path)
    answers = evaluate(tmp_path, {"ablations": False, "tuning": "defaults", "confounders": None,
                                  "same_protocol": True, "tabular_benchmark": ""})
    assert answers["ablations"] == ("fail", "stated by the author")
    assert answers["tuning"] == ("pass", "defaults")
    assert answers["confounders"][0] == answers["tabular_benchmark"][0] == "not stated"
    assert answers["same_protocol"][0] == "pass"
    for facts, message in (({"typo": True}, "'typo'"), ({"tuning": 3}, "'tuning'")):
        with pytest.raises(ValueError, match=message):
            evaluate(tmp_path, facts)


def test_markdown(tmp_path, make_run):
    make_run(tmp_path)
    text = write_checklist(tmp_path, {"tuning": "a | b\n<script>"}).read_text()
    assert "1909.02453" in text and "a \\| b &lt;script>" in text
    rows = [line for line in text.splitlines() if line.startswith(("| pass", "| fail", "| not"))]
    assert len(rows) == len(CHECKLIST)
    assert f"{sum(row.startswith('| pass') for row in rows)} pass" in text


def test_missing_files_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_checklist(tmp_path)
