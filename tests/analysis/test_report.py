"""report.py --written: facts, tables, figures and PDF from logs; a claim that they don't bear stops it."""

import json
import shutil

import numpy as np
import pytest

from analysis import report
from analysis.report import ClaimError, main, results_latex, write_report

LABELS = np.array([0, 1] * 100)
WRONG = {"0": 10, "1": 60, "2": 58, "3": 70, "4": 24, "5": 30, "6": 31, "7": 29, "8": 20, "8t": 12}
TEMPLATE = """
#set document(date: none)
#let f = json("facts.json")
#let beats(a, b) = f.comparisons.at(a + "-" + b).shown and f.comparisons.at(a + "-" + b).difference > 0
#let claim(statement, holds, body) = { if not holds { panic("the logs do not bear: " + statement) }; body }
#claim("4 beats 3", beats("4", "3"))[Attention helps: #f.comparisons.at("4-3").verdict.]
#image("figures/costs.pdf")
"""


def write_logs(folder):
    """Logs of a whole comparison with made-up figures: 4 is far ahead of 3, 2 hardly of 1."""
    for key, wrong in WRONG.items():
        run_dir = folder / "imdb" / f"{key}_model"
        run_dir.mkdir(parents=True)
        accuracy = 1 - wrong / 200
        summary = {
            "experiment": int(key[0]),
            "name": f"model_{key}",
            "architecture": f"architecture {key}, 30% dropped & more",
            "seed": 0,
            "epochs": 3,
            "parameters": 9_000_000 + 1000 * int(key[0]),
            "train_accuracy": 0.9,
            "best_validation_accuracy": accuracy,
            "best_validation_step": 10,
            "test_accuracy": accuracy,
            "train_seconds": 100.0 + int(key[0]),
            "evaluation_seconds": 3.0,
            "steady_memory_bytes": 2**30,
            "memory": {"kind": "process_resident"},
            "device": "a test",
            "data": {"source": "imdb", "train": 20000, "validation": 200, "test": 200},
        }
        (run_dir / "summary.json").write_text(json.dumps(summary))
        line = {"train_loss": 0.5, "validation_loss": 0.5, "train_accuracy": 0.9, "validation_accuracy": accuracy}
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps({"step": s, **line}) + "\n" for s in (5, 10)))
        write_predictions(run_dir, range(wrong))
    (folder / "quick").mkdir()
    (folder / "quick" / "robustness.json").write_text(json.dumps(damages()))
    memory = [
        {"key": key, "name": f"model_{key}"}
        | {f"{part}_bytes": 2**26 for part in ("libraries", "weights", "gradients", "optimizer", "saved", "measured")}
        for key in WRONG
        if key != "0"
    ]
    (folder / "memory.json").write_text(json.dumps(memory))


def write_predictions(run_dir, wrong):
    guesses = np.where(np.isin(np.arange(200), list(wrong)), 1 - LABELS, LABELS)
    rows = [f"{i},{label},{0.1 + 0.8 * guess}" for i, (label, guess) in enumerate(zip(LABELS, guesses, strict=True))]
    (run_dir / "test_predictions.csv").write_text("\n".join(["row,label,probability", *rows]) + "\n")


def damages():
    model = {"model": "4 model_4", "experiment": 4, "accuracy": 0.88, "max_length": 128}
    rows = [
        {"model": "4 model_4", "condition": "qwerty", "amount": amount, "accuracy": 0.8, "drop": 0.08}
        | {"drop_interval": [0.05, 0.11], "adjusted_p": 0.001, "flip_rate": 0.1, "probability_change": -0.1}
        for amount in (0.2, 0.8)
    ]
    parts = ("words_changed", "tokens_added", "unknown_after", "pushed_past_the_limit")
    return {
        "reviews": 100,
        "models": [model],
        "rows": rows,
        "mechanisms": [{"condition": "qwerty", "amount": a, **dict.fromkeys(parts, 0.1)} for a in (0.2, 0.8)],
        "controls": [],
        "attacks": [{"model": "4 model_4", "greedy": [0.9, 0.5], "random": [0.9, 0.9]}],
        "examples": [],
    }


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    write_logs(folder)
    return folder


@pytest.fixture
def template(tmp_path, monkeypatch):
    """A report of one claim, with one figure."""
    path = tmp_path / "template" / "report.typ"
    path.parent.mkdir()
    path.write_text(TEMPLATE)
    monkeypatch.setattr(report, "TEMPLATE", path)


@pytest.fixture
def one_figure(monkeypatch):
    monkeypatch.setattr(report, "all_figures", lambda found, runs, damaged: {"costs": report.figures.costs(found)})


