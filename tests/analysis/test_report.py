"""analysis/report.py --written: facts, tables, figures and PDF from logs; an unsupported claim stops the build."""

import json
import shutil

import pytest

from analysis import report
from analysis.figures import variants
from analysis.logs import load_runs
from analysis.report import ClaimError, main, results_latex, write_report
from analysis.robustness_figures import MECHANISMS
from helpers import write_run_folder, write_test_predictions

NUM_WRONG = {"0": 10, "1": 60, "2": 58, "3": 70, "4": 24, "5": 30, "6": 31, "7": 29, "8": 20, "8t": 12}
TEMPLATE = """
#set document(date: none)
#let f = json("facts.json")
#let beats(a, b) = f.comparisons.at(a + "-" + b).significant and f.comparisons.at(a + "-" + b).difference > 0
#let claim(statement, holds, body) = {
  if not holds { panic("the logs do not support this claim: " + statement) }
  body
}
#claim("4 beats 3", beats("4", "3"))[Attention helps: #f.comparisons.at("4-3").verdict.]
#image("figures/costs.pdf")
"""


def write_logs(folder):
    """Logs of a whole comparison with made-up metrics: 4 is far better than 3, 2 hardly better than 1."""
    for key, num_wrong in NUM_WRONG.items():
        accuracy = 1 - num_wrong / 200
        write_run_folder(
            folder / "imdb" / f"run_{key}",
            key,
            wrong=range(num_wrong),
            num_reviews=200,
            architecture=f"architecture {key}, 30% dropped & more",
            parameters=9_000_000 + 1000 * int(key[0]),
            best_validation_accuracy=accuracy,
            test_accuracy=accuracy,
            train_seconds=100.0 + int(key[0]),
        )
    (folder / "robustness.json").write_text(json.dumps(robustness_log()))
    sizes = {f"{part}_bytes": 2**26 for part in ("libraries", "weights", "gradients", "optimizer", "saved", "measured")}
    rows = [{"key": key, "label": f"architecture {key}", **sizes} for key in NUM_WRONG if key != "0"]
    (folder / "memory.json").write_text(json.dumps({"rows": rows}))


def robustness_log():
    rows = [
        {"model": "4", "condition": "qwerty", "amount": amount, "accuracy": 0.8, "drop": 0.08}
        | {"drop_interval": [0.05, 0.11], "adjusted_p": 0.001, "flip_rate": 0.1, "probability_change": -0.1}
        for amount in (0.2, 0.8)
    ]
    parts = [key for key, _ in MECHANISMS]
    return {
        "reviews": 100,
        "models": [{"model": "4", "label": "LSTM", "accuracy": 0.88, "max_length": 128}],
        "rows": rows,
        "mechanisms": [{"condition": "qwerty", "amount": a, **dict.fromkeys(parts, 0.1)} for a in (0.2, 0.8)],
        "controls": [],
        "attacks": [{"model": "4", "reviews": 100, "greedy": [0.9, 0.5], "random": [0.9, 0.9]}],
        "examples": [],
    }


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    write_logs(folder)
    return folder


@pytest.fixture
def changed_logs(logs, tmp_path):
    """A copy of the logs, to change."""
    shutil.copytree(logs, tmp_path / "logs")
    return tmp_path / "logs"


@pytest.fixture
def template(tmp_path, monkeypatch):
    """A report of one claim, with one figure."""
    path = tmp_path / "template" / "report.typ"
    path.parent.mkdir()
    path.write_text(TEMPLATE)
    monkeypatch.setattr(report, "TEMPLATE", path)
    return path


@pytest.fixture
def one_figure(monkeypatch):
    monkeypatch.setattr(report, "all_figures", lambda logs, facts, runs: {"costs": report.figures.costs(facts)})


@pytest.fixture
def memory_log(logs, monkeypatch):
    """The command, too, reads the made-up memory log."""
    monkeypatch.setattr(report.write_report, "__defaults__", (logs / "memory.json",))


def build(logs, output):
    """The facts of a report."""
    write_report(logs, output, logs / "memory.json")
    return json.loads((output / "facts.json").read_text())


def test_report_is_written_with_facts_tables_and_figures_the_same_each_time(logs, template, tmp_path):
    facts = build(logs, tmp_path / "out")
    assert (tmp_path / "out" / "report.pdf").read_bytes().startswith(b"%PDF")
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {
        "losses.png",
        "accuracies_by_step.pdf",
        "costs.pdf",
        "comparisons.png",
        "memory.pdf",
        "robustness_attack.png",
    } <= names
    assert facts["comparisons"]["4-3"]["difference"] == pytest.approx((70 - 24) / 200)
    assert facts["comparisons"]["4-3"]["significant"]
    assert not facts["comparisons"]["2-1"]["significant"]
    assert facts["ranking"][:2] == ["8", "4"]
    assert facts["best_from_scratch"] == "4"
    build(logs, tmp_path / "again")
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            again = tmp_path / "again" / path.relative_to(tmp_path / "out")
            assert path.read_bytes() == again.read_bytes(), f"{path.name} differs between two builds"


