"""analysis/report.py on a folder of runs: the table and the learning curves."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from analysis import figures
from analysis.figures import ACCURACY_LINES, curves_by_experiment, learning_curves
from analysis.logs import Run, load_runs
from analysis.report import main, results_latex, results_table, table_caption
from config import InputError
from helpers import write_run_folder


@pytest.fixture
def logs(tmp_path):
    for experiment, validation in ((3, 0.75), (1, 0.8), (2, 0.7)):
        write_run_folder(tmp_path / f"run{experiment}", str(experiment), best_validation_accuracy=validation)
    return tmp_path


def rows_of(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_table_is_sorted_by_experiment_with_the_best_validation_accuracy_in_bold(logs):
    rows = rows_of(results_table(load_runs(logs)))
    assert [row[0] for row in rows[2:]] == ["**1**", "**2**", "**3**"]
    best = rows[0].index("best val. acc. (%)")
    assert [row[best] for row in rows[2:]] == ["**80.0**", "70.0", "75.0"]
    row = dict(zip(rows[0], rows[2], strict=True))
    assert row["model"] == "architecture 1"
    assert row["test acc. (%)"] == "51.0"
    assert row["train acc. (%)"] == "91.0"
    assert row["parameters (M)"] == "8.9"
    assert row["train time (s)"] == "13"
    assert row["memory (GiB)"] == "1.50"


def test_further_seeds_enter_the_table_as_means_with_their_standard_deviation(logs):
    accuracies = {"best_validation_accuracy": 0.76, "test_accuracy": 0.53, "train_seconds": 99.0}
    write_run_folder(logs / "seeds" / "a", "2", seed=1, **accuracies)
    seeds = load_runs(logs / "seeds")
    rows = rows_of(results_table(load_runs(logs), seeds))
    by_name = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    assert list(by_name) == ["**1**", "**2**", "**3**"]
    assert by_name["**2**"]["best val. acc. (%)"] == "73.0 ± 4.2"
    assert by_name["**2**"]["test acc. (%)"] == "52.5 ± 0.7"
    assert by_name["**2**"]["train time (s)"] == "13"
    assert by_name["**1**"]["best val. acc. (%)"] == "**80.0**"
    assert "means over the seeds ± their standard deviation" in table_caption(load_runs(logs), seeds)
    assert "standard deviation" not in table_caption(load_runs(logs))
    # A running accuracy does not enter a mean with those on a fixed sample.
    assert by_name["**2**"]["train acc. (%)"] == "91.0 ± 0.0"
    write_run_folder(logs / "seeds" / "c", "2", seed=2, train_sample_accuracy=0.88, **accuracies)
    table = results_table(load_runs(logs), load_runs(logs / "seeds"))
    assert rows_of(table)[3][2] == "88.0"
    # The mean decides, not the first seed.
    write_run_folder(logs / "seeds" / "b", "1", seed=1, best_validation_accuracy=0.6)
    rows = rows_of(results_table(load_runs(logs), load_runs(logs / "seeds")))
    assert [row[3] for row in rows[2:]] == ["70.0 ± 14.1", "74.0 ± 3.5", "**75.0**"]
    latex = results_latex(load_runs(logs), load_runs(logs / "seeds"))
    assert r"74.0 $\pm$ 3.5" in latex
    assert r"\textbf{75.0}" in latex


def test_caption_names_data_machine_and_kind_of_memory(logs):
    caption = table_caption(load_runs(logs))
    assert "2,000" in caption
    assert "a test" in caption
    assert "resident memory" in caption
    assert "(files), on a test." in caption


def test_caption_names_the_machine_of_the_costs_where_seeds_ran_on_another(logs):
    write_run_folder(logs / "seeds" / "a", "1", seed=1, device="another")
    caption = table_caption(load_runs(logs), load_runs(logs / "seeds"))
    assert "all else: of seed 0, on a test." in caption
    assert "another" not in caption


def test_learning_curves_show_every_run_with_labelled_axes(logs):
    figure = learning_curves(load_runs(logs))
    assert len(figure.axes) == 3
    for axis in figure.axes:
        assert axis.get_xlabel()
        assert axis.get_ylabel()
        assert len(axis.lines) == 3
    assert list(figure.axes[0].lines[0].get_ydata()) == pytest.approx([0.65, 0.6, 0.55])
    assert list(figure.axes[2].lines[0].get_ydata()) == pytest.approx([70, 80, 75])
    assert legend_of(figure) == ["1 architecture 1", "2 architecture 2", "3 architecture 3"]
    plt.close(figure)


def test_curves_leave_out_an_evaluation_that_follows_another_at_once():
    steps = (250, 500, 631, 750, 1000, 1250, 1262)
    kept = figures._evenly_spaced([{"step": step} for step in steps])
    assert [line["step"] for line in kept] == [250, 500, 631, 750, 1000, 1250]
    assert figures._evenly_spaced([{"step": 4}]) == [{"step": 4}]


def test_curves_by_experiment_have_a_panel_each_with_thin_seeds_and_a_thick_mean():
    def line(step, accuracy):
        return {"step": step, "validation_accuracy": accuracy, "train_sample_accuracy": None}

    def make(key, seed, accuracies):
        summary = {"key": key, "experiment": int(key), "architecture": f"model {key}", "seed": seed}
        return Run(Path(), summary, [line(100 * (i + 1), value) for i, value in enumerate(accuracies)])

    runs = [make("1", 0, (0.5, 0.7, 0.8)), make("1", 1, (0.6, 0.9)), make("3", 0, (0.5, 0.6))]
    figure = curves_by_experiment(runs, ACCURACY_LINES, "accuracy (%)", 100, level=88)
    panels = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title() for axis in panels] == ["1 model 1", "3 model 3"]
    assert panels[0].get_ylabel() == "accuracy (%)"
    assert panels[0].get_xlabel() == "step"
    drawn = [(plot.get_linewidth(), plot.get_xydata().tolist()) for plot in panels[0].lines if len(plot.get_xydata())]
    assert [width for width, _ in drawn] == [0.7, 0.7, 2, 1.2]
    assert drawn[0][1] == [[100, 50], [200, 70], [300, 80]]
    # The mean where both have an evaluation.
    assert drawn[2][1] == [[100, pytest.approx(55)], [200, pytest.approx(80)]]
    assert drawn[3][1] == [[0, 88], [1, 88]]
    # No run's log has the metric of the other line.
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["validation"]
    plt.close(figure)


def test_curves_draw_the_mean_of_the_seeds_that_have_a_training_sample():
    def make(seed, sample, accuracy):
        summary = {"key": "1", "experiment": 1, "architecture": "model", "seed": seed}
        metrics = {"validation_accuracy": accuracy, "train_sample_accuracy": sample}
        return Run(Path(), summary, [{"step": step, **metrics} for step in (100, 200)])

    runs = [make(0, 0.9, 0.6), make(1, 0.8, 0.7), make(2, None, 0.5)]
    figure = curves_by_experiment(runs, ACCURACY_LINES, "accuracy (%)", 100)
    means = {plot.get_linestyle(): plot.get_ydata() for plot in figure.axes[0].lines if plot.get_linewidth() == 2}
    assert list(means["--"]) == pytest.approx([85, 85])
    assert list(means["-"]) == pytest.approx([60, 60])
    plt.close(figure)


def test_learning_curves_show_the_linear_baseline_as_a_line_of_its_own(logs):
    write_run_folder(logs / "baseline", "0", best_validation_accuracy=0.9)
    figure = learning_curves(load_runs(logs))
    assert [len(axis.lines) for axis in figure.axes] == [3, 3, 4]
    assert list(figure.axes[2].lines[3].get_ydata()) == [90, 90]
    assert legend_of(figure)[-1] == "0 architecture 0"
    plt.close(figure)


def test_two_seeds_of_one_experiment_both_appear(logs, capsys):
    write_run_folder(logs / "another", "2", seed=1, best_validation_accuracy=0.71)
    assert main([str(logs)]) == 0
    printed = rows_of(capsys.readouterr().out)
    accuracies = {row[0]: row[3] for row in printed if row[0].startswith("**")}
    assert accuracies == {"**1**": "**80.0**", "**2 seed 0**": "70.0", "**2 seed 1**": "71.0", "**3**": "75.0"}
    figure = learning_curves(load_runs(logs))
    assert legend_of(figure)[1:3] == ["2 seed 0 architecture 2", "2 seed 1 architecture 2"]
    one, other = figure.axes[0].lines[1:3]
    assert one.get_color() == other.get_color()
    assert one.get_linestyle() != other.get_linestyle()
    plt.close(figure)


def test_two_runs_of_one_key_and_seed_are_refused(logs, capsys):
    write_run_folder(logs / "another", "2")
    assert main([str(logs)]) == 2
    assert "are both 2 with seed 0" in capsys.readouterr().err
    assert not (logs / "learning_curves.png").exists()


def test_report_command_prints_the_table_and_writes_the_curves(logs, capsys):
    assert main([str(logs)]) == 0
    assert "**80.0**" in capsys.readouterr().out
    assert (logs / "learning_curves.png").stat().st_size > 10_000
    assert (logs / "learning_curves.pdf").read_bytes().startswith(b"%PDF")


def test_report_command_refuses_a_folder_without_runs(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no complete run" in capsys.readouterr().err


OTHER_DATA = {
    "source": {"source": "imdb", "train": 2000, "validation": 20, "test": 40},
    "fingerprint": {"source": "files", "train": 2000, "validation": 20, "test": 40, "fingerprint": "a1b2"},
    "train": {"source": "files", "train": 500, "validation": 20, "test": 40},
}


@pytest.mark.parametrize("key", OTHER_DATA)
def test_runs_on_different_data_have_a_table_for_each(logs, capsys, key):
    write_run_folder(logs / "z4", "4", best_validation_accuracy=0.99, data=OTHER_DATA[key])
    write_run_folder(logs / "z1", "1", best_validation_accuracy=0.6, data=OTHER_DATA[key])
    assert main([str(logs)]) == 0
    printed = capsys.readouterr().out
    assert "on 2 different sets of reviews, which can't be compared" in printed
    accuracies = [(row[0], row[3]) for row in rows_of(printed) if row[0].startswith("**")]
    first, second = accuracies[:3], accuracies[3:]
    # Each table has its own best in bold, and a key may stand in both.
    assert first == [("**1**", "**80.0**"), ("**2**", "70.0"), ("**3**", "75.0")]
    assert second == [("**1**", "60.0"), ("**4**", "**99.0**")]
    assert printed.count("Trained on") == 2
    assert {path.name for path in logs.glob("*.png")} == {"learning_curves_1.png", "learning_curves_2.png"}


@pytest.mark.parametrize("key", OTHER_DATA)
def test_runs_on_different_data_are_refused_in_one_table(logs, key):
    write_run_folder(logs / "other", "4", data=OTHER_DATA[key])
    with pytest.raises(InputError, match=rf"run1 and .*other are on different data \({key}.*can't be compared"):
        results_table(load_runs(logs))