def test_the_report_is_written_with_its_facts_tables_and_figures_the_same_each_time(logs, template, tmp_path):
    found = write_report(logs, tmp_path / "out", logs / "memory.json")
    assert (tmp_path / "out" / "report.pdf").read_bytes().startswith(b"%PDF")
    written = json.loads((tmp_path / "out" / "facts.json").read_text())
    assert written == json.loads(json.dumps(found))
    assert written["comparisons"]["4-3"]["difference"] == pytest.approx((70 - 24) / 200)
    assert written["comparisons"]["4-3"]["shown"]
    assert not written["comparisons"]["2-1"]["shown"]
    assert written["ranking"][:2] == ["8", "4"]
    assert written["best_scratch"] == "4"
    # A variant is compared, and never among the eight.
    assert sorted(written["ranking"]) == list("12345678")
    assert written["comparisons"]["8t-8"]["difference"] == pytest.approx((20 - 12) / 200)
    assert written["frontiers"]["parameters"][-1] == "8t"
    table = (tmp_path / "out" / "table.md").read_text()
    assert "**90.0**" in table
    assert "**94.0**" not in table
    answer = (tmp_path / "out" / "answer.md").read_text()
    assert answer.startswith(
        "**Of the eight, experiment 8 (architecture 8, 30% dropped & more), 90.0% of the test reviews"
    )
    assert "no difference between experiment 8 and experiment 4 is shown" in answer
    assert "Of those trained from nothing the best is experiment 4 (architecture 4" in answer
    assert "; the fastest is experiment 1 (architecture 1" in answer
    assert "A linear model on bags of the same words has 95.0% right after 100 seconds" in answer
    assert "| **8** " in (tmp_path / "out" / "table.md").read_text()
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {"learning_curves.png", "costs.pdf", "comparisons.png", "memory.pdf", "robustness_attack.png"} <= names
    write_report(logs, tmp_path / "again", logs / "memory.json")
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "out")).read_bytes(), (
                path.name
            )


def test_a_claim_that_the_logs_do_not_bear_stops_the_build(logs, template, one_figure, tmp_path, capsys, monkeypatch):
    changed = tmp_path / "logs"
    shutil.copytree(logs, changed)
    monkeypatch.setattr(report.write_report, "__defaults__", (logs / "memory.json",))
    assert main([str(changed), "--written", str(tmp_path / "out")]) == 0
    # 4 is wrong as often as 3, on other reviews.
    write_predictions(changed / "imdb" / "4_model", range(100, 170))
    with pytest.raises(ClaimError, match="the logs do not bear: 4 beats 3"):
        write_report(changed, tmp_path / "out", logs / "memory.json")
    assert not (tmp_path / "out" / "report.pdf").exists()
    assert main([str(changed), "--written", str(tmp_path / "out")]) == 1
    assert "the logs do not bear: 4 beats 3" in capsys.readouterr().err


def test_a_changed_log_changes_the_text(logs, template, one_figure, tmp_path):
    one = write_report(logs, tmp_path / "one", logs / "memory.json")["comparisons"]["4-3"]["verdict"]
    changed = tmp_path / "logs"
    shutil.copytree(logs, changed)
    write_predictions(changed / "imdb" / "4_model", range(10))
    other = write_report(changed, tmp_path / "two", logs / "memory.json")["comparisons"]["4-3"]["verdict"]
    assert one.startswith("experiment 4 is ahead of experiment 3 by 23.0 points")
    assert other.startswith("experiment 4 is ahead of experiment 3 by 30.0 points")


def test_a_missing_log_is_named(logs, template, one_figure, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report.write_report, "__defaults__", (logs / "memory.json",))
    changed = tmp_path / "logs"
    shutil.copytree(logs, changed)
    (changed / "imdb" / "4_model" / "test_predictions.csv").unlink()
    assert main([str(changed), "--written", str(tmp_path / "out")]) == 2
    assert "4_model/test_predictions.csv" in capsys.readouterr().err
    shutil.rmtree(changed / "imdb")
    assert main([str(changed), "--written", str(tmp_path / "out")]) == 2
    assert "no complete run" in capsys.readouterr().err


def test_the_latex_table_escapes_and_marks(logs):
    lines = results_latex(report.load_runs(logs / "imdb")).splitlines()
    assert lines[0].startswith(r"\begin{tabular}{llr")
    assert lines[-1] == r"\end{tabular}"
    (row,) = [line for line in lines if line.startswith(r"\textbf{8}")]
    assert r"architecture 8, 30\% dropped \& more" in row
    assert r"\textbf{90.0}" in row
    assert row.endswith(r"\\")
    assert len({line.count("&") - line.count(r"\&") for line in lines if line.endswith(r"\\")}) == 1


def test_the_answer_says_what_other_seeds_gave(logs, template, one_figure, tmp_path):
    changed = tmp_path / "logs"
    shutil.copytree(logs, changed)
    for key, accuracies in (("8", (0.84, 0.87)), ("4", (0.85, 0.89))):
        for seed, accuracy in enumerate(accuracies, start=1):
            run_dir = changed / "seeds" / f"{key}_model_seed{seed}"
            shutil.copytree(logs / "imdb" / f"{key}_model", run_dir)
            summary = json.loads((run_dir / "summary.json").read_text()) | {"seed": seed, "test_accuracy": accuracy}
            (run_dir / "summary.json").write_text(json.dumps(summary))
    found = write_report(changed, tmp_path / "out", logs / "memory.json")
    assert found["seeds"]["8"]["test"] == [0.9, 0.84, 0.87]
    assert list(found["seeds_apart"]) == ["8-4"]
    assert "over 3 seeds each the means are 87.0% and 87.3%." in (tmp_path / "out" / "answer.md").read_text()


def test_where_the_best_is_trained_from_nothing_it_is_named_once(logs, template, one_figure, tmp_path):
    changed = tmp_path / "logs"
    shutil.copytree(logs, changed)
    path = changed / "imdb" / "4_model" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"best_validation_accuracy": 0.95}))
    write_report(changed, tmp_path / "out", logs / "memory.json")
    answer = (tmp_path / "out" / "answer.md").read_text()
    assert answer.startswith("**Of the eight, experiment 4 ")
    assert "trained from nothing" not in answer
    assert "\nThe fastest is experiment 1" in answer