def test_a_variant_is_compared_but_never_ranked_among_the_eight(logs, template, one_figure, tmp_path):
    facts = build(logs, tmp_path / "out")
    assert sorted(facts["ranking"]) == list("12345678")
    assert facts["comparisons"]["8t-8"]["difference"] == pytest.approx((20 - 12) / 200)
    assert facts["frontiers"]["parameters"][-1] == "8t"
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| **8t** " in table
    assert "**90.0**" in table
    assert "**94.0**" not in table


def test_answer_names_the_best_the_best_from_scratch_the_fastest_and_the_baseline(logs, template, one_figure, tmp_path):
    build(logs, tmp_path / "out")
    lines = (tmp_path / "out" / "answer.md").read_text().splitlines()
    assert lines[0].startswith(
        "Of the eight, **8** (architecture 8, 30% dropped & more) has the best validation accuracy, with 90.0% test "
        "accuracy. **8** and **4** do not differ significantly"
    )
    assert lines[1] == (
        "The best of those trained from scratch is **4** (architecture 4, 30% dropped & more): 88.0% test accuracy."
    )
    assert lines[2].startswith("The fastest to train is **1** (architecture 1, 30% dropped & more): 70.0% test")
    assert lines[3].startswith(
        "The linear baseline (TF-IDF + logistic regression) reaches 95.0% test accuracy after 100"
    )
    assert lines[3].endswith("200 test reviews).")


def test_answer_names_a_best_model_from_scratch_once(changed_logs, template, one_figure, tmp_path):
    path = changed_logs / "imdb" / "run_4" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"best_validation_accuracy": 0.95}))
    build(changed_logs, tmp_path / "out")
    answer = (tmp_path / "out" / "answer.md").read_text()
    assert answer.startswith("Of the eight, **4** ")
    assert "from scratch" not in answer
    assert "\nThe fastest to train is **1**" in answer


def test_seeds_and_variants_of_all_folders_enter_facts_and_answer(changed_logs, template, one_figure, tmp_path):
    # Folder names say nothing of key and seed.
    for key, mistakes in (("8", (32, 26)), ("4", (30, 22)), ("4d", (10, 12)), ("1m", (24,))):
        for seed, number in enumerate(mistakes, start=1):
            place = "ablation" if len(key) > 1 else "seeds"
            metrics = {"test_accuracy": 1 - number / 200, "best_validation_accuracy": {"8": 0.9}.get(key, 0.85)}
            folder = changed_logs / place / f"{key[::-1]}{seed}"
            write_run_folder(folder, key, seed, range(number), num_reviews=200, **metrics)
    facts = build(changed_logs, tmp_path / "out")
    assert facts["accuracies"]["8"]["seeds"] == [0, 1, 2]
    assert facts["accuracies"]["8"]["by_seed"] == pytest.approx([0.9, 0.84, 0.87])
    assert facts["accuracies"]["8"]["mean"] == pytest.approx(0.87)
    assert facts["accuracies"]["8"]["std"] == pytest.approx(0.03)
    assert facts["accuracies"]["3"]["std"] is None
    assert len(facts["curves"]["8"]["accuracy_gap"]) == 3
    assert facts["comparisons"]["8-4"]["num_seeds"] == [3, 3]
    assert facts["comparisons"]["4d-4"]["difference"] == pytest.approx(0.945 - facts["accuracies"]["4"]["mean"])
    assert "4d" not in facts["ranking"]
    answer = (tmp_path / "out" / "answer.md").read_text()
    assert "has the best validation accuracy, with 87.0% test accuracy (mean of 3 seeds). " in answer
    assert ", 3 seeds each, 200 test reviews)" in answer
    pooling = next(line for line in answer.splitlines() if line.startswith("Is it attention, or pooling?"))
    assert all(facts["comparisons"][pair]["verdict"] in pooling for pair in ("1m-1", "1m-4"))
    verdict = facts["comparisons"]["4d-4"]["verdict"]
    assert f"What if a model may read 512 tokens in place of 256? {verdict}." in answer.splitlines()


