"""A run's folder: its files, the lock that keeps a second process out, and where an interrupted run resumes."""

import contextlib
import csv
import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType

import numpy as np
import torch
from filelock import FileLock, Timeout

from config import Config, InputError, load_config, read_json, to_yaml
from data import Reviews, TokenizedReviews, data_fingerprint, write_text
from models import SETTINGS, WEIGHTS
from training import distributed
from training.checkpoint import (
    FOLDER,
    MANIFEST,
    STATE,
    best_path,
    checkpoints_of,
    keep_last_state,
    load_checkpoint,
    verify_folder,
    write_folder,
)
from training.device import device_name
from training.tensorboard import EVENTS

log = logging.getLogger(__name__)

PREDICTIONS = "validation_predictions.csv"
RUN_FILES = ("config.yaml", "metrics.jsonl", "summary.json", PREDICTIONS, "test_predictions.csv")
# The tensors of a checkpoint, a file each.
STATE_FILES = ("model", "optimizer", "random")
# How a file system says that it has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
# Settings on which the result does not depend: a run resumes, or counts as the same, with others. The same reviews may
# stand in other files: their fingerprint is compared.
_FREE_SETTINGS = (
    "overwrite",
    "run_dir",
    "device",
    "data.train",
    "data.validation",
    "data.test",
    "data.cache_dir",
    "train.save_steps",
    "train.save_minutes",
    "train.auto_find_micro_batch_size",
    "train.tensorboard",
)


@dataclass
class Record:
    """What a run has done so far, all of it JSON; seconds are wall-clock.

    `epoch_step` steps of `epoch` are done: an epoch's end is (epoch + 1, 0). The interval is that since the last
    evaluation. `frozen_features_seconds` are those of the training seconds that went into caching frozen features.
    `history` holds the lines of metrics.jsonl, `best` the best of them. `init_from` has the path and sha256
    of the weights from which the run started, where it started from those of another.
    """

    epoch: int = 1
    epoch_step: int = 0
    step: int = 0
    reviews_seen: int = 0
    interval_loss: float = 0.0
    interval_correct: float = 0.0
    interval_gradient_norm: float = 0.0
    interval_reviews: int = 0
    interval_tokens: int = 0
    micro_batch_size: int | None = None
    train_seconds: float = 0.0
    frozen_features_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    best: dict | None = None
    history: list[dict] = field(default_factory=list)
    memory: dict = field(default_factory=dict)
    trainable_parameters: int = 0
    init_from: dict | None = None
    extended_from_epochs: list[int] = field(default_factory=list)

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
    """The summary of this very run if the folder holds it complete.

    Returns:
        None where there is none, it is to be replaced, or it is to be trained for more epochs (`is_to_be_extended`).

    Raises:
        InputError: the folder holds a complete run of other settings or reviews, one that can't be read, or one that
            can't be trained further.
    """
    path = run_dir / "summary.json"
    if config.overwrite or not os.path.isfile(path):
        return None
    try:
        settings = asdict(load_config(run_dir / "config.yaml"))
        summary = read_json(path)
    except InputError as error:
        raise InputError(f"{error}; overwrite=true trains the run again") from None
    epochs = settings["train"]["epochs"]
    is_longer = config.train.epochs > epochs
    differences = differing_settings(_with_more_epochs(settings, config), asdict(config))
    differences += _differing_reviews(config, settings["data"], summary)
    if differences:
        raise InputError(
            f"{run_dir} holds a complete run with other settings ({', '.join(differences)}); it is kept: give "
            "another run_dir, or overwrite=true"
        )
    if is_longer and not checkpoints_of(run_dir):
        raise InputError(
            f"{run_dir} holds a complete run of {epochs} epochs without its last state ({run_dir / FOLDER}), so that "
            f"it can't be trained further; it is kept: give another run_dir, with model.init_from={run_dir} to start "
            "from its best weights, or overwrite=true"
        )
    return None if is_longer else summary


def _differing_reviews(config: Config, before: dict, summary: dict) -> list[str]:
    """As `differing_settings`, of reviews in files, which may have changed, or be the same under other names."""
    if config.data.source != "files":
        return []
    try:
        fingerprint = data_fingerprint(config.data)
    except InputError:
        names = ("train", "validation", "test")
        if all(getattr(config.data, name) == before[name] for name in names):
            # The files are gone since; a complete run does not need them.
            return []
        raise
    data = summary.get("data")
    old = data.get("fingerprint") if isinstance(data, dict) else None
    return [] if old == fingerprint else [f"the reviews: {old} -> {fingerprint}"]


def is_to_be_extended(config: Config, run_dir: Path) -> bool:
    """Whether the folder holds a complete run that goes on, given that `finished_run` returned None."""
    return not config.overwrite and (run_dir / "summary.json").is_file()


