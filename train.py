"""Train and evaluate experiments: data -> model -> optimiser -> fit -> evaluate, logged in a run folder.

    python train.py configs/4_lstm_attention.yaml [more.yaml ...] [key=value ...] [jobs=N]

A run folder holds `config.yaml` (resolved settings), `metrics.jsonl` (a line an evaluation), `best/` (the model that is
kept), `validation_predictions.csv` and `test_predictions.csv` of that model, `summary.json`, and in `checkpoints/` the
run's state. Run the same command again to resume a run that was stopped or killed, and a complete one with more epochs
(`train.epochs=5`) to train it further.
"""

import training  # noqa: F401  before torch

# isort: split
import argparse
import contextlib
import gc
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import set_seed

from config import Config, InputError, describe_settings, load_config
from data import Reviews, load_reviews
from models import (
    ReviewClassifier,
    build_model,
    find_saved_model,
    load_initial_weights,
    load_model,
)
from training import distributed
from training.checkpoint import FOLDER, best_path, checkpoints_of
from training.command import check_folder, run_command
from training.device import device_name, now, pick_device, prepare
from training.evaluation import autocast, evaluate
from training.frozen_features import FrozenFeatures
from training.jobs import default_jobs, run_at_a_time, stop_with_parent, take_jobs
from training.run_folder import (
    Record,
    complete_run,
    finished_run,
    is_to_be_extended,
    newest_checkpoint,
    restore_best,
    run_lock,
    start_run,
)
from training.summary import build_summary, run_measurements
from training.trainer import Trainer

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status of `run_command`."""
    parser = argparse.ArgumentParser(
        description="Train one or more experiments; several on a CPU one a core at a time, or jobs=N at a time.",
        epilog="settings (given as key=value, or in the YAML file):\n" + describe_settings(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("given", nargs="+", metavar="FILE|KEY=VALUE", help="experiment files and settings")
    words = parser.parse_args(arguments).given
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    overrides = [word for word in words if is_override(word)]
    files = [word for word in words if word not in overrides]
    stop_with_parent()
    return run_command(lambda: run_all(files, *take_jobs(overrides)))


def is_override(word: str) -> bool:
    """Whether a word of the command line is `key=value`: a path may hold `=` too."""
    key, equals, _ = word.partition("=")
    # Unlike Path.is_file, os.path.isfile takes a name of any length.
    return bool(equals) and "/" not in key and not os.path.isfile(word)


def run_all(files: Sequence[str], overrides: Sequence[str], jobs: int | None = None) -> None:
    """Train several experiments, `jobs` at a time (None: `default_jobs`); first all settings are checked."""
    if not files:
        raise InputError("no experiment file given; the experiments are configs/1_*.yaml to configs/8_*.yaml")
    configs = [load_config(path, overrides) for path in files]
    folders = [config.run_dir for config in configs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise InputError(
                f"run_dir={folder!r} is the folder of {folders.count(folder)} experiments; give each its own, "
                "such as run_dir='logs/try/${name}'"
            )
    devices = [pick_device(config.device, config.train.precision) for config in configs]
    for config in configs:
        check_run(config)
    jobs = min(jobs or default_jobs(len(configs), devices), len(configs))
    if jobs > 1:
        return run_at_a_time([[file, *overrides] for file in files], configs, jobs)
    # A group for CUDA also serves the CPU.
    with distributed.process_group(max(devices, key=lambda device: device.type)):
        if not distributed.is_main_process():
            logging.getLogger().setLevel(logging.WARNING)
        for config in configs:
            run(config)


def check_run(config: Config) -> dict | None:
    """The summary of this very run if it is complete; else None, once its folders are found to be usable.

    Raises:
        InputError: a folder can't be made or written to; or `finished_run`'s.
    """
    run_dir = Path(config.run_dir)
    summary = finished_run(config, run_dir)
    if summary is None:
        for path in (run_dir, run_dir / "best", run_dir / FOLDER):
            check_folder(path, "run_dir")
        check_folder(Path(config.data.cache_dir), "data.cache_dir")
        source = config.model.init_from
        if source is not None and Path(os.path.realpath(source)).is_relative_to(os.path.realpath(run_dir)):
            raise InputError(f"model.init_from={source} is in run_dir={run_dir}, which changes; give another run_dir")
    return summary


def run(config: Config) -> dict:
    """Train and evaluate one experiment, and write its run folder; resumes where the folder holds it unfinished.

    A complete run is trained further where the settings differ in a larger `train.epochs` alone.

    Returns:
        The summary. Where the folder holds this run complete already, that one's, and nothing is done.

    Raises:
        InputError: the folder holds another run, or one that can't be read; another process works in it; or the data
            or a pretrained model is not available.
        FloatingPointError: a non-finite loss or gradient.
        RunError: no memory, or no space on the disk.
        InterruptedRun: SIGTERM or Ctrl-C came; the state is saved.
    """
    run_dir, device = Path(config.run_dir), pick_device(config.device, config.train.precision)
    with distributed.process_group(device):
        summary = check_run(config)
        # No process writes before all have looked.
        distributed.barrier()
        if summary is not None:
            return _kept(summary, run_dir)
        with run_lock(run_dir) if distributed.is_main_process() else contextlib.nullcontext():
            distributed.barrier()
            # A process that held the lock until now may have completed this run.
            summary = finished_run(config, run_dir)
            return _train_and_test(config, run_dir, device) if summary is None else _kept(summary, run_dir)


def _kept(summary: dict, run_dir: Path) -> dict:
    log.info("%s: already complete, kept as it is (overwrite=true trains it again)", run_dir)
    return summary


def _train_and_test(config: Config, run_dir: Path, device: torch.device) -> dict:
    """`run`, in a folder that is this process's own."""
    log.info("%s: %s %s", run_dir, config.key, config.architecture)
    if config.model.init_from is not None and not checkpoints_of(run_dir):
        # Before the reviews are tokenised. A run that resumes does not need it.
        find_saved_model(config.model.init_from)
    with distributed.main_process_first():
        reviews = load_reviews(config.data)
    prepare(device, config.train.precision)
    if is_to_be_extended(config, run_dir) and distributed.is_main_process():
        restore_best(run_dir)
    distributed.barrier()
    checkpoint = newest_checkpoint(config, run_dir, reviews, device)
    model, init_from = _build(config, reviews, device, is_new=checkpoint is None)
    started = now(device)
    is_cached = config.train.cache_frozen_features and config.model.backbone == "bert"
    if is_cached:
        reviews = cache_frozen_features(config, model, reviews, device)
    # No process writes before all have looked.
    distributed.barrier()
    if distributed.is_main_process():
        start_run(run_dir, config, resumes=checkpoint is not None)
    distributed.barrier()
    trainer = Trainer(config, model, reviews, device, run_dir)
    trainer.record.init_from = init_from
    record = trainer.fit(checkpoint, frozen_features_seconds=now(device) - started if is_cached else 0.0)
    # The model of the last step makes room for the best.
    del trainer, model
    gc.collect()
    summary = _test(config, reviews, record, run_dir, device)
    log.info(
        "%s: best validation accuracy %.1f%% (step %d), test accuracy %.1f%%, %.0f s of training",
        run_dir,
        100 * summary["best_validation_accuracy"],
        summary["best_validation_step"],
        100 * summary["test_accuracy"],
        summary["train_seconds"],
    )
    return summary


