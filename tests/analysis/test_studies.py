"""analysis/studies.py: accuracies over seeds and by training size, from made-up runs with counted mistakes."""

import json

import matplotlib.pyplot as plt
import pytest

from analysis.figures import accuracy_by_size
from analysis.logs import load_runs
from analysis.statistics import share_interval
from analysis.studies import mean_accuracy, size_facts
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
    assert facts["sizes"] == [1000, 4000, 16000]
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
    assert difference["num_seeds"] == (2, 2)
    assert "to_baseline" not in facts["accuracies"]["0"][0]


def test_without_the_linear_baseline_nothing_is_compared_with_it(folder):
    for path in folder.glob("*/0_*"):
        path.rename(folder.parent / f"{path.parent.name}_{path.name}")
    facts = size_facts(folder)
    assert facts["passes_baseline"] == {}
    assert "to_baseline" not in facts["accuracies"]["4"][0]


def test_interval_of_a_single_run_is_that_of_its_reviews(tmp_path):
    write_run_folder(tmp_path / "a", "1", 0, range(300), num_reviews=2000)
    facts = mean_accuracy(load_runs(tmp_path))
    assert facts["mean"] == pytest.approx(0.85)
    assert (facts["low"], facts["high"]) == pytest.approx(share_interval(1700, 2000), abs=1e-3)


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