def restore_best(run_dir: Path) -> None:
    """Put a complete run's best model back beside its last checkpoint, which refers to it.

    Raises:
        InputError: a file of it is missing or changed.
    """
    try:
        step = read_json(run_dir / "summary.json").get("best_validation_step")
        if not isinstance(step, int):
            raise InputError(f"{run_dir / 'summary.json'}: best_validation_step is {step!r}; expected a step")
        if best_path(run_dir, step).is_dir():
            return
        verify_folder(run_dir / "best", (WEIGHTS, SETTINGS))
    except InputError as error:
        raise InputError(f"{error}; overwrite=true trains the run again") from None
    files = [path for path in (run_dir / "best").iterdir() if path.name != MANIFEST]
    _copy_folder([*files, run_dir / PREDICTIONS], best_path(run_dir, step))


def newest_checkpoint(config: Config, run_dir: Path, reviews: Reviews, device: torch.device) -> Path | None:
    """The newest checkpoint that is whole, its best model with it.

    Returns:
        None where the folder has none at all, or with `overwrite`, unless the run was started by this very command.

    Raises:
        InputError: it belongs to other settings, reviews or number of processes, or all there are are damaged.
    """
    if config.overwrite and (run_dir / "summary.json").is_file():
        return None
    damage = ""
    for folder in checkpoints_of(run_dir):
        try:
            state = _read_state(folder, run_dir)
        except (InputError, KeyError, TypeError, ValueError) as error:
            damage = str(error) if isinstance(error, InputError) else f"{folder / STATE}: {error!r}"
            log.warning("%s is damaged and not used (%s)", folder, damage)
            continue
        differences = _differences(config, state, reviews.fingerprint)
        if config.overwrite and (differences or not state["settings"].get("overwrite")):
            return None
        if differences:
            raise InputError(
                f"{run_dir} holds an unfinished run with other settings ({', '.join(differences)}); it is kept: resume "
                "it with its own, give another run_dir, or overwrite=true"
            )
        _log_resuming(run_dir, state, device)
        return folder
    if damage and not config.overwrite:
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
    if not isinstance(state["settings"], dict) or not isinstance(state["settings"].get("train"), dict):
        raise ValueError("no settings")
    return state


def _differences(config: Config, state: dict, fingerprint: str) -> list[str]:
    """In what a checkpoint is of another run: settings, reviews, processes; more epochs after its last are none."""
    settings = state["settings"]
    if state["record"]["epoch"] - 1 == settings["train"].get("epochs"):
        settings = _with_more_epochs(settings, config)
    differences = differing_settings(settings, asdict(config))
    if state["data"] != fingerprint:
        differences.append(f"the reviews: {state['data']} -> {fingerprint}")
    if state["world_size"] != distributed.world_size():
        differences.append(f"number of processes: {state['world_size']} -> {distributed.world_size()}")
    return differences


def _with_more_epochs(settings: dict, config: Config) -> dict:
    """The settings of a run that has trained all its epochs, as if they were those of `config` if that has more."""
    epochs = max(settings["train"]["epochs"], config.train.epochs)
    return {**settings, "train": {**settings["train"], "epochs": epochs}}


def _log_resuming(run_dir: Path, state: dict, device: torch.device) -> None:
    log.info("%s: resuming after step %d", run_dir, int(state["record"]["step"]))
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


def start_run(run_dir: Path, config: Config, resumes: bool = False) -> None:
    """Write the settings into a folder from which a former run's files are removed; other files are left alone.

    Args:
        run_dir: the run's folder.
        config: the settings, which are written without `overwrite`: that is of a command, not of the run.
        resumes: whether the run goes on from a checkpoint: then only what says that it is complete is removed.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in ("summary.json", "test_predictions.csv") if resumes else RUN_FILES:
        (run_dir / name).unlink(missing_ok=True)
    for name in () if resumes else ("best", FOLDER, EVENTS):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    write_text(run_dir / "config.yaml", to_yaml(replace(config, overwrite=False)))


def complete_run(run_dir: Path, best: Path, reviews: TokenizedReviews, test: np.ndarray, summary: dict) -> None:
    """Write what a complete run leaves, the summary last, and remove all checkpoints but the newest.

    Args:
        run_dir: the run's folder.
        best: the folder of its best model.
        reviews: the test split.
        test: (n,) the probabilities of positive on it.
        summary: JSON.
    """
    write_predictions(run_dir / "test_predictions.csv", reviews, test)
    shutil.copyfile(best / PREDICTIONS, run_dir / PREDICTIONS)
    _copy_folder([path for path in best.iterdir() if path.name not in (PREDICTIONS, MANIFEST)], run_dir / "best")
    write_summary(run_dir, summary)
    keep_last_state(run_dir)


def _copy_folder(files: list[Path], target: Path) -> None:
    """Copies of the files in a folder with a manifest."""
    size = sum(path.stat().st_size for path in files)
    write_folder(target, lambda partial: [shutil.copyfile(path, partial / path.name) for path in files], size)


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
