"""What complete runs have left in their folders: summaries, evaluations, predictions."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import InputError
from training.run_folder import RUN_FILES

# What of a summary's `data` tells one set of reviews from another.
_DATA_KEYS = ("source", "fingerprint", "train", "validation", "test")
# The same, for results on the test reviews alone.
TEST_DATA_KEYS = ("source", "fingerprint", "test")
# And where the training reviews or the length limit, which are part of the fingerprint, may differ.
TEST_SPLIT_KEYS = ("source", "test")


@dataclass(frozen=True)
class Run:
    """A complete run: its summary and its evaluations in order."""

    folder: Path
    summary: dict
    metrics: list[dict]

    @property
    def key(self) -> str:
        """`4`, or `8t` of a variant; all seeds of an experiment share it."""
        return self.summary["key"]

    @property
    def label(self) -> str:
        """`4 LSTM encoder-decoder + attention`"""
        return f"{self.key} {self.summary['architecture']}"

    @property
    def is_assigned(self) -> bool:
        """Whether it is one of the eight experiments, not a baseline or a variant such as `8t`."""
        return self.summary["experiment"] > 0 and self.key == str(self.summary["experiment"])


def load_runs(folder: str | Path) -> list[Run]:
    """The complete runs directly inside a folder, sorted by key and seed.

    Raises:
        InputError: there is none, or a log can't be read.
    """
    runs = [load_run(path.parent) for path in sorted(Path(folder).glob("*/summary.json"))]
    if not runs:
        raise InputError(f"{folder}: no complete run (*/summary.json); train some first, for example with `make run`")
    return sorted(runs, key=lambda run: (run.summary["experiment"], run.key, run.summary["seed"]))


def load_run(folder: str | Path) -> Run:
    """One run folder.

    Raises:
        InputError: there is no complete run in it, or its logs can't be read.
    """
    path = Path(folder) / "summary.json"
    try:
        summary = json.loads(path.read_text())
        missing = [name for name in ("experiment", "key", "seed", "architecture") if name not in summary]
        if missing:
            raise ValueError(f"no {', '.join(missing)}")
        path = Path(folder) / "metrics.jsonl"
        metrics = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a log of a complete run ({error})") from None
    return Run(Path(folder), summary, metrics)


def identify(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by a name that is unique among them: their key, or `KEY seed N` where several share the key.

    Raises:
        InputError: two runs have the same key and seed.
    """
    counts = Counter(run.key for run in runs)
    named: dict[str, Run] = {}
    for run in runs:
        name = run.key if counts[run.key] == 1 else f"{run.key} seed {run.summary['seed']}"
        if name in named:
            raise InputError(
                f"{named[name].folder} and {run.folder} are both {run.key} with seed {run.summary['seed']}: they can't "
                "be told apart; give one of them, or train one with its own `key=...`"
            )
        named[name] = run
    return named


def by_key(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each experiment or variant, its seeds, in their order."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.key, []).append(run)
    return groups


def by_data(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups, each on the same training, validation and test reviews (and length limit), in their order."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.summary["data"].get(name) for name in _DATA_KEYS), []).append(run)
    return list(groups.values())


def check_same_data(runs: Sequence[Run], keys: Sequence[str] = _DATA_KEYS) -> None:
    """Refuse (`InputError`) runs on different reviews: their results can't be compared.

    Args:
        runs: to compare.
        keys: of a summary's `data`, in which they must agree.
    """
    for run in runs[1:]:
        for key in keys:
            first, other = (r.summary["data"].get(key) for r in (runs[0], run))
            if first != other:
                hint = " of reviews, splits, tokenizer and data.max_length" if key == "fingerprint" else ""
                raise InputError(
                    f"{runs[0].folder} and {run.folder} are on different data ({key}{hint}: {first} and {other}) and "
                    "can't be compared; give runs on the same data"
                )


def has_train_sample(run: Run) -> bool:
    """Whether its accuracy on training reviews is that on a fixed sample, without dropout."""
    return run.summary.get("train_sample_accuracy") is not None


def files_of_runs(run_dirs: Sequence[Path]) -> list[Path]:
    """The logs in run folders, which no output may replace."""
    return [run_dir / name for run_dir in run_dirs for name in RUN_FILES]


def read_predictions(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows in the source, labels and probabilities of positive, each (n,).

    Raises:
        InputError: the file is missing or has other columns.
    """
    try:
        with path.open(newline="") as file:
            lines = [
                (int(line["row"]), int(line["label"]), float(line["probability"])) for line in csv.DictReader(file)
            ]
        rows, labels, probabilities = map(np.array, zip(*lines, strict=True))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not the predictions of a run ({error!r}); expected row,label,probability") from None
    return rows, labels, probabilities
