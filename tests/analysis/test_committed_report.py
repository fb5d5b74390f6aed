"""The committed report: the committed logs reproduce it, README shows it, logs that contradict it stop the build."""

import json
import re
import shutil
from pathlib import Path

import pytest

from analysis import report
from analysis.facts import describe
from analysis.logs import load_runs
from analysis.report import ClaimError, write_report
from config import InputError

ROOT = Path(__file__).resolve().parents[2]
LOGS, COMMITTED = ROOT / "logs" / "reference", ROOT / "report"


@pytest.fixture
def committed_figures(tmp_path, monkeypatch):
    """The figures as committed, since drawing them takes most of the time."""
    (tmp_path / "out").mkdir()
    shutil.copytree(COMMITTED / "figures", tmp_path / "out" / "figures")
    monkeypatch.setattr(report, "all_figures", lambda *arguments: {})


def flatten(value, path=""):
    """`{"/runs/4/test_accuracy": 0.88, ...}`"""
    if not isinstance(value, dict | list):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: leaf for name, inner in items for key, leaf in flatten(inner, f"{path}/{name}").items()}


def test_committed_logs_reproduce_the_committed_report(committed_figures, tmp_path):
    pdf = write_report(LOGS, tmp_path / "out")
    written, committed = (
        flatten(json.loads((folder / "facts.json").read_text())) for folder in (tmp_path / "out", COMMITTED)
    )
    assert written.keys() == committed.keys()
    for key, value in committed.items():
        expected = pytest.approx(value, rel=1e-6, abs=1e-12) if isinstance(value, float) else value
        assert written[key] == expected, f"facts.json, {key}"
    for name in ("table.md", "table.tex", "answer.md"):
        assert (tmp_path / "out" / name).read_text() == (COMMITTED / name).read_text(), name
    assert pdf.stat().st_size > 50_000
    # The web page has the same figures and sentences, and loads nothing.
    page = pdf.with_suffix(".html").read_text()
    assert page.count('src="data:image/') == page.count("<img") == len(list((COMMITTED / "figures").glob("*.pdf")))
    assert not re.findall(r"""(?:src=|url\(|@import )["']?(?:https?:)?//""", page)
    assert "<h1>Recurrent networks, attention and Transformers" in page
    answer = json.loads((COMMITTED / "facts.json").read_text())["ranking"][0]
    assert f"Of the eight, <strong>{answer}</strong>" in page


def test_readme_contains_the_committed_answer_and_table():
    readme = (ROOT / "README.md").read_text()
    for name in ("answer.md", "table.md"):
        assert (COMMITTED / name).read_text().strip() in readme, f"{name}: README has another text"


@pytest.mark.parametrize(("one", "other"), [("4_lstm_attention", "3_lstm_decoder"), ("8_minilm", "1_lstm")])
def test_exchanged_logs_of_two_experiments_stop_the_build(one, other, committed_figures, tmp_path):
    logs = tmp_path / "logs"
    shutil.copytree(LOGS, logs)
    for name in ("test_predictions.csv", "metrics.jsonl"):
        texts = [(logs / "imdb" / folder / name).read_text() for folder in (other, one)]
        for folder, text in zip((one, other), texts, strict=True):
            (logs / "imdb" / folder / name).write_text(text)
    # Of runs in batches of different sizes the evaluations alone tell.
    with pytest.raises((ClaimError, InputError), match="the logs do not support this claim|no evaluation after step"):
        write_report(logs, tmp_path / "out")