def _build(
    config: Config, reviews: Reviews, device: torch.device, is_new: bool
) -> tuple[ReviewClassifier, dict | None]:
    """The model of the seed, on the device, and from whose weights it starts where a new run has `model.init_from`."""
    set_seed(config.seed)
    model = build_model(config.model, len(reviews.tokenizer), config.data.max_length)
    init_from = None
    if is_new and config.model.init_from is not None:
        init_from = load_initial_weights(model, config.model, reviews.tokenizer)
    model.to(device)
    # Each process draws its own dropout.
    torch.manual_seed(config.seed + distributed.rank())
    if config.train.compile:
        model.compile(dynamic=True)
    return model, init_from


def cache_frozen_features(config: Config, model: ReviewClassifier, reviews: Reviews, device: torch.device) -> Reviews:
    """The splits with the outputs of the frozen layers in their batches; the test split, read once, without."""
    folder, precision = Path(config.data.cache_dir), config.train.cache_frozen_features
    with distributed.main_process_first(), autocast(config.train.precision, device):
        cached = {
            name: FrozenFeatures(split, model.backbone, folder, precision, config.train.eval_batch_size)
            for name, split in (("train", reviews.train), ("validation", reviews.validation))
        }
    return replace(reviews, **cached)


def _test(config: Config, reviews: Reviews, record: Record, run_dir: Path, device: torch.device) -> dict:
    """Evaluate the best model on the test split, once, and complete the run folder; returns the summary."""
    best = best_path(run_dir, record.best["step"])
    model = load_model(best)[0].to(device)
    started = time.perf_counter()
    test = evaluate(model, reviews.test, config.train.eval_batch_size, device, config.train.precision)
    measured = run_measurements(config, model, record, test, time.perf_counter() - started)
    packages = ("torch", "transformers", "datasets", "numpy")
    summary = build_summary(config, reviews, {**measured, "device": device_name(device)}, packages)
    if distributed.is_main_process():
        complete_run(run_dir, best, reviews.test, test.probabilities, summary)
    distributed.barrier()
    return summary


if __name__ == "__main__":
    sys.exit(main())
