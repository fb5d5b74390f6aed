"""Learning rate and batch size of each experiment, chosen by the same budget of trials.

    python -m analysis.sweep                          # or: make sweep; hours on two cores; run it again to resume
    python -m analysis.sweep --experiments 1 4

A trial trains on 10,000 IMDB reviews for two epochs in bf16, and counts by its best accuracy on 1,000 validation
reviews. The rule, fixed before the first trial: each experiment gets the grid below by two seeds; the setting with the
highest mean over the seeds is best, at a tie the lower learning rate, then the smaller batch. Where the best stands at
the edge of the grid, one more rate is tried there, until it does not.

A second stage was added when the first full runs with these settings did worse than earlier ones, which had lower rates
and one epoch more. A hypothesis: a schedule three times as long spends more steps near its peak, so that a lower rate
suits it. Two finalists of each experiment, the best setting and the best one with a lower learning rate, are trained at
full length by one seed. The one with the higher best validation accuracy is chosen. The test split is not looked at in
either stage. Writes `trials.json` to the output folder: all trials and the choices. What the profile imdb uses, and
why, is in the report.
"""

import training  # noqa: F401  before torch

# isort: split
import argparse
import json
import logging
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.logs import load_run
from config import CONFIGS, InputError, load_config
from data import write_text
from training.command import run_command
from training.jobs import run_missing

log = logging.getLogger(__name__)

LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
# What the grid can be extended by, on the same scale.
RATES = tuple(float(f"{digit}e{power}") for power in range(-8, 3) for digit in (1, 3))
BATCH_SIZES, SEEDS = (32, 64), (0, 1)
EVALUATIONS = 4
NUM_REVIEWS, EPOCHS = 10_000, 2
TRIAL = (
    "profile=imdb",
    "train.train_sample=null",
    "train.precision=bf16",
    f"train.epochs={EPOCHS}",
    f"data.max_train_samples={NUM_REVIEWS}",
    "data.max_eval_samples=1000",
)
# The second stage: all reviews, and the epochs that the assignment asks for at least; 8 has two, of its own.
FULL_SEED, FULL_EPOCHS = 1, 3
REVIEWS_PER_EVALUATION = 8000
FULL = ("profile=imdb", "train.precision=bf16", f"seed={FULL_SEED}")
# A learning rate and a batch size.
Setting = tuple[float, int]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status of `run_command`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", default=[str(n) for n in range(1, 9)], metavar="N")
    parser.add_argument("--output", type=Path, default=Path("logs/sweep"), help="folder of the runs and trials.json")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    return run_command(lambda: sweep(options.experiments, options.output))


def sweep(experiments: Sequence[str], output: Path) -> None:
    """Run the trials that are missing, extend the grids, train the finalists, and write the choices.

    Raises:
        InputError: there is no such experiment.
        RunError, InterruptedRun: as `run_at_a_time`.
    """
    grids = {_experiment_file(name): list(LEARNING_RATES) for name in experiments}
    while True:
        trials = [
            (path, (rate, size), seed)
            for path, rates in grids.items()
            for rate in rates
            for size in BATCH_SIZES
            for seed in SEEDS
        ]
        for path in grids:
            run_missing([_words(*trial, output) for trial in trials if trial[0] == path])
        accuracies = _accuracies(trials, output)
        edges = {path: _beyond(choose(accuracies[path])[0], rates) for path, rates in grids.items()}
        if not any(edges.values()):
            break
        for path, rate in edges.items():
            if rate:
                log.info("%s: the best rate is at the grid's edge; %g is added", path.stem, rate)
                grids[path] = sorted([*grids[path], rate])
    # So that the trials are there before the long runs end.
    _write(output / "trials.json", accuracies, {})
    finals = {}
    for path in grids:
        settings = finalists(accuracies[path])
        run_missing([_full_words(path, setting, output) for setting in settings])
        runs = [load_run(run_folder(path.stem, setting, FULL_SEED, output / "full")) for setting in settings]
        finals[path] = {
            setting: [run.summary["best_validation_accuracy"]] for setting, run in zip(settings, runs, strict=True)
        }
    _write(output / "trials.json", accuracies, finals)


