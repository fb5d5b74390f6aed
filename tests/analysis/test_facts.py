"""analysis/facts.py: numbers of the report, by hand on made-up logs."""

import pytest

from analysis.facts import (
    EDGE_TOKENS,
    LEVEL,
    cost_frontier,
    curve_facts,
    curves_by_seed,
    describe,
    gpu_facts,
    robustness_facts,
    run_facts,
    saliency_facts,
    settings_of,
)
from analysis.logs import load_run, load_runs
from config import InputError
from helpers import write_run_folder


def test_curve_facts_measure_overfitting_and_instability(tmp_path):
    facts = curve_facts(load_run(write_run_folder(tmp_path / "run", "1")))
    assert facts["validation_loss_rise"] == pytest.approx(0.05)
    assert facts["accuracy_gap"] == pytest.approx(0.15)
    assert facts["largest_accuracy_drop"] == pytest.approx(0.05)
    assert facts["best_step_share"] == pytest.approx(2 / 3)
    assert facts["first_validation_accuracy"] == 0.7
    assert facts["num_evaluations"] == 3
    assert facts["seconds_to_best"] == 8.4
    assert facts["seconds_to_level"] is None


def test_seconds_to_a_level_are_those_of_the_first_evaluation_that_reaches_it(tmp_path):
    run = load_run(write_run_folder(tmp_path / "run", "1"))
    for line, accuracy in zip(run.metrics, (0.85, 0.9, 0.8), strict=True):
        line["validation_accuracy"] = accuracy
    assert LEVEL == 0.85
    assert curve_facts(run)["seconds_to_level"] == 4.2


@pytest.mark.parametrize(
    ("accuracies", "share"), [((0.59, 0.6, 0.5), 2 / 3), ((0.6, 0.5, 0.5), 1 / 3), ((0.5, 0.5, 0.59), None)]
)
def test_learning_starts_at_the_first_evaluation_with_60_percent(tmp_path, accuracies, share):
    run = load_run(write_run_folder(tmp_path / "run", "1"))
    for line, accuracy in zip(run.metrics, accuracies, strict=True):
        line["validation_accuracy"] = accuracy
    assert curve_facts(run)["start_step_share"] == (share and pytest.approx(share))


def test_gap_is_that_of_the_training_sample_where_there_is_one(tmp_path):
    run = load_run(write_run_folder(tmp_path / "run", "1", train_sample_accuracy=0.95))
    run.metrics[-1]["train_sample_accuracy"] = 0.95
    facts = curve_facts(run)
    assert (facts["train_accuracy"], facts["accuracy_gap"]) == (0.95, pytest.approx(0.2))


def test_metrics_of_another_run_are_refused(tmp_path):
    run = load_run(write_run_folder(tmp_path / "run", "1", best_validation_step=7))
    with pytest.raises(InputError, match=r"metrics\.jsonl: no evaluation after step 7, the best one in summary\.json"):
        curve_facts(run)


def test_curves_have_a_value_for_each_seed(tmp_path):
    runs = [load_run(write_run_folder(tmp_path / str(seed), "1", seed)) for seed in (0, 1)]
    runs[1].metrics[-1]["validation_accuracy"] = 0.7
    assert curves_by_seed(runs)["accuracy_gap"] == pytest.approx([0.15, 0.2])
    assert curves_by_seed(runs)["num_evaluations"] == [3, 3]
    # A running accuracy does not enter a mean with those on a fixed sample.
    sampled = load_run(write_run_folder(tmp_path / "2", "1", 2, train_sample_accuracy=0.99))
    sampled.metrics[-1]["train_sample_accuracy"] = 0.99
    curves = curves_by_seed([*runs, sampled])
    assert (curves["train_accuracy"], curves["num_evaluations"]) == ([0.99], [3, 3, 3])
    assert (curves["train_sample_seeds"], curves_by_seed(runs)["train_sample_seeds"]) == ([2], [])


def test_gpu_memory_is_of_runs_on_a_gpu_only(tmp_path):
    memory = {"kind": "cuda_allocated", "peak_bytes": 7}
    runs = [load_run(write_run_folder(tmp_path / "a", "4", memory=memory, device="GPU", steady_memory_bytes=5))]
    runs.append(load_run(write_run_folder(tmp_path / "b", "5")))
    assert gpu_facts(runs) == {
        "4": {"device": "GPU", "train_seconds": 12.6, "steady_memory_bytes": 5, "peak_bytes": 7, "batch_size": 32}
    }


def test_hyper_parameters_are_those_of_the_runs_settings(tmp_path):
    folder = write_run_folder(tmp_path / "a", "4")
    with (folder / "config.yaml").open("a") as file:
        file.write("train: {learning_rate: 0.003, batch_size: 64, epochs: 3}\n")
    settings = settings_of(load_run(folder))
    assert (settings["learning_rate"], settings["batch_size"], settings["epochs"]) == (0.003, 64, 3)
    assert settings["dropout"] == 0.3


