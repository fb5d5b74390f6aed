"""A run's folder: what stands in it, whose it is, and where a run that was interrupted goes on."""

import csv
import json
import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType

import numpy as np
import torch

from config import Config, InputError, load_config
from data import Reviews, TokenizedReviews
from models import SETTINGS, WEIGHTS
from training import distributed
from training.checkpoint import (
    FOLDER,
    MANIFEST,
    STATE,
    DamagedError,
    best_path,
    checkpoints_of,
    load_checkpoint,
    read_json,
    verify_folder,
    write_folder,
    write_text,
)
from training.device import device_name

log = logging.getLogger(__name__)

PREDICTIONS = "validation_predictions.csv"
RUN_FILES = ("config.yaml", "metrics.jsonl", "summary.json", PREDICTIONS, "test_predictions.csv")
# The tensors of a checkpoint, a file each.
STATE_FILES = ("model", "optimizer", "random")
# Settings of which the result does not depend: a run goes on, or counts as the same, with others.
FREE_SETTINGS = (
    "overwrite",
    "run_dir",
    "device",
    "data.cache_dir",
    "train.save_steps",
    "train.save_minutes",
    "train.auto_find_micro_batch_size",
)


@dataclass
class Record:
    """What a fit has seen so far, all of it JSON; seconds are wall-clock.

    `epoch_step` steps of `epoch` are done: an epoch's end is (epoch + 1, 0). The interval is that since the last
    evaluation. `history` holds the lines of metrics.jsonl, `best` the best of them.
    """

    epoch: int = 1
    epoch_step: int = 0
    step: int = 0
    reviews_seen: int = 0
    interval_loss: float = 0.0
    interval_correct: float = 0.0
    interval_reviews: int = 0
    micro_batch_size: int | None = None
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    best: dict | None = None
    history: list[dict] = field(default_factory=list)
    memory: dict = field(default_factory=dict)
    trainable_parameters: int = 0

    @property
    def last(self) -> dict:
        """The last evaluation's line."""
        return self.history[-1]

    @classmethod
    def from_json(cls, content: dict) -> "Record":
        """Raises ValueError where something is missing, unknown or of another type."""
        kinds = {name: type(value) for name, value in asdict(cls()).items()}
        if not isinstance(content, dict) or content.keys() != kinds.keys():
            raise ValueError(f"the record has {list(content)}; expected {list(kinds)}")
        for name, kind in kinds.items():
            accepted = {NoneType: (NoneType, int, dict), float: (float, int)}.get(kind, kind)
            if not isinstance(content[name], accepted):
                raise ValueError(f"record.{name} is {content[name]!r}; expected {kind.__name__}")
        if content["best"] is not None and not isinstance(content["best"].get("step"), int):
            raise ValueError("record.best has no step")
        return cls(**content)


def finished_run(config: Config, run_dir: Path) -> dict | None:
    """The summary of this very run if the folder holds it complete; None where there is none or to be replaced.

    Raises:
        InputError: the folder holds a complete run of other settings, or one that can't be read.
    """
    path = run_dir / "summary.json"
    if config.overwrite or not path.is_file():
        return None
    differences = differing_keys(settings_of(run_dir), asdict(config))
    if differences:
        raise InputError(
            f"{run_dir} holds a complete run with other settings ({', '.join(differences)}); it is kept: give "
            "another run_dir, or overwrite=true"
        )
    try:
        return read_json(path)
    except DamagedError as error:
        raise InputError(f"{error}; overwrite=true trains the run again") from None


def settings_of(run_dir: Path) -> dict:
    """The settings that a run folder's config.yaml holds."""
    try:
        return asdict(load_config(run_dir / "config.yaml"))
    except InputError as error:
        raise InputError(f"{error}; overwrite=true trains the run again") from None


def differing_keys(before: dict, now: dict, prefix: str = "") -> list[str]:
    """`key: before -> now` of each setting that differs, but for those of which the result does not depend."""
    found = []
    for key in now:
        old, new = before.get(key), now[key]
        if isinstance(new, dict) and isinstance(old, dict):
            found += differing_keys(old, new, f"{prefix}{key}.")
        elif old != new and prefix + key not in FREE_SETTINGS:
            found.append(f"{prefix}{key}: {old!r} -> {new!r}")
    return found


