"""analysis/studies.py: accuracies over seeds, by training size and by hyper-parameters, from made-up runs."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from scipy.stats import false_discovery_control

from analysis.figures import accuracy_by_size, sweep_curves
from analysis.logs import load_run, load_runs
from analysis.statistics import share_interval
from analysis.studies import mean_accuracy, size_facts, sweep_facts
from analysis.sweep import choose, finalists, run_folder
from config import InputError
from helpers import write_run_folder

DATA = {"source": "files", "validation": 20, "test": 40}


def make_size(folder, size, wrong):
    """Runs on `size` reviews; `wrong` gives the number of mistakes of each (key, seed)."""
    for (key, seed), number in wrong.items():
        data = DATA | {"train": size, "fingerprint": f"{size} {seed}"}
        run_dir = write_run_folder(folder / str(size) / f"{key}_{seed}", key, seed, range(number), data=data)
        also = {"imdb": {"accuracy": 0.5 + number / 100, "reviews": 9}}
        (run_dir / "transfer.json").write_text(json.dumps(also))


@pytest.fixture
def folder(tmp_path):
    make_size(tmp_path, 4000, {("0", 0): 6, ("0", 1): 6, ("1", 0): 5, ("1", 1): 5, ("4", 0): 3, ("4", 1): 4})
    make_size(tmp_path, 1000, {("0", 0): 8, ("0", 1): 9, ("1", 0): 4, ("1", 1): 5, ("4", 0): 20, ("4", 1): 18})
    make_size(tmp_path, 16000, {("0", 0): 5, ("1", 0): 6, ("4", 0): 2})
    return tmp_path


def test_accuracies_are_means_over_seeds_by_size(folder):
    facts = size_facts(folder)
    assert (facts["sizes"], facts["epochs"]) == ([1000, 4000, 16000], [3, 3, 3])
    assert (facts["validation_reviews"], facts["test_reviews"]) == (20, 40)
    rows = facts["accuracies"]["4"]
    assert [row["training_reviews"] for row in rows] == [1000, 4000, 16000]
    assert [row["mean"] for row in rows] == pytest.approx([1 - 19 / 40, 1 - 3.5 / 40, 1 - 2 / 40])
    assert rows[1]["by_seed"] == pytest.approx([1 - 3 / 40, 1 - 4 / 40])
    assert all(row["low"] < row["mean"] < row["high"] for row in rows)
    assert rows[0]["also"] == {"imdb": pytest.approx(0.69)}


def test_a_model_passes_the_baseline_where_it_stays_above_it(folder):
    facts = size_facts(folder)
    # 1 is above at 1,000 and 4,000, and below at 16,000.
    assert facts["passes_baseline"] == {"0": None, "1": None, "4": 4000}
    difference = facts["accuracies"]["4"][0]["to_baseline"]
    assert difference["difference"] == pytest.approx(-10.5 / 40)
    assert difference["p"] < 0.001
    # Over the six comparisons of 1 and 4 with the linear baseline.
    comparisons = [row["to_baseline"] for key in "14" for row in facts["accuracies"][key]]
    expected = false_discovery_control([comparison["p"] for comparison in comparisons])
    assert [comparison["adjusted_p"] for comparison in comparisons] == pytest.approx(expected)
    assert [comparison["significant"] for comparison in comparisons] == [bool(p < 0.05) for p in expected]
    assert difference["significant"]
    assert difference["num_seeds"] == (2, 2)
    assert "to_baseline" not in facts["accuracies"]["0"][0]


def test_without_the_linear_baseline_nothing_is_compared_with_it(folder):
    for path in folder.glob("*/0_*"):
        path.rename(folder.parent / f"{path.parent.name}_{path.name}")
    facts = size_facts(folder)
    assert facts["passes_baseline"] == {}
    assert "to_baseline" not in facts["accuracies"]["4"][0]


def test_a_variant_is_compared_with_its_experiment_and_the_baselines_at_its_size_in_the_same_family(folder, tmp_path):
    for size in (1000, 4000, 16000):
        make_size(folder, size, {("0w", 0): 2})
    data = DATA | {"train": 4000, "fingerprint": "4000 0"}
    write_run_folder(tmp_path.parent / f"{tmp_path.name} tried" / "4r", "4r", 0, range(13), data=data)
    facts = size_facts(folder, load_runs(tmp_path.parent / f"{tmp_path.name} tried"))
    row = facts["tried"]["4r"]
    assert (row["training_reviews"], row["mean"]) == (4000, pytest.approx(1 - 13 / 40))
    assert row["to_experiment"]["difference"] == pytest.approx(-9.5 / 40)
    assert row["to_baseline"]["difference"] == pytest.approx(-7 / 40)
    assert row["to_whole_baseline"]["difference"] == pytest.approx(-11 / 40)
    comparisons = [row["to_baseline"] for key in "14" for row in facts["accuracies"][key]]
    comparisons += [row[name] for name in ("to_baseline", "to_whole_baseline", "to_experiment")]
    expected = false_discovery_control([comparison["p"] for comparison in comparisons])
    assert [comparison["adjusted_p"] for comparison in comparisons] == pytest.approx(expected)


def test_a_variant_on_another_number_of_reviews_is_refused(folder, tmp_path):
    other = tmp_path.parent / f"{tmp_path.name} tried"
    write_run_folder(other / "4r", "4r", 0, data=DATA | {"train": 2000})
    with pytest.raises(InputError, match="4r: trained on 2000 reviews; expected .* sizes: 1000, 4000, 16000$"):
        size_facts(folder, load_runs(other))


def test_a_model_without_a_size_is_named(folder):
    (folder / "4000" / "4_0").rename(folder.parent / "4_0")
    (folder / "4000" / "4_1").rename(folder.parent / "4_1")
    with pytest.raises(InputError, match=f"^{folder}: no run of 4 on 4000 reviews; `python -m analysis.sizes` goes on"):
        size_facts(folder)


def test_interval_of_a_single_run_is_that_of_its_reviews(tmp_path):
    write_run_folder(tmp_path / "a", "1", 0, range(300), num_reviews=2000)
    facts = mean_accuracy(load_runs(tmp_path))
    assert facts["mean"] == pytest.approx(0.85)
    assert (facts["low"], facts["high"]) == pytest.approx(share_interval(1700, 2000), abs=1e-3)


def test_interval_of_an_accuracy_stays_between_0_and_1(tmp_path):
    # Two seeds that differ this much say nothing of their mean.
    write_run_folder(tmp_path / "a", "1", 0, range(20))
    write_run_folder(tmp_path / "b", "1", 1, range(2))
    facts = mean_accuracy(load_runs(tmp_path))
    assert facts["mean"] == pytest.approx(1 - 11 / 40)
    assert (facts["low"], facts["high"]) == (0, 1)


def test_a_folder_without_sizes_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: no folders of runs; `python -m analysis.sizes` makes them"):
        size_facts(tmp_path)


def test_figure_has_a_panel_for_each_set_of_reviews(folder):
    figure = accuracy_by_size(size_facts(folder))
    assert [axis.get_title() for axis in figure.axes] == ["On test reviews", "On imdb"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        f"{key} architecture {key}" for key in ("0", "1", "4")
    ]
    assert figure.axes[1].lines[2].get_ydata() == pytest.approx([69, 53.5, 52])
    plt.close(figure)


@pytest.fixture
def sweep(tmp_path):
    """Trials of experiment 4: two rates in two batch sizes, by two seeds; 0.003 in batches of 64 was best."""
    rows = []
    for rate, size, accuracies in ((1e-3, 32, (0.6, 0.7)), (3e-3, 32, (0.5, 0.6)), (3e-3, 64, (0.8, 0.7))):
        for seed, accuracy in enumerate(accuracies):
            folder = run_folder("4_lstm_attention", (rate, size), seed, tmp_path)
            write_run_folder(folder, "4", seed, best_validation_accuracy=accuracy)
        row = {"experiment": "4_lstm_attention", "learning_rate": rate, "batch_size": size, "chosen": size == 64}
        rows.append({**row, "best_validation_accuracy": accuracies})
    final = {"experiment": "4_lstm_attention", "learning_rate": 1e-3, "batch_size": 32, "chosen": True}
    final["best_validation_accuracy"] = [0.9]
    (tmp_path / "trials.json").write_text(
        json.dumps({"seeds": [0, 1], "full_seed": 1, "trials": rows, "finals": [final]})
    )
    return tmp_path


def test_trials_of_a_sweep_are_listed_by_experiment_with_their_means(sweep):
    facts = sweep_facts(sweep)
    assert (facts["seeds"], facts["training_reviews"], facts["validation_reviews"]) == ([0, 1], 2000, 20)
    assert list(facts["trials"]) == ["4"]
    rows = facts["trials"]["4"]
    assert [row["mean"] for row in rows] == pytest.approx([0.65, 0.55, 0.75])
    assert [row["chosen"] for row in rows] == [False, False, True]
    assert {row["architecture"] for row in rows} == {"architecture 4"}
    assert [(row["learning_rate"], row["chosen"]) for row in facts["finals"]["4"]] == [(1e-3, True)]


def test_curves_of_a_sweep_are_those_of_the_chosen_batch_size(sweep):
    figure = sweep_curves(sweep_facts(sweep), sweep)
    (axis,) = (axis for axis in figure.axes if axis.get_title())
    assert axis.get_title() == "4 architecture 4\nbatches of 64"
    # Two seeds and their mean, of one learning rate.
    assert [line.get_ydata().tolist() for line in axis.lines] == [pytest.approx([70, 80, 75])] * 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0.001", "0.003"]
    plt.close(figure)


def test_committed_choices_are_those_of_the_rule():
    """`trials.json` holds what the trials' own logs say, and chooses by `sweep.choose`."""
    folder = Path(__file__).resolve().parents[2] / "logs" / "reference" / "sweep"
    log = json.loads((folder / "trials.json").read_text())
    accuracies = {}
    for row in log["trials"]:
        setting = (row["learning_rate"], row["batch_size"])
        runs = [load_run(run_folder(row["experiment"], setting, seed, folder)) for seed in log["seeds"]]
        for run in runs:
            assert run.summary["best_validation_accuracy"] == max(line["validation_accuracy"] for line in run.metrics)
        assert [run.summary["best_validation_accuracy"] for run in runs] == row["best_validation_accuracy"]
        accuracies.setdefault(row["experiment"], {})[setting] = row["best_validation_accuracy"]
    chosen = {row["experiment"]: (row["learning_rate"], row["batch_size"]) for row in log["trials"] if row["chosen"]}
    assert chosen == {experiment: choose(settings) for experiment, settings in accuracies.items()}
    for experiment, (rate, _) in chosen.items():
        rates = {rate for rate, _ in accuracies[experiment]}
        assert min(rates) < rate < max(rates), f"{experiment}: the best rate is at the grid's edge"
    finals = {}
    for row in log["finals"]:
        setting = (row["learning_rate"], row["batch_size"])
        run = load_run(run_folder(row["experiment"], setting, log["full_seed"], folder / "full"))
        assert [run.summary["best_validation_accuracy"]] == row["best_validation_accuracy"]
        finals.setdefault(row["experiment"], {})[setting] = row["best_validation_accuracy"]
    assert finals.keys() == accuracies.keys()
    for experiment, settings in finals.items():
        assert list(settings) == finalists(accuracies[experiment])
