"""What complete runs have left in their folders: summaries, evaluations, predictions."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import InputError


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