def newest_checkpoint(config: Config, run_dir: Path, reviews: Reviews, device: torch.device) -> Path | None:
    """The newest checkpoint that is whole, its best model with it; None where the folder has none at all.

    Raises:
        InputError: it belongs to other settings, reviews or number of processes, or all there are are damaged.
    """
    damage = ""
    for folder in checkpoints_of(run_dir):
        try:
            state = load_checkpoint(folder, STATE_FILES)[1]
            best = Record.from_json(state["record"]).best
            verify_folder(best_path(run_dir, best["step"]), (WEIGHTS, SETTINGS, PREDICTIONS)) if best else None
            before = state["settings"], state["data"], state["processes"], state["device"]
            if not isinstance(state["settings"], dict):
                raise ValueError("no settings")
        except (DamagedError, KeyError, TypeError, ValueError) as error:
            damage = str(error) if isinstance(error, DamagedError) else f"{folder / STATE}: {error!r}"
            log.warning("%s is damaged and not used (%s)", folder, damage)
            continue
        check_same_run(
            run_dir, before, (asdict(config), reviews.fingerprint, distributed.world_size(), device_name(device))
        )
        log.info("%s: going on after step %d", run_dir, int(state["record"]["step"]))
        return folder
    if damage:
        raise InputError(f"{run_dir}: no checkpoint is whole ({damage}); overwrite=true starts the run again")
    return None


def check_same_run(run_dir: Path, before: tuple[dict, str, int, str], now: tuple[dict, str, int, str]) -> None:
    """Refuse (`InputError`) to go on with other settings, reviews or processes; another device gets a warning."""
    differences = differing_keys(before[0], now[0])
    if before[1] != now[1]:
        differences.append(f"the reviews: {before[1]} -> {now[1]}")
    if before[2] != now[2]:
        differences.append(f"number of processes: {before[2]} -> {now[2]}")
    if differences:
        raise InputError(
            f"{run_dir} holds an unfinished run with other settings ({', '.join(differences)}); it is kept: go on "
            "with its own, give another run_dir, or overwrite=true"
        )
    if before[3] != now[3]:
        log.warning("%s: begun on %s, goes on on %s: equal but for rounding", run_dir, before[3], now[3])


def clear_run(run_dir: Path) -> None:
    """An empty run folder: what a run writes is removed, anything else there is left alone."""
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in RUN_FILES:
        (run_dir / name).unlink(missing_ok=True)
    for name in ("best", FOLDER):
        shutil.rmtree(run_dir / name, ignore_errors=True)


def complete_run(run_dir: Path, best: Path, reviews: TokenizedReviews, test: np.ndarray, summary: dict) -> None:
    """Write what a complete run leaves, the summary last, and remove the checkpoints.

    Args:
        run_dir: the run's folder.
        best: the folder of its best model.
        reviews: the test split.
        test: (n,) the probabilities of positive on it.
        summary: JSON.
    """
    write_predictions(run_dir / "test_predictions.csv", reviews, test)
    shutil.copyfile(best / PREDICTIONS, run_dir / PREDICTIONS)
    files = [path for path in best.iterdir() if path.name not in (PREDICTIONS, MANIFEST)]
    size = sum(path.stat().st_size for path in files)
    write_folder(run_dir / "best", lambda partial: [shutil.copyfile(p, partial / p.name) for p in files], size)
    write_text(run_dir / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    shutil.rmtree(run_dir / FOLDER)


def write_predictions(path: Path, reviews: TokenizedReviews, probabilities: np.ndarray) -> None:
    """`row,label,probability` of each review: its row in the source, its label, the probability of positive."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "label", "probability"])
        for row, label, probability in zip(reviews.rows, reviews.labels, probabilities, strict=True):
            writer.writerow([row, label, f"{probability:.6f}"])


def best_step_of(folder: Path) -> int | None:
    """The step of the best model to which a checkpoint refers."""
    best = read_json(folder / STATE)["record"]["best"]
    return best["step"] if best else None