def test_accuracies_of_an_experiment_are_means_over_its_seeds_and_costs_those_of_the_first(tmp_path):
    runs = [
        load_run(write_run_folder(tmp_path / "a", "4", 0, range(10), train_seconds=10.0, best_validation_accuracy=0.8)),
        load_run(write_run_folder(tmp_path / "b", "4", 1, range(6), train_seconds=30.0, best_validation_accuracy=0.9)),
    ]
    facts = run_facts(runs)
    assert facts["test_by_seed"] == pytest.approx([0.75, 0.85])
    assert facts["test_accuracy"] == pytest.approx(0.8)
    assert facts["test_interval"][0] < 0.75 < 0.85 < facts["test_interval"][1]
    assert facts["best_validation_accuracy"] == pytest.approx(0.85)
    assert facts["train_seconds"] == 10
    assert facts["num_reviews"] == {"train": 2000, "validation": 20, "test": 40}


def test_ranking_is_by_the_mean_over_seeds(tmp_path):
    for name, key, seed, accuracy in (("a", "3", 0, 0.8), ("b", "4", 0, 0.85)):
        write_run_folder(tmp_path / name, key, seed, best_validation_accuracy=accuracy)
    write_run_folder(tmp_path / "c", "4", 1, best_validation_accuracy=0.7, device="another")
    runs = load_runs(tmp_path)
    assert describe(runs[:2])["ranking"] == ["4", "3"]
    assert describe(runs[:2])["devices"] == ["a test"]
    facts = describe(runs[:2], runs[2:])
    assert facts["ranking"] == ["3", "4"]
    assert facts["devices"] == ["a test", "another"]
    assert facts["frontiers"]["train_seconds"] == ["3"]


def test_frontier_holds_runs_that_none_beats_at_the_same_cost_or_less():
    costs = {"a": (1, 0.7), "b": (2, 0.6), "c": (3, 0.8), "d": (3, 0.75), "e": (9, 0.8)}
    runs = [{"key": k, "train_seconds": c, "best_validation_accuracy": a} for k, (c, a) in costs.items()]
    assert cost_frontier(runs, "train_seconds") == ["a", "c"]


def test_comparison_of_a_folder_refuses_two_runs_of_one_key(tmp_path):
    for name, key, seed in (("a", "3", 0), ("b", "4", 0), ("c", "4", 1)):
        write_run_folder(tmp_path / name, key, seed)
    with pytest.raises(InputError, match=r"b and .*c are all runs of 4; the comparison takes one run of each"):
        describe(load_runs(tmp_path))


def test_comparison_of_baselines_alone_is_refused(tmp_path):
    write_run_folder(tmp_path / "a", "0")
    with pytest.raises(InputError, match="none of the eight experiments"):
        describe(load_runs(tmp_path))


def test_robustness_facts_are_keyed_by_condition_amount_and_model():
    row = {"condition": "qwerty", "amount": 0.4, "model": "4", "accuracy": 0.7, "drop": 0.1, "adjusted_p": 0.01}
    row |= {"flip_rate": 0.2, "probability_change": -0.1, "drop_interval": [0.05, 0.15], "share_flipped": 0.3}
    example = {"condition": "qwerty", "amount": 0.4, "probability_before": 0.1, "probability_after": 0.7}
    control = {"condition": "qwerty", "control": "qwerty_removed"}
    facts = robustness_facts(
        {
            "reviews": 10,
            "models": [{"model": "4", "label": "LSTM"}, {"model": "8t seed 1", "label": "MiniLM"}],
            "rows": [row, {**row, "model": "8t seed 1", "adjusted_p": 0.05}],
            "mechanisms": [{"condition": "qwerty", "amount": 0.4, "tokens_added": 0.3}],
            "controls": [{**control, "amount": 0.4, "model": "4", "drop": 0.03, "drop_interval": [0.01, 0.05]}],
            "attacks": [{"model": "4", "reviews": 10, "greedy": [0.8, 0.1]}],
            "examples": [
                {**example, "probability_after": 0.6},
                {**example, "amount": 0.8, "probability_after": 0.9},
                example,
            ],
        }
    )
    assert list(facts["models"]) == ["4", "8t seed 1"]
    assert facts["drops"]["qwerty"]["0.4"]["4"]["low"] == 0.05
    assert facts["drops"]["qwerty"]["0.4"]["4"]["share_flipped"] == 0.3
    assert facts["drops"]["qwerty"]["0.4"]["4"]["significant"]
    assert not facts["drops"]["qwerty"]["0.4"]["8t seed 1"]["significant"]
    assert facts["mechanisms"]["qwerty"]["0.4"]["tokens_added"] == 0.3
    of_control = facts["controls"]["qwerty"]["qwerty_removed"]["0.4"]["4"]
    assert (of_control["low"], of_control["drop"]) == (0.01, 0.03)
    assert facts["attacks"]["4"]["greedy"] == [0.8, 0.1]
    # Wilson's interval of 1 in 10, by hand: (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n) with z = 1.96.
    assert facts["attacks"]["4"]["greedy_interval"] == pytest.approx((0.0179, 0.4042), abs=1e-4)
    assert facts["examples"]["qwerty"] == example


def test_saliency_shares_are_summed_at_the_end_and_between_the_ends():
    assert EDGE_TOKENS == 32
    values = [1.0] * 32 + [0.5] * 64 + [0.25] * 32
    model = {"label": "m", "experiment": 4, "untrained": values, "trained": values[::-1]}
    facts = saliency_facts({"reviews": 3, "models": {"4": model}})
    assert facts["reviews"] == 3
    assert facts["untrained"]["4"] == {"between": 32 / 72, "last": 8 / 72}
    assert facts["trained"]["4"] == {"between": 32 / 72, "last": 32 / 72}
