"""analysis/sizes.py: small runs of two sizes, their accuracies on other reviews, and what is kept."""

import json
from pathlib import Path

import numpy as np
import pytest

from analysis import sizes
from analysis.logs import load_run
from data import read_file
from helpers import make_texts, write_csv
from predict import predict
from train import run
from training import jobs


@pytest.fixture
def arguments(monkeypatch, tmp_path, review_files):
    """Of the command: a linear baseline and an LSTM, small, on 16 and all training reviews."""
    monkeypatch.setattr(sizes, "EPOCHS", {16: 2, None: 1})
    monkeypatch.setattr(sizes, "SEEDS", {16: (0, 1), None: (0,)})
    monkeypatch.setattr(
        sizes, "_imdb_test_reviews", lambda: read_file(write_csv(tmp_path / "i.csv", *make_texts(9, 7)))
    )
    write_csv(tmp_path / "other.csv", *make_texts(10, 5))
    files = [f"data.{name}={review_files / name}.csv" for name in ("train", "validation", "test")]
    small = ["data.max_length=24", "model.embedding_size=8", "model.hidden_size=8", "device=cpu"]
    settings = [*files, *small, f"data.cache_dir={tmp_path / 'cache'}"]
    also = ["--also", str(tmp_path / "other.csv"), str(review_files / "test.csv"), "--experiments", "0", "1"]
    return [*settings, *also, "--output", str(tmp_path / "sizes")]


def test_sizes_are_trained_and_tested_on_other_reviews(arguments, monkeypatch, tmp_path):
    ran, predicted, write = [], {}, sizes._write_transfer

    def run_here(words, configs, num_jobs):
        ran.append([config.run_dir for config in configs])
        for config in configs:
            run(config)

    def written(folder: Path, others: dict) -> None:
        write(folder, others)
        predicted[folder] = predict(folder, list(others["other.csv"]["text"]))

    monkeypatch.setattr(jobs, "run_at_a_time", run_here)
    monkeypatch.setattr(sizes, "_write_transfer", written)
    assert sizes.main(arguments) == 0
    folder = tmp_path / "sizes"
    # Every size by the first seed before the next one.
    expected = [[f"{folder}/{name}"] for name in ("16/1_lstm_seed0", "all/1_lstm_seed0", "16/1_lstm_seed1")]
    assert ran == expected
    labels = np.array(make_texts(10, 5)[1])
    for path in (Path(name) for names in expected for name in names):
        summary = load_run(path).summary
        assert summary["data"]["train"] == (16 if path.parent.name == "16" else 48)
        assert summary["profile"] == "yelp_sample"
        assert not (path / "best").exists()
        accuracies = json.loads((path / "transfer.json").read_text())
        assert list(accuracies) == ["other.csv", "test.csv", "imdb"]
        assert accuracies["test.csv"]["accuracy"] == summary["test_accuracy"]
        assert accuracies["other.csv"]["accuracy"] == ((predicted[path] >= 0.5) == labels).mean()
    for name in (
        "16/0_linear_baseline_seed0",
        "16/0_linear_baseline_seed1",
        "all/0w_linear_baseline_whole_reviews_seed0",
    ):
        accuracies = json.loads((folder / name / "transfer.json").read_text())
        assert list(accuracies) == ["other.csv", "test.csv", "imdb"]
        # The test reviews as other ones.
        assert accuracies["test.csv"]["accuracy"] == load_run(folder / name).summary["test_accuracy"]
    # Another seed is trained on other reviews.
    one, other = (load_run(folder / "16" / f"1_lstm_seed{seed}").summary["data"] for seed in (0, 1))
    assert one["fingerprint"] != other["fingerprint"]
    # All is there: nothing is run again.
    assert sizes.main(arguments) == 0
    assert ran == expected


def test_unknown_experiment_is_refused(arguments, capsys):
    assert sizes.main([*arguments, "--experiments", "9"]) == 2
    assert "--experiments 9: no such experiment; there are 0 (the linear baseline) to 8" in capsys.readouterr().err


def test_other_reviews_that_can_not_be_read_are_refused_before_anything_is_trained(arguments, capsys, monkeypatch):
    monkeypatch.setattr(sizes, "run_missing", lambda *_: pytest.fail("something was trained"))
    assert sizes.main([*arguments, "--also", "gone.csv"]) == 2
    assert "gone.csv: no such file" in capsys.readouterr().err