@pytest.mark.parametrize(
    ("significant", "end"),
    [(True, "of them only **4** scores significantly"), (False, "none of them scores significantly")],
)
def test_answer_says_what_changes_with_more_data(significant, end, changed_logs, template, one_figure, tmp_path):
    facts = build(changed_logs, tmp_path / "out")
    assert "What changes" not in report.answer(facts)
    # Of 1 and 8 the difference is significant, too: below the linear baseline, and pretrained.
    means = {"1": (0.6, 0.9, -0.02, True), "4": (0.8, 0.93, 0.01, significant), "8": (0.9, 0.99, 0.07, True)}
    facts["sizes"] = {"sizes": [1000, 16000], "passes_baseline": {"4": 16000}, "accuracies": {}}
    for key, (fewest, most, difference, is_significant) in means.items():
        comparison = {"difference": difference, "significant": is_significant}
        rows = [{"mean": mean, "experiment": int(key), "to_baseline": comparison} for mean in (fewest, most)]
        facts["sizes"]["accuracies"][key] = rows
    assert (
        "What changes with more data? On 1,000 Yelp reviews the best and the worst of **1** to **7** are "
        f"20.0 points apart, on 16,000 3.0; {end} higher than the linear baseline there."
    ) in report.answer(facts).splitlines()


def test_two_runs_of_one_key_and_seed_are_refused(changed_logs, template, one_figure, memory_log, tmp_path, capsys):
    write_run_folder(changed_logs / "seeds" / "x", "8", num_reviews=200)
    assert main([str(changed_logs), "--written", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "run_8 and" in error
    assert "are both 8 with seed 0" in error
    assert not (tmp_path / "out").exists()


def test_runs_on_different_data_are_refused(changed_logs, template, one_figure, memory_log, tmp_path, capsys):
    path = changed_logs / "imdb" / "run_4" / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"data": summary["data"] | {"validation": 21}}))
    assert main([str(changed_logs), "--written", str(tmp_path / "out")]) == 2
    assert "run_4 are on different data (validation: 20 and 21)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_claim_that_the_logs_do_not_support_stops_the_build(
    changed_logs, template, one_figure, memory_log, tmp_path, capsys
):
    assert main([str(changed_logs), "--written", str(tmp_path / "out")]) == 0
    # 4 is wrong as often as 3, on other reviews.
    write_test_predictions(changed_logs / "imdb" / "run_4", range(100, 170), 200)
    with pytest.raises(ClaimError, match="the logs do not support this claim: 4 beats 3"):
        write_report(changed_logs, tmp_path / "out")
    assert not (tmp_path / "out" / "report.pdf").exists()
    assert not (tmp_path / "out" / "report.html").exists()
    assert main([str(changed_logs), "--written", str(tmp_path / "out")]) == 1
    assert "the logs do not support this claim: 4 beats 3" in capsys.readouterr().err


def test_verdict_follows_a_changed_log(changed_logs, logs, template, one_figure, tmp_path):
    before = build(logs, tmp_path / "one")["comparisons"]["4-3"]["verdict"]
    write_test_predictions(changed_logs / "imdb" / "run_4", range(10), 200)
    after = build(changed_logs, tmp_path / "two")["comparisons"]["4-3"]["verdict"]
    assert "scores 23.0 points higher than **3**" in before
    assert "scores 30.0 points higher than **3**" in after


def test_missing_logs_are_refused_by_name(changed_logs, template, one_figure, memory_log, tmp_path, capsys):
    (changed_logs / "imdb" / "run_4" / "test_predictions.csv").unlink()
    assert main([str(changed_logs), "--written", str(tmp_path / "out")]) == 2
    assert "run_4/test_predictions.csv" in capsys.readouterr().err
    shutil.rmtree(changed_logs / "imdb")
    assert main([str(changed_logs), "--written", str(tmp_path / "out")]) == 2
    assert "no complete run" in capsys.readouterr().err


def test_missing_template_is_refused(logs, template, memory_log, tmp_path, capsys):
    template.unlink()
    assert main([str(logs), "--written", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"{template}: the report's template is missing" in error
    assert "clone" in error
    assert not (tmp_path / "out").exists()


def test_latex_table_escapes_special_characters_and_sets_the_best_in_bold(logs):
    lines = results_latex(load_runs(logs / "imdb")).splitlines()
    assert lines[0].startswith(r"\begin{tabular}{llr")
    assert lines[-1] == r"\end{tabular}"
    (row,) = [line for line in lines if line.startswith(r"\textbf{8}")]
    assert r"architecture 8, 30\% dropped \& more" in row
    assert r"\textbf{90.0}" in row
    assert row.endswith(r"\\")
    assert len({line.count("&") - line.count(r"\&") for line in lines if line.endswith(r"\\")}) == 1


def test_an_interval_of_more_than_10_points_does_not_set_the_scale_of_the_variants():
    def entry(experiment, low, mean, high):
        return {"architecture": "LSTM", "experiment": experiment, "seeds": [0], "low": low, "mean": mean, "high": high}

    facts = {"1": entry(1, 0.84, 0.85, 0.86), "3": entry(3, 0.576, 0.756, 0.937), "4": entry(4, 0.87, 0.88, 0.89)}
    (axis,) = variants({"accuracies": facts}).axes
    assert axis.get_xlim() == pytest.approx((83, 90))
    assert [text.get_text() for text in axis.texts] == ["75.6 (57.6 to 93.7)"]
