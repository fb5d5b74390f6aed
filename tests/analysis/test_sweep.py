"""The sweep: its rule, its grid, and a small one from the first trial to the choice."""

import json
from pathlib import Path

import pytest

from analysis import sweep
from analysis.sweep import choose
from config import InputError, load_config
from helpers import small_config
from train import run
from training import jobs


def test_highest_mean_is_chosen_and_a_tie_goes_to_the_lower_rate_then_the_smaller_batch():
    assert choose({(1e-3, 32): [0.8, 0.9], (3e-3, 32): [0.9, 0.9], (1e-2, 32): [0.99, 0.5]}) == (3e-3, 32)
    assert choose({(3e-3, 32): [0.8, 0.9], (1e-3, 64): [0.85, 0.85], (1e-3, 32): [0.9, 0.8]}) == (1e-3, 32)


def test_finalists_are_the_best_setting_and_the_best_with_a_lower_rate():
    accuracies = {(1e-3, 32): [0.8], (1e-3, 64): [0.82], (3e-3, 32): [0.9], (3e-3, 64): [0.85], (1e-2, 32): [0.88]}
    assert sweep.finalists(accuracies) == [(3e-3, 32), (1e-3, 64)]


def test_full_runs_have_the_epochs_of_their_kind():
    paths = [sweep._experiment_file(name) for name in ("4", "8")]
    four, eight = (
        load_config(words[0], words[1:]) for words in (sweep._full_words(p, (1e-3, 64), Path("out")) for p in paths)
    )
    assert (four.train.epochs, eight.train.epochs) == (3, 2)
    assert (four.train.batch_size, four.train.eval_steps, four.train.learning_rate) == (64, 125, 1e-3)
    assert four.run_dir == "out/full/4_lstm_attention_lr0.001_b64_seed1"


@pytest.mark.parametrize(("rate", "added"), [(3e-4, 1e-4), (1e-3, None), (3e-3, None), (1e-2, 3e-2)])
def test_grid_is_extended_where_the_best_stands_at_its_edge(rate, added):
    assert sweep._beyond(rate, sweep.LEARNING_RATES) == added


def test_unknown_experiment_is_refused():
    with pytest.raises(InputError, match="--experiments 9: no such experiment"):
        sweep.sweep(["9"], Path("unused"))


def test_sweep_runs_extends_writes_and_resumes(monkeypatch, tmp_path, review_files):
    small = small_config("1_lstm", review_files, tmp_path)
    data = [
        f"data.{name}={getattr(small.data, name)}" for name in ("source", "train", "validation", "test", "cache_dir")
    ]
    sizes = ["data.max_length=24", "model.embedding_size=8", "model.hidden_size=8"]
    monkeypatch.setattr(sweep, "TRIAL", (*data, *sizes, "train.epochs=1", "device=cpu"))
    monkeypatch.setattr(sweep, "BATCH_SIZES", (32,))
    monkeypatch.setattr(sweep, "SEEDS", (0,))
    monkeypatch.setattr(sweep, "LEARNING_RATES", (1e-3, 3e-3, 1e-2))
    monkeypatch.setattr(sweep, "FULL", (*sweep.TRIAL, f"seed={sweep.FULL_SEED}"))
    # The tiny runs say nothing about rates: let 0.001 win, of two finalists the lower one.
    monkeypatch.setattr(sweep, "choose", lambda accuracies: (1e-3, 32) if len(accuracies) > 2 else min(accuracies))
    asked = []

    def run_here(words, configs, num_jobs):
        asked.append(len(words))
        for (file, *overrides), config in zip(words, configs, strict=True):
            assert load_config(file, overrides) == config
            run(config)

    monkeypatch.setattr(jobs, "run_at_a_time", run_here)
    sweep.sweep(["1"], tmp_path)
    # Three rates, then one more, then two finalists.
    assert asked == [3, 1, 2]
    written = json.loads((tmp_path / "trials.json").read_text())
    assert [row["learning_rate"] for row in written["trials"]] == [3e-4, 1e-3, 3e-3, 1e-2]
    assert [row["chosen"] for row in written["trials"]] == [False, True, False, False]
    for row in written["trials"]:
        folders = [tmp_path / f"1_lstm_lr{row['learning_rate']:g}_b32_seed{seed}" for seed in (0,)]
        summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
        assert not any((folder / "best").exists() or (folder / "checkpoints").exists() for folder in folders)
        assert row["best_validation_accuracy"] == [summary["best_validation_accuracy"] for summary in summaries]
    finals = [(row["learning_rate"], row["chosen"]) for row in written["finals"]]
    assert finals == [(1e-3, False), (3e-4, True)]
    final = json.loads((tmp_path / "full" / "1_lstm_lr0.0003_b32_seed1" / "summary.json").read_text())
    assert written["finals"][1]["best_validation_accuracy"] == [final["best_validation_accuracy"]]
    # All trials are there: nothing is run again.
    sweep.sweep(["1"], tmp_path)
    assert asked == [3, 1, 2]
