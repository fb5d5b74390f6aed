"""A run's folder: its files, the lock that keeps a second process out, and where an interrupted run resumes."""

import contextlib
import csv
import errno
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType

import numpy as np
import torch
from filelock import FileLock, Timeout

from config import Config, InputError, load_config, read_json, to_yaml
from data import Reviews, TokenizedReviews, write_text
from models import SETTINGS, WEIGHTS
from training import distributed
from training.checkpoint import (
    FOLDER,
    MANIFEST,
    STATE,
    best_path,
    checkpoints_of,
    load_checkpoint,
    verify_folder,
    write_folder,
)
from training.device import device_name

log = logging.getLogger(__name__)

PREDICTIONS = "validation_predictions.csv"
RUN_FILES = ("config.yaml", "metrics.jsonl", "summary.json", PREDICTIONS, "test_predictions.csv")
# The tensors of a checkpoint, a file each.
STATE_FILES = ("model", "optimizer", "random")
# How a file system says that it has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
# Settings on which the result does not depend: a run resumes, or counts as the same, with others.
_FREE_SETTINGS = (
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
    """What a run has done so far, all of it JSON; seconds are wall-clock.

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


# ---------------------------------------------------------------- before a run


@contextlib.contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """For the time of a block, keeps a second process out of a run folder; the system frees a killed process's lock.

    Raises:
        InputError: another process works in the folder.
    """
    is_new = not run_dir.exists()
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "run.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{path}: another process works in this folder; wait for it, stop it, or give another run_dir"
        ) from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        log.warning("%s: this file system has no locks: see that no second process works in the folder", run_dir)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()
        if is_new:
            with contextlib.suppress(OSError):
                # A run that never began leaves no empty folder.
                run_dir.rmdir()


def finished_run(config: Config, run_dir: Path) -> dict | None:
    """The summary of this very run if the folder holds it complete; None where there is none or to be replaced.

    Raises:
        InputError: the folder holds a complete run of other settings, or one that can't be read.
    """
    path = run_dir / "summary.json"
    if config.overwrite or not path.is_file():
        return None
    try:
        settings = asdict(load_config(run_dir / "config.yaml"))
        summary = read_json(path)
    except InputError as error:
        raise InputError(f"{error}; overwrite=true trains the run again") from None
    differences = differing_settings(settings, asdict(config))
    if differences:
        raise InputError(
            f"{run_dir} holds a complete run with other settings ({', '.join(differences)}); it is kept: give "
            "another run_dir, or overwrite=true"
        )
    return summary


def newest_checkpoint(config: Config, run_dir: Path, reviews: Reviews, device: torch.device) -> Path | None:
    """The newest checkpoint that is whole, its best model with it; None where the folder has none at all.

    Raises:
        InputError: it belongs to other settings, reviews or number of processes, or all there are are damaged.
    """
    damage = ""
    for folder in checkpoints_of(run_dir):
        try:
            state = _read_state(folder, run_dir)
        except (InputError, KeyError, TypeError, ValueError) as error:
            damage = str(error) if isinstance(error, InputError) else f"{folder / STATE}: {error!r}"
            log.warning("%s is damaged and not used (%s)", folder, damage)
            continue
        _check_same_run(config, run_dir, state, reviews.fingerprint, device)
        log.info("%s: resuming after step %d", run_dir, int(state["record"]["step"]))
        return folder
    if damage:
        raise InputError(f"{run_dir}: no checkpoint is whole ({damage}); overwrite=true starts the run again")
    return None


def _read_state(folder: Path, run_dir: Path) -> dict:
    """The state of a checkpoint, all of whose files and whose best model are whole; raises where they are not."""
    state = load_checkpoint(folder, STATE_FILES)[1]
    best = Record.from_json(state["record"]).best
    if best:
        verify_folder(best_path(run_dir, best["step"]), (WEIGHTS, SETTINGS, PREDICTIONS))
    for key in ("data", "world_size", "device"):
        state[key]
    if not isinstance(state["settings"], dict):
        raise ValueError("no settings")
    return state


def _check_same_run(config: Config, run_dir: Path, state: dict, fingerprint: str, device: torch.device) -> None:
    """Refuse (`InputError`) to resume with other settings, reviews or processes; another device gets a warning."""
    differences = differing_settings(state["settings"], asdict(config))
    if state["data"] != fingerprint:
        differences.append(f"the reviews: {state['data']} -> {fingerprint}")
    if state["world_size"] != distributed.world_size():
        differences.append(f"number of processes: {state['world_size']} -> {distributed.world_size()}")
    if differences:
        raise InputError(
            f"{run_dir} holds an unfinished run with other settings ({', '.join(differences)}); it is kept: resume it "
            "with its own, give another run_dir, or overwrite=true"
        )
    if state["device"] != device_name(device):
        log.warning(
            "%s: resuming on %s a run started on %s: results are equal only up to rounding",
            run_dir,
            device_name(device),
            state["device"],
        )


def differing_settings(before: dict, now: dict, prefix: str = "") -> list[str]:
    """`key: before -> now` of each setting that differs, except those on which the result does not depend."""
    differences = []
    for key in now:
        old, new = before.get(key), now[key]
        if isinstance(new, dict) and isinstance(old, dict):
            differences += differing_settings(old, new, f"{prefix}{key}.")
        elif old != new and prefix + key not in _FREE_SETTINGS:
            differences.append(f"{prefix}{key}: {old!r} -> {new!r}")
    return differences


# ---------------------------------------------------------------- what a run writes


def start_run(run_dir: Path, config: Config) -> None:
    """Write the settings into a folder from which a former run's files are removed; other files are left alone."""
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in RUN_FILES:
        (run_dir / name).unlink(missing_ok=True)
    for name in ("best", FOLDER):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    write_text(run_dir / "config.yaml", to_yaml(config))


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
    write_summary(run_dir, summary)
    shutil.rmtree(run_dir / FOLDER)


def write_summary(run_dir: Path, summary: dict) -> None:
    """The last file of a complete run."""
    write_text(run_dir / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")


def write_predictions(path: Path, reviews: TokenizedReviews, probabilities: np.ndarray) -> None:
    """`row,label,probability` of each review: its row in the source, its label, the probability of positive."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "label", "probability"])
        for row, label, probability in zip(reviews.rows, reviews.labels, probabilities, strict=True):
            writer.writerow([row, label, f"{probability:.6f}"])
