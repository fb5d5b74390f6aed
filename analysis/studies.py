"""Accuracies over seeds, against the number of training reviews, and under the hyper-parameters that were tried."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from analysis.comparisons import adjust, compare, correct_by_run
from analysis.logs import TEST_DATA_KEYS, TEST_SPLIT_KEYS, Run, by_key, load_run, load_runs
from analysis.statistics import crossed_difference
from analysis.sweep import run_folder
from config import InputError, read_json

TRANSFER = "transfer.json"
# Comparisons of a row with the linear baseline, that on whole reviews, and the experiment that a variant belongs to.
DIFFERENCES = ("to_baseline", "to_whole_baseline", "to_experiment")


def size_facts(folder: Path, tried: Sequence[Run] = ()) -> dict:
    """Accuracy against the number of training reviews.

    Args:
        folder: of `analysis.sizes`; a folder of runs a size.
        tried: further runs, each a variant of an experiment, on as many reviews as one of the sizes.

    Returns:
        `sizes`: the numbers of training reviews, ascending, and `epochs` of each. `validation_reviews` and
        `test_reviews`: how many. `accuracies`: by key, a row a size, as of `mean_accuracy`, with the mean accuracies on
        other reviews in `also` and, for all but the linear baseline, its difference from that in `to_baseline` (as of
        `compare`; p is adjusted over all of them). `tried`: by key of a variant its row, with the differences from its
        experiment and from the linear baseline on whole reviews in `to_experiment` and `to_whole_baseline`.
        `passes_baseline`: by key the first size from which on its mean is higher than the linear baseline's at every
        size, None where there is none.

    Raises:
        InputError: a run or its accuracies can't be read, runs of a size were tested on different reviews, a model was
            not trained on each size, or a variant on none of them.
    """
    by_size = {runs[0].summary["data"]["train"]: by_key(runs) for runs in map(load_runs, _size_folders(folder))}
    sizes = sorted(by_size)
    keys = list(dict.fromkeys(key for size in sizes for key in by_size[size]))
    _check_complete(by_size, keys, folder)
    accuracies = {key: [{"training_reviews": size, **_size_row(by_size[size], key)} for size in sizes] for key in keys}
    variants = {key: _tried_row(group, by_size) for key, group in by_key(tried).items()}
    _adjust_together([row for rows in accuracies.values() for row in rows] + list(variants.values()))
    passes = {key: _first_lasting_lead(accuracies[key], accuracies["0"]) for key in keys} if "0" in keys else {}
    # Of the last, since the linear baseline, the first, has no epochs of training.
    summaries = [by_size[size][keys[-1]][0].summary for size in sizes]
    return {
        "sizes": sizes,
        "epochs": [summary["epochs"] for summary in summaries],
        "validation_reviews": summaries[0]["data"]["validation"],
        "test_reviews": summaries[0]["data"]["test"],
        "accuracies": accuracies,
        "tried": variants,
        "passes_baseline": passes,
    }


def mean_accuracy(runs: Sequence[Run], keys: Sequence[str] = TEST_DATA_KEYS) -> dict:
    """Mean test accuracy of the seeds of one experiment, with a 95% interval over seeds and reviews; each seed's, and
    their standard deviation (None of a single one). The interval stays within 0 and 1.

    Args:
        runs: that differ in the seed only.
        keys: of a summary's `data`, in which they must agree.
    """
    correct = correct_by_run(runs, keys)
    mean, low, high, _ = crossed_difference(correct, np.zeros((1, correct.shape[1])))
    by_seed = correct.mean(axis=1)
    return {
        "architecture": runs[0].summary["architecture"],
        "experiment": runs[0].summary["experiment"],
        "seeds": [run.summary["seed"] for run in runs],
        "mean": mean,
        "low": max(low, 0.0),
        "high": min(high, 1.0),
        "std": float(by_seed.std(ddof=1)) if len(runs) > 1 else None,
        "by_seed": by_seed.tolist(),
        "validation_by_seed": [run.summary["best_validation_accuracy"] for run in runs],
        "validation_mean": float(np.mean([run.summary["best_validation_accuracy"] for run in runs])),
    }


def sweep_facts(folder: Path) -> dict:
    """The trials of `analysis.sweep`: by key of an experiment a row a setting, with the best validation accuracy of
    each seed, and which was chosen; and the same of the finalists.

    Args:
        folder: of its `trials.json` and runs.

    Raises:
        InputError: `trials.json` or a run can't be read.
    """
    log = read_json(folder / "trials.json")
    trials: dict[str, list[dict]] = {}
    finals: dict[str, list[dict]] = {}
    for row in sorted(log["trials"], key=lambda row: row["experiment"]):
        setting = (row["learning_rate"], row["batch_size"])
        run = load_run(run_folder(row["experiment"], setting, log["seeds"][0], folder))
        accuracies = row["best_validation_accuracy"]
        row |= {"architecture": run.summary["architecture"], "mean": float(np.mean(accuracies))}
        trials.setdefault(run.key, []).append(row)
    for row in log["finals"]:
        finals.setdefault(row["experiment"].partition("_")[0], []).append(row)
    data, epochs = run.summary["data"], run.summary["epochs"]
    return {"seeds": log["seeds"], "training_reviews": data["train"], "validation_reviews": data["validation"]} | {
        "epochs": epochs,
        "full_seed": log["full_seed"],
        "trials": trials,
        "finals": finals,
    }


def _size_folders(folder: Path) -> list[Path]:
    folders = sorted(path for path in folder.glob("*") if path.is_dir())
    if not folders:
        raise InputError(f"{folder}: no folders of runs; `python -m analysis.sizes` makes them")
    return folders


def _check_complete(by_size: dict[int, dict[str, list[Run]]], keys: Sequence[str], folder: Path) -> None:
    for size, groups in by_size.items():
        if missing := [key for key in keys if key not in groups]:
            raise InputError(
                f"{folder}: no run of {', '.join(missing)} on {size} reviews; `python -m analysis.sizes` goes on"
            )


def _size_row(groups: dict[str, list[Run]], key: str) -> dict:
    also = [read_json(run.folder / TRANSFER) for run in groups[key]]
    row = mean_accuracy(groups[key], TEST_SPLIT_KEYS)
    row["also"] = {name: float(np.mean([result[name]["accuracy"] for result in also])) for name in also[0]}
    if "0" in groups and row["experiment"]:
        row["to_baseline"] = compare(groups[key], groups["0"], TEST_SPLIT_KEYS)
    return row


def _tried_row(group: list[Run], by_size: dict[int, dict[str, list[Run]]]) -> dict:
    size = group[0].summary["data"]["train"]
    if size not in by_size:
        sizes = ", ".join(map(str, sorted(by_size)))
        raise InputError(f"{group[0].folder}: trained on {size} reviews; expected as many as one of the sizes: {sizes}")
    row = {"training_reviews": size, **mean_accuracy(group, TEST_SPLIT_KEYS)}
    for name, key in zip(DIFFERENCES, ("0", "0w", group[0].key[0]), strict=True):
        if key in by_size[size]:
            row[name] = compare(group, by_size[size][key], TEST_SPLIT_KEYS)
    return row


def _adjust_together(rows: Sequence[dict]) -> None:
    """Their comparisons as dictionaries, with p adjusted over all."""
    places = [(row, name) for row in rows for name in DIFFERENCES if name in row]
    adjusted = adjust([row[name] for row, name in places])
    for (row, name), comparison in zip(places, adjusted, strict=True):
        row[name] = asdict(comparison) | {"significant": comparison.is_significant}


def _first_lasting_lead(rows: Sequence[dict], baseline: Sequence[dict]) -> int | None:
    """The first size from which on the mean is the higher one at every size."""
    means = {row["training_reviews"]: row["mean"] for row in baseline}
    first = None
    for row in reversed(rows):
        if row["mean"] <= means[row["training_reviews"]]:
            break
        first = row["training_reviews"]
    return first