def test_notebook_outputs_match_the_committed_report_without_warnings():
    path = ROOT / "main.ipynb"
    cells = json.loads(path.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    shown = "\n".join("".join(o.get("data", {}).get("text/markdown", "")) for o in outputs)
    table = (COMMITTED / "table.md").read_text().partition("\n\n")[0]
    assert table in shown
    facts = json.loads((COMMITTED / "facts.json").read_text())
    for comparison in facts["comparisons"].values():
        assert comparison["verdict"] in shown
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code"), "a cell that was not executed"
    assert path.stat().st_size < 3_000_000


def comparison(facts, pair):
    return facts["comparisons"][pair]


def between(facts, state, *keys):
    return [facts["saliency"][state][key]["between"] for key in keys]


def saved(row):
    return row["saved_bytes"]


def differ_as_runs_only(facts):
    """Whether the runs of seed 0 of 3 and 2 differ significantly, though over the seeds the experiments do not."""
    runs = describe(load_runs(LOGS / "imdb"))["comparisons"]["3-2"]
    return runs["significant"] and not comparison(facts, "3-2")["significant"]


def learns_late_or_never(facts):
    """Whether 3 begins to learn late with seed 0, and with one other seed never."""
    starts = facts["curves"]["3"]["start_step_share"]
    return starts[0] > 0.8 and starts.count(None) == 1


def ends_level_where_it_learns(facts):
    """Whether the seeds of 3 that begin to learn soon are within two points of the mean of 2."""
    of_3, mean_of_2 = facts["accuracies"]["3"]["by_seed"], facts["accuracies"]["2"]["mean"]
    soon = [start is not None and start < 0.8 for start in facts["curves"]["3"]["start_step_share"]]
    return any(soon) and all(abs(one - mean_of_2) < 0.02 for one, is_soon in zip(of_3, soon, strict=True) if is_soon)


def take_two_and_a_half_hours(facts):
    """Whether the committed runs of the eight, training and evaluations, take that long in all."""
    summaries = [run.summary for run in load_runs(LOGS / "imdb") if run.is_assigned]
    hours = sum(summary["train_seconds"] + summary["evaluation_seconds"] for summary in summaries) / 3600
    return 2.25 < hours < 2.75


WORD_EDITS = ("swap", "qwerty", "deletion", "insertion", "substitution", "joined", "repetition")


def lost(facts, condition, amount="0.4"):
    """By model the accuracy that a perturbation costs."""
    return {key: row["drop"] for key, row in facts["robustness"]["drops"][condition][amount].items()}


def homoglyphs_cost_most_but_in_3_and_8(facts):
    homoglyph, others = lost(facts, "homoglyph"), [lost(facts, name) for name in WORD_EDITS]
    is_most = {key: all(homoglyph[key] > other[key] for other in others) for key in homoglyph}
    return [key for key, holds in is_most.items() if not holds] == ["3", "8"]


def shuffling_costs_8_most(facts):
    """Whether it costs 8 the most at each amount, and 4 to 7 nothing significant."""
    rows = facts["robustness"]["drops"]["shuffled"]
    return all(
        max(of_amount, key=lambda key: of_amount[key]["drop"]) == "8"
        and not any(of_amount[key]["significant"] for key in "4567")
        for of_amount in rows.values()
    )


def on_yelp(facts, index):
    """By model its row with the fewest (0) or the most (-1) training reviews."""
    return {key: rows[index] for key, rows in facts["sizes"]["accuracies"].items()}


def only_8_is_better_and_4_is_best_of_the_others(facts):
    rows = on_yelp(facts, 0)
    tests = {key: rows[key]["to_baseline"] for key in "12345678"}
    better = [key for key, test in tests.items() if test["significant"] and test["difference"] > 0]
    return better == ["8"] and max("1234567", key=lambda key: rows[key]["mean"]) == "4"


def from_scratch_are_close_and_none_is_above(facts):
    rows = [on_yelp(facts, -1)[key] for key in "1234567"]
    means, tests = [row["mean"] for row in rows], [row["to_baseline"] for row in rows]
    is_above = [test["significant"] and test["difference"] > 0 for test in tests]
    return max(means) - min(means) < 0.03 and not any(is_above)


# Sentences of the notebook that interpret, and what must hold of the facts.
SENTENCES = {
    "two and a half hours on one CPU thread": take_two_and_a_half_hours,
    "In **1** and **2** (their lines coincide) the gradient has vanished after some thirty tokens": lambda facts: (
        between(facts, "untrained", "1") == between(facts, "untrained", "2")
        and max(between(facts, "untrained", "1")) < 0.001
        and facts["saliency"]["untrained"]["1"]["last"] < 0.001
    ),
    "so it sees both ends and nothing between": lambda facts: (
        max(between(facts, "untrained", "3")) < 0.001 and 0.2 < facts["saliency"]["untrained"]["3"]["last"] < 0.8
    ),
    "compare **3** and **2** in the two lists": differ_as_runs_only,
    "With seed 0 **3** began to learn late, with another seed never": learns_late_or_never,
    "with the rest it ends level with **2**": ends_level_where_it_learns,
    "is level with **4**": lambda facts: (
        comparison(facts, "1m-1")["low"] > 0
        and comparison(facts, "1m-1")["significant"]
        and not comparison(facts, "1m-4")["significant"]
        and abs(comparison(facts, "1m-4")["difference"]) < 0.01
    ),
    "scores higher than **1**. So it is not the attention": lambda facts: (
        comparison(facts, "1e-1")["significant"] and comparison(facts, "1e-1")["difference"] > 0
    ),
    "scores higher than **4**. The linear baseline gains from more tokens, too": lambda facts: (
        all(comparison(facts, pair)["significant"] for pair in ("4d-4", "0d-0", "0w-0"))
        and all(comparison(facts, pair)["difference"] > 0 for pair in ("4d-4", "0d-0", "0w-0"))
    ),
    "though **7**, with two layers, ends level without one": lambda facts: (
        not comparison(facts, "7w-7")["significant"] and abs(comparison(facts, "7w-7")["difference"]) < 0.01
    ),
    "**5m** is no better": lambda facts: not comparison(facts, "5m-5")["significant"],
    "only **8**, which was pretrained, is better than the linear baseline, and **4** is the best": (
        only_8_is_better_and_4_is_best_of_the_others
    ),
    "are within three points of each other, and none is significantly above": from_scratch_are_close_and_none_is_above,
    "case and spacing cost nothing": lambda facts: (
        not any(value for name in ("uppercase", "lowercase", "spaces") for value in lost(facts, name).values())
    ),
    "A letter edited costs more than the same word left out": lambda facts: all(
        row["low"] > 0 for row in facts["robustness"]["controls"]["qwerty"]["qwerty_removed"]["0.4"].values()
    ),
    "cost more than any other edit of a word in all models but **3** and **8**": homoglyphs_cost_most_but_in_3_and_8,
    "the words costs **8** most, and **4** to **7** nothing significant": shuffling_costs_8_most,
    "more than half of the gradient of **1** and **2** now comes from between the ends": lambda facts: (
        min(between(facts, "trained", "1", "2")) > 0.5
    ),
    "it is less than a third": lambda facts: between(facts, "trained", "3")[0] < 1 / 3,
    "the frozen encoder saves the least, and with all its layers trained the most": lambda facts: (
        [min(facts["memory"], key=saved)["key"], max(facts["memory"], key=saved)["key"]] == ["8", "8t"]
    ),
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_sentences_of_the_notebook_hold(sentence):
    cells = json.loads((ROOT / "main.ipynb").read_text())["cells"]
    text = " ".join(" ".join("".join(cell["source"]).split()) for cell in cells if cell["cell_type"] == "markdown")
    assert sentence in text
    assert SENTENCES[sentence](json.loads((COMMITTED / "facts.json").read_text()))


@pytest.mark.parametrize(
    "path", [*ROOT.glob("configs/[1-8]_*.yaml"), ROOT / "configs/variants/8t_minilm_all_layers.yaml"]
)
def test_header_of_an_experiment_says_what_its_committed_runs_measured(path):
    header = re.findall(
        r"# python train\.py configs/\S+ profile=(\w+).*\n# (.*?): (\d+) s of training, (\d+) s of evaluation\.\n"
        r"# ([\d,]+) IMDB reviews: best validation accuracy ([\d.]+)%, test ([\d.]+)%",
        path.read_text(),
    )
    assert header, f"{path}: no command with its result"
    for profile, machine, train_seconds, evaluation_seconds, num_reviews, validation, test in header:
        summary = json.loads((LOGS / profile / path.stem / "summary.json").read_text())
        assert machine.startswith(summary["device"])
        assert num_reviews == f"{summary['data']['train']:,}"
        assert (train_seconds, evaluation_seconds, validation, test) == (
            f"{summary['train_seconds']:.0f}",
            f"{summary['evaluation_seconds']:.0f}",
            f"{100 * summary['best_validation_accuracy']:.1f}",
            f"{100 * summary['test_accuracy']:.1f}",
        ), path