def finalists(accuracies: dict[Setting, list[float]]) -> list[Setting]:
    """The best setting, and the best one with a lower learning rate than it has."""
    best = choose(accuracies)
    return [best, choose({setting: values for setting, values in accuracies.items() if setting[0] < best[0]})]


def choose(accuracies: dict[Setting, list[float]]) -> Setting:
    """The setting of the highest mean; at a tie that of the lower learning rate, then of the smaller batch."""
    return min(accuracies, key=lambda setting: (-round(float(np.mean(accuracies[setting])), 6), *setting))


def run_folder(experiment: str, setting: Setting, seed: int, output: Path) -> Path:
    """The folder of one trial.

    Args:
        experiment: `1_lstm`, the name of its file.
        setting: learning rate and batch size.
        seed: of the trial.
        output: of the sweep.
    """
    return output / f"{experiment}_lr{setting[0]:g}_b{setting[1]}_seed{seed}"


def _beyond(rate: float, rates: Sequence[float]) -> float | None:
    """The rate to add where the best one is the lowest or highest of the grid."""
    position = RATES.index(rate)
    if rate == min(rates):
        return RATES[position - 1]
    return RATES[position + 1] if rate == max(rates) else None


def _experiment_file(name: str) -> Path:
    paths = [*CONFIGS.glob(f"{name}_*.yaml"), *CONFIGS.glob(f"variants/{name}_*.yaml")]
    if len(paths) != 1:
        raise InputError(f"--experiments {name}: no such experiment; there are 1 to 8, and configs/variants")
    return paths[0]


def _words(path: Path, setting: Setting, seed: int, output: Path) -> list[str]:
    """What train.py is told of a trial."""
    rate, size = setting
    steps = EPOCHS * -(-NUM_REVIEWS // size)
    return [
        str(path),
        *TRIAL,
        f"train.learning_rate={rate:g}",
        f"train.batch_size={size}",
        f"train.eval_steps={steps // EVALUATIONS}",
        f"seed={seed}",
        f"run_dir={run_folder(path.stem, setting, seed, output)}",
    ]


def _full_words(path: Path, setting: Setting, output: Path) -> list[str]:
    """What train.py is told of a finalist."""
    rate, size = setting
    epochs = [] if load_config(path).model.backbone == "bert" else [f"train.epochs={FULL_EPOCHS}"]
    return [
        str(path),
        *FULL,
        *epochs,
        f"train.learning_rate={rate:g}",
        f"train.batch_size={size}",
        f"train.eval_steps={REVIEWS_PER_EVALUATION // size}",
        f"run_dir={run_folder(path.stem, setting, FULL_SEED, output / 'full')}",
    ]


def _accuracies(trials: Sequence[tuple[Path, Setting, int]], output: Path) -> dict[Path, dict[Setting, list[float]]]:
    """Best validation accuracies of each setting of each experiment, one a seed."""
    accuracies: dict[Path, dict[Setting, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path, setting, seed in trials:
        run = load_run(run_folder(path.stem, setting, seed, output))
        accuracies[path][setting].append(run.summary["best_validation_accuracy"])
    return accuracies


def _write(
    path: Path, accuracies: dict[Path, dict[Setting, list[float]]], finals: dict[Path, dict[Setting, list[float]]]
) -> None:
    stages = {"trials": accuracies, "finals": finals}
    rows = {stage: _rows(by_file) for stage, by_file in stages.items()}
    content = {"trial": TRIAL, "seeds": SEEDS, "full": FULL, "full_seed": FULL_SEED, **rows}
    write_text(path, json.dumps(content, indent=1) + "\n")
    for row in rows["finals"]:
        if row["chosen"]:
            accuracy = 100 * row["best_validation_accuracy"][0]
            setting = (row["learning_rate"], row["batch_size"])
            log.info("%-24s rate %g, batch %d: %.1f%%", row["experiment"], *setting, accuracy)


def _rows(accuracies: dict[Path, dict[Setting, list[float]]]) -> list[dict]:
    """A row a setting of an experiment; the best one is chosen."""
    return [
        {
            "experiment": file.stem,
            "learning_rate": rate,
            "batch_size": size,
            "best_validation_accuracy": values,
            "chosen": choose(settings) == (rate, size),
        }
        for file, settings in accuracies.items()
        for (rate, size), values in settings.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
