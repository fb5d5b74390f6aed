"""Accuracy against the number of training reviews: all eight and the linear baseline, on any reviews in files.

    python -m analysis.sizes data.train=train.parquet data.validation=validation.csv data.test=test.parquet
    python -m analysis.sizes ... --also other.csv         # evaluate on other labelled reviews, too
    python -m analysis.sizes ... --experiments 1 4        # of the eight only these

Each experiment is trained with `profile=yelp_sample` on 1,000, 4,000, 16,000 and all training reviews, the fewer the
more epochs (`EPOCHS`); another seed draws other reviews, too. Beside the test reviews, the models are evaluated on
those of the files `--also` and on the test reviews of IMDB. The logs of the runs are kept (`logs/sizes/N/...`), the
accuracies on other reviews in `transfer.json`. Run it again to resume.
"""

import training  # noqa: F401  before torch

# isort: split
import argparse
import json
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset

from analysis.linear_baseline import IDENTITIES, run_baseline
from analysis.transfer import accuracy_facts
from config import CONFIGS, InputError, load_config
from data import load_reviews, read_file, write_text
from predict import TrainedModel
from training.command import run_command
from training.jobs import run_missing

# Training reviews (None: all) -> passes over them, and seeds.
EPOCHS = {1000: 20, 4000: 8, 16000: 4, None: 2}
SEEDS = {1000: (0, 1, 2), 4000: (0, 1, 2), 16000: (0, 1, 2), None: (0,)}
EVAL_STEPS = 500
TRANSFER = "transfer.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status of `run_command`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE", help="of all runs, as of train.py: data.train=...")
    parser.add_argument("--also", type=Path, nargs="+", default=[], metavar="FILE", help="labelled reviews, too")
    parser.add_argument("--experiments", nargs="+", default=[str(n) for n in range(9)], metavar="N", help="0 to 8")
    parser.add_argument("--output", type=Path, default=Path("logs/sizes"), help="folder of the runs")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    return run_command(lambda: train_sizes(options))


def train_sizes(options: argparse.Namespace) -> None:
    """Run what is missing: every size by the first seed, the smallest first, then by the next seed.

    Raises:
        InputError: there is no such experiment, or reviews can't be read.
        RunError, InterruptedRun: as `run_at_a_time`.
    """
    files = [_experiment_file(name) for name in options.experiments if name != "0"]
    # Files that can't be read are refused before anything is trained.
    others = {path.name: read_file(path) for path in options.also}
    others["imdb"] = _imdb_test_reviews()
    pairs = [(seed, size) for size in EPOCHS for seed in SEEDS[size]]
    for seed, size in sorted(pairs, key=lambda pair: pair[0]):
        words = [*_words(size, seed), *options.settings]
        folder = options.output / str(size or "all")
        if "0" in options.experiments:
            _run_linear_baseline(words, folder, seed, others)
        runs = [[str(path), *words, f"run_dir={folder}/{path.stem}_seed{seed}"] for path in files]
        run_missing(runs, partial(_write_transfer, others=others))


def _experiment_file(name: str) -> Path:
    paths = sorted(CONFIGS.glob(f"{name}_*.yaml"))
    if len(paths) != 1:
        raise InputError(f"--experiments {name}: no such experiment; there are 0 (the linear baseline) to 8")
    return paths[0]


def _words(size: int | None, seed: int) -> list[str]:
    """What train.py is told of each run of a size."""
    number = "null" if size is None else size
    words = ["profile=yelp_sample", f"data.max_train_samples={number}", f"train.epochs={EPOCHS[size]}"]
    # Another seed draws other reviews.
    return [*words, f"seed={seed}", f"data.split_seed={seed}", f"train.eval_steps={EVAL_STEPS}"]


def _imdb_test_reviews() -> Dataset:
    """IMDB's test split, as `read_file` gives the reviews of a file."""
    return load_reviews(load_config(None, ["profile=imdb"]).data).test.dataset


def _run_linear_baseline(words: Sequence[str], folder: Path, seed: int, others: dict[str, Dataset]) -> None:
    for whole, (key, name, _) in IDENTITIES.items():
        config = load_config(None, words)
        run_baseline(config, load_reviews(config.data), whole, folder / f"{key}_{name}_seed{seed}", others)


def _write_transfer(folder: Path, others: dict[str, Dataset]) -> None:
    """The accuracy of a run's model on each of the other reviews."""
    model = TrainedModel(folder, load_config(folder / "config.yaml").train.precision)
    accuracies = {}
    for name, reviews in others.items():
        probabilities = model.probabilities(list(reviews["text"]))
        accuracies[name] = accuracy_facts(probabilities, np.array(reviews["label"]))
    write_text(folder / TRANSFER, json.dumps(accuracies, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
