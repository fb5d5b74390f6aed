"""Accuracies over seeds, and against the number of training reviews."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from analysis.comparisons import compare, correct_by_run
from analysis.logs import TEST_DATA_KEYS, Run, by_key, load_runs
from analysis.statistics import crossed_difference
from config import InputError, read_json

# Runs of different sizes are trained on different reviews, and tested on the same.
SIZE_DATA_KEYS = ("source", "test")
TRANSFER = "transfer.json"


def size_facts(folder: Path) -> dict:
    """Accuracy against the number of training reviews.

    Args:
        folder: of `analysis.sizes`; a folder of runs a size.

    Returns:
        `sizes`: the numbers of training reviews, ascending. `accuracies`: by key, a row a size, as of `mean_accuracy`,
        with the mean accuracies on other reviews in `also` and, for all but the linear baseline, its difference from
        that in `to_baseline`. `passes_baseline`: by key the first size from which on its mean is higher than the
        linear baseline's at every size, None where there is none.

    Raises:
        InputError: a run or its accuracies can't be read, or runs of a size were tested on different reviews.
    """
    by_size = {runs[0].summary["data"]["train"]: by_key(runs) for runs in map(load_runs, _size_folders(folder))}
    sizes = sorted(by_size)
    keys = list(dict.fromkeys(key for size in sizes for key in by_size[size]))
    accuracies = {
        key: [{"training_reviews": size, **_size_row(by_size[size], key)} for size in sizes if key in by_size[size]]
        for key in keys
    }
    passes = {key: _first_lasting_lead(accuracies[key], accuracies["0"]) for key in keys} if "0" in keys else {}
    return {"sizes": sizes, "accuracies": accuracies, "passes_baseline": passes}


def mean_accuracy(runs: Sequence[Run], keys: Sequence[str] = TEST_DATA_KEYS) -> dict:
    """Mean test accuracy of the seeds of one experiment, with a 95% interval over seeds and reviews, and each seed's.

    Args:
        runs: that differ in the seed only.
        keys: of a summary's `data`, in which they must agree.
    """
    correct = correct_by_run(runs, keys)
    mean, low, high, _ = crossed_difference(correct, np.zeros((1, correct.shape[1])))
    return {
        "architecture": runs[0].summary["architecture"],
        "experiment": runs[0].summary["experiment"],
        "mean": mean,
        "low": low,
        "high": high,
        "by_seed": correct.mean(axis=1).tolist(),
        "validation_mean": float(np.mean([run.summary["best_validation_accuracy"] for run in runs])),
    }


def _size_folders(folder: Path) -> list[Path]:
    folders = sorted(path for path in folder.glob("*") if path.is_dir())
    if not folders:
        raise InputError(f"{folder}: no folders of runs; `python -m analysis.sizes` makes them")
    return folders


def _size_row(groups: dict[str, list[Run]], key: str) -> dict:
    also = [read_json(run.folder / TRANSFER) for run in groups[key]]
    row = mean_accuracy(groups[key], SIZE_DATA_KEYS)
    row["also"] = {name: float(np.mean([result[name]["accuracy"] for result in also])) for name in also[0]}
    if "0" in groups and row["experiment"]:
        row["to_baseline"] = asdict(compare(groups[key], groups["0"], SIZE_DATA_KEYS))
    return row


def _first_lasting_lead(rows: Sequence[dict], baseline: Sequence[dict]) -> int | None:
    """The first size from which on the mean is the higher one at every size."""
    means = {row["training_reviews"]: row["mean"] for row in baseline}
    first = None
    for row in reversed(rows):
        if row["mean"] <= means[row["training_reviews"]]:
            break
        first = row["training_reviews"]
    return first
