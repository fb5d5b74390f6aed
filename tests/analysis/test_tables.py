"""Table and curves from logs alone."""

import json

import pytest

from analysis.facts import load_runs
from analysis.figures import learning_curves
from analysis.report import main, results_table, table_caption
from config import InputError


def write_run(folder, experiment: int, validation: float, seed: int = 0) -> None:
    """A run folder as train.py leaves it, with made-up figures."""
    folder.mkdir(parents=True)
    summary = {
        "experiment": experiment,
        "name": f"model{experiment}",
        "architecture": f"architecture {experiment}",
        "seed": seed,
        "parameters": 8_867_330,
        "train_accuracy": 0.91,
        "best_validation_accuracy": validation,
        "test_accuracy": 0.5 + experiment / 100,
        "train_seconds": 12.6,
        "evaluation_seconds": 3.4,
        "steady_memory_bytes": 3 * 2**29,
        "memory": {"kind": "process_resident"},
        "device": "a test",
        "data": {"source": "files", "train": 2000, "validation": 20, "test": 22},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [
        {"step": step, "train_loss": 0.7 - step / 100, "validation_loss": 0.6, "validation_accuracy": validation}
        for step in (5, 10)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def logs(tmp_path):
    for experiment, validation in ((3, 0.75), (1, 0.8), (2, 0.7)):
        write_run(tmp_path / f"run{experiment}", experiment, validation)
    return tmp_path


def test_the_table_is_sorted_by_experiment_with_the_best_in_bold(logs):
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in results_table(load_runs(logs)).splitlines()
    ]
    assert [row[0] for row in rows[2:]] == ["**1**", "**2**", "**3**"]
    best = rows[0].index("best val. acc. (%)")
    assert [row[best] for row in rows[2:]] == ["**80.0**", "70.0", "75.0"]
    row = dict(zip(rows[0], rows[2], strict=True))
    assert row["test acc. (%)"] == "51.0"
    assert row["train acc. (%)"] == "91.0"
    assert row["parameters (M)"] == "8.9"
    assert row["train time (s)"] == "13"
    assert row["memory (GiB)"] == "1.50"


def test_the_caption_names_sizes_and_machine(logs):
    caption = table_caption(load_runs(logs))
    assert "2,000" in caption
    assert "a test" in caption
    assert "resident memory" in caption


def test_curves_show_every_run_with_labelled_axes(logs):
    figure = learning_curves(load_runs(logs))
    assert len(figure.axes) == 3
    for axis in figure.axes:
        assert axis.get_xlabel()
        assert axis.get_ylabel()
        assert len(axis.lines) == 3
    assert list(figure.axes[0].lines[0].get_ydata()) == pytest.approx([0.65, 0.6])
    assert list(figure.axes[2].lines[0].get_ydata()) == pytest.approx([80, 80])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1 model1", "2 model2", "3 model3"]


def test_the_command_prints_the_table_and_writes_the_curves(logs, capsys):
    assert main([str(logs)]) == 0
    assert "**80.0**" in capsys.readouterr().out
    assert (logs / "learning_curves.png").stat().st_size > 10_000
    assert (logs / "learning_curves.pdf").read_bytes().startswith(b"%PDF")


def test_a_folder_without_runs_and_a_damaged_log_are_refused(logs, tmp_path_factory, capsys):
    empty = tmp_path_factory.mktemp("empty")
    assert main([str(empty)]) == 2
    assert "no complete run" in capsys.readouterr().err
    (logs / "run2" / "metrics.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"run2.metrics\.jsonl: not readable as a log"):
        load_runs(logs)
