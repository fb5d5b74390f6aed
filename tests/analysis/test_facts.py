"""evidence.py: what is computed from logs, by hand on made-up runs."""

import json

import numpy as np
import pytest

from analysis import facts as evidence
from analysis.facts import (
    Comparison,
    compare_all,
    compare_runs,
    curve_facts,
    frontier,
    load_run,
    reach_facts,
    read_predictions,
    robustness_facts,
    seed_facts,
    seeds_apart,
)
from analysis.statistics import mcnemar_p, paired_interval
from config import InputError

LABELS = np.array([0, 1] * 20)


def write_run(folder, key, wrong, **summary):
    """A run folder whose model is wrong on the reviews of those numbers."""
    run_dir = folder / f"{key}_model"
    run_dir.mkdir(parents=True)
    lines = [
        {"step": 5, "train_accuracy": 0.6, "validation_loss": 0.5, "validation_accuracy": 0.7},
        {"step": 10, "train_accuracy": 0.8, "validation_loss": 0.4, "validation_accuracy": 0.8},
        {"step": 15, "train_accuracy": 0.9, "validation_loss": 0.45, "validation_accuracy": 0.75},
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    content = {"experiment": int(key[0]), "name": "model", "seed": 0, "best_validation_step": 10, **summary}
    (run_dir / "summary.json").write_text(json.dumps(content))
    guesses = np.where(np.isin(np.arange(40), list(wrong)), 1 - LABELS, LABELS)
    rows = "".join(f"{i},{label},{0.2 + 0.6 * g}\n" for i, (label, g) in enumerate(zip(LABELS, guesses, strict=True)))
    (run_dir / "test_predictions.csv").write_text("row,label,probability\n" + rows)
    return load_run(run_dir)


def test_a_comparison_counts_the_reviews_that_one_alone_has_right(tmp_path):
    one, other = write_run(tmp_path, "4", range(0, 3)), write_run(tmp_path, "3", range(2, 14))
    found = compare_runs(one, other)
    assert (found.first, found.second, found.reviews) == ("4", "3", 40)
    assert found.difference == pytest.approx(9 / 40)
    assert (found.low, found.high) == pytest.approx(paired_interval(11, 2, 40))
    assert found.p == mcnemar_p(11, 2)
    assert compare_runs(other, one).difference == -found.difference


def test_several_comparisons_are_corrected_together(tmp_path):
    runs = {
        "1": write_run(tmp_path, "1", range(20)),
        "2": write_run(tmp_path, "2", range(4)),
        "3": write_run(tmp_path, "3", range(5)),
    }
    found = compare_all(runs, [("2", "1"), ("3", "2"), ("2", "1"), ("9", "1")])
    assert list(found) == ["2-1", "3-2"]
    # Benjamini and Hochberg: the smaller p counts twice, the larger once.
    assert found["2-1"].adjusted_p == pytest.approx(2 * mcnemar_p(16, 0))
    assert found["3-2"].adjusted_p == 1
    assert found["2-1"].shown
    assert not found["3-2"].shown


def test_a_verdict_says_which_way_or_that_nothing_is_shown():
    ahead = Comparison("4", "3", 2000, 0.08, 0.06, 0.1, 1e-9, 1e-8)
    assert ahead.verdict().startswith("experiment 4 is ahead of experiment 3 by 8.0 points (95% interval +6.0 to +10.0")
    assert "adjusted p < 0.001, 2,000 test reviews" in ahead.verdict()
    behind = Comparison("4", "3", 2000, -0.08, -0.1, -0.06, 0.01, 0.02)
    assert behind.verdict({"4": "attention"}).startswith("attention is behind experiment 3 by 8.0 points")
    alike = Comparison("4", "3", 2000, 0.01, -0.01, 0.03, 0.3, 0.4)
    assert alike.verdict().startswith("no difference between experiment 4 and experiment 3 is shown (+1.0 points;")


def test_runs_on_other_reviews_are_not_compared(tmp_path):
    one, other = write_run(tmp_path, "1", [1]), write_run(tmp_path, "2", [1])
    path = other.folder / "test_predictions.csv"
    path.write_text(path.read_text().replace("\n7,", "\n70,"))
    with pytest.raises(InputError, match="tested on different reviews"):
        compare_runs(one, other)
    path.write_text("row,label\n1,1\n")
    with pytest.raises(InputError, match=r"test_predictions\.csv: not the predictions of a run.*row,label,probability"):
        read_predictions(path)
    path.write_text("row,label,probability\n")
    with pytest.raises(InputError, match="not the predictions of a run"):
        read_predictions(path)
    path.unlink()
    with pytest.raises(InputError, match="not the predictions of a run"):
        compare_runs(one, other)


def test_what_a_curve_does(tmp_path):
    found = curve_facts(write_run(tmp_path, "1", []))
    assert found["loss_regained"] == pytest.approx(0.05)
    assert found["gap"] == pytest.approx(0.15)
    assert found["largest_fall"] == pytest.approx(0.05)
    assert found["best_at_share"] == pytest.approx(2 / 3)


def test_the_frontier_is_what_none_beats_at_no_more_cost():
    costs = {"a": (1, 0.7), "b": (2, 0.6), "c": (3, 0.8), "d": (3, 0.75), "e": (9, 0.8)}
    found = [{"key": k, "train_seconds": c, "best_validation_accuracy": a} for k, (c, a) in costs.items()]
    assert frontier(found, "train_seconds") == ["a", "c"]


def test_seeds_are_gathered_by_experiment(tmp_path):
    accuracy = {("1", 0): 0.80, ("1", 1): 0.82, ("1", 2): 0.84, ("2", 0): 0.90, ("2", 1): 0.91, ("3", 0): 0.5}
    runs = [
        write_run(tmp_path / str(seed), key, [], seed=seed, test_accuracy=a, best_validation_accuracy=a)
        for (key, seed), a in accuracy.items()
    ]
    found = seed_facts(runs)
    assert list(found) == ["1", "2"]
    assert found["1"]["test_mean"] == pytest.approx(0.82)
    assert found["1"]["test_deviation"] == pytest.approx(0.02)
    apart = seeds_apart(found["2"], found["1"])
    assert apart["difference"] == pytest.approx(0.085)
    # Welch: the standard error is that of two means.
    error = np.sqrt(0.02**2 / 3 + found["2"]["test_deviation"] ** 2 / 2)
    assert (apart["low"] + apart["high"]) / 2 == pytest.approx(0.085)
    assert apart["high"] - apart["low"] > 2 * 1.96 * error


def test_a_log_of_damages_is_told_by_condition_amount_and_experiment():
    row = {"condition": "qwerty", "amount": 0.4, "model": "4 lstm", "accuracy": 0.7, "drop": 0.1, "adjusted_p": 0.01}
    row |= {"flip_rate": 0.2, "probability_change": -0.1, "drop_interval": [0.05, 0.15]}
    example = {"condition": "qwerty", "amount": 0.4, "probability_before": 0.1, "probability_after": 0.7}
    found = robustness_facts(
        {
            "reviews": 10,
            "models": [{"model": "4 lstm", "experiment": 4}],
            "rows": [row],
            "mechanisms": [{"condition": "qwerty", "amount": 0.4, "tokens_added": 0.3}],
            "controls": [{"amount": 0.4, "model": "4 lstm", "drop": 0.03, "drop_interval": [0.01, 0.05]}],
            "attacks": [{"model": "4 lstm", "greedy": [0.8, 0.1]}],
            "examples": [
                {**example, "probability_after": 0.6},
                {**example, "amount": 0.8, "probability_after": 0.9},
                example,
            ],
        }
    )
    assert found["drops"]["qwerty"]["0.4"]["4"]["low"] == 0.05
    assert found["drops"]["qwerty"]["0.4"]["4"]["shown"]
    assert found["mechanisms"]["qwerty"]["0.4"]["tokens_added"] == 0.3
    assert (found["controls"]["0.4"]["4"]["low"], found["controls"]["0.4"]["4"]["drop"]) == (0.01, 0.03)
    assert found["attacks"]["4"]["greedy"] == [0.8, 0.1]
    assert found["examples"]["qwerty"] == example


def test_a_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match=r"x\.json: can't be read"):
        evidence.read_json(tmp_path / "x.json")


def test_the_reach_is_summed_over_the_end_and_what_lies_between_the_ends():
    pulls = [1.0] * 32 + [0.5] * 64 + [0.25] * 32
    found = reach_facts({"reviews": 3, "models": {"4": {"name": "m", "untrained": pulls, "trained": pulls[::-1]}}})
    assert found["reviews"] == 3
    assert found["untrained"]["4"] == {"between": 32 / 72, "last": 8 / 72}
    assert found["trained"]["4"] == {"between": 32 / 72, "last": 32 / 72}
