"""What many runs say together: accuracy against the number of training reviews, and variants of the eight."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.comparisons import correct_by_run, seed_difference
from analysis.logs import Run, load_runs
from analysis.statistics import SIGNIFICANCE_LEVEL, crossed_difference
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


def variant_facts(runs: Sequence[Run], pairs: Sequence[tuple[str, str]]) -> dict:
    """Variants against what they vary.

    Args:
        runs: with all their seeds, on the same reviews.
        pairs: (variant, reference) by key; those that are not among the runs are left out.

    Returns:
        `accuracies`: by key, as of `mean_accuracy`. `differences`: `"2m-2"` -> variant minus reference, as of
        `seed_difference`.
    """
    groups = by_key(runs)
    return {
        "accuracies": {key: mean_accuracy(group) for key, group in groups.items()},
        "differences": {
            f"{first}-{second}": seed_difference(groups[first], groups[second])
            for first, second in pairs
            if first in groups and second in groups
        },
    }


def by_key(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The seeds of each experiment or variant."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.key, []).append(run)
    return groups


def mean_accuracy(runs: Sequence[Run], keys: Sequence[str] = SIZE_DATA_KEYS) -> dict:
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
    row = mean_accuracy(groups[key])
    row["also"] = {name: float(np.mean([result[name]["accuracy"] for result in also])) for name in also[0]}
    if "0" in groups and row["experiment"]:
        difference = seed_difference(groups[key], groups["0"], SIZE_DATA_KEYS)
        row["to_baseline"] = difference | {"significant": difference["p"] < SIGNIFICANCE_LEVEL}
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
