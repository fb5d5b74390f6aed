"""analysis/logs.py: run folders are read and named, unreadable and ambiguous ones are refused."""

import json

import pytest

from analysis.logs import identify, load_run, load_runs, read_predictions
from config import InputError
from helpers import write_run_folder


def test_runs_are_sorted_by_key_and_seed(tmp_path):
    for name, key, seed in (("a", "8t", 0), ("b", "8", 0), ("c", "4", 1), ("d", "4", 0), ("e", "0", 0)):
        write_run_folder(tmp_path / name, key, seed)
    assert [(run.key, run.summary["seed"]) for run in load_runs(tmp_path)] == [
        ("0", 0),
        ("4", 0),
        ("4", 1),
        ("8", 0),
        ("8t", 0),
    ]


def test_label_is_key_and_architecture_not_the_folder_name(tmp_path):
    run = load_run(write_run_folder(tmp_path / "3_other", "8t", architecture="MiniLM, all encoder layers fine-tuned"))
    assert (run.key, run.label) == ("8t", "8t MiniLM, all encoder layers fine-tuned")
    assert not run.is_assigned
    assert load_run(write_run_folder(tmp_path / "b", "8")).is_assigned
    assert not load_run(write_run_folder(tmp_path / "c", "0")).is_assigned


def test_seeds_of_one_key_get_distinct_names(tmp_path):
    keys = (("4", 0), ("4", 1), ("8t", 0), ("8", 0))
    runs = [load_run(write_run_folder(tmp_path / f"{key}_{seed}", key, seed)) for key, seed in keys]
    named = identify(runs)
    assert list(named) == ["4 seed 0", "4 seed 1", "8t", "8"]
    assert list(named.values()) == runs


def test_two_runs_of_one_key_and_seed_are_refused(tmp_path):
    runs = [load_run(write_run_folder(tmp_path / name, "4")) for name in ("one", "two")]
    with pytest.raises(InputError, match=r"one and .*two are both 4 with seed 0"):
        identify(runs)


def test_an_unreadable_or_missing_log_is_refused_by_name(tmp_path):
    run_dir = write_run_folder(tmp_path / "run", "1")
    (run_dir / "metrics.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"run.metrics\.jsonl: not a log of a complete run"):
        load_runs(tmp_path)
    summary = json.loads((run_dir / "summary.json").read_text())
    del summary["key"]
    (run_dir / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match=r"summary\.json: not a log of a complete run \(no key\)"):
        load_run(run_dir)
    (run_dir / "summary.json").unlink()
    with pytest.raises(InputError, match=r"summary\.json: not a log"):
        load_run(run_dir)
    with pytest.raises(InputError, match="no complete run"):
        load_runs(tmp_path)


def test_predictions_of_another_form_are_refused_by_name(tmp_path):
    path = tmp_path / "test_predictions.csv"
    for content in ("row,label\n1,1\n", "row,label,probability\n", "row,label,probability\n1,x,0.5\n"):
        path.write_text(content)
        with pytest.raises(InputError, match=r"test_predictions\.csv: not the predictions of a run.*row,label,prob"):
            read_predictions(path)
    path.unlink()
    with pytest.raises(InputError, match=r"test_predictions\.csv: not the predictions of a run"):
        read_predictions(path)
