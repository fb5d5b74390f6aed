"""Zero-shot transfer: accuracy of trained models on reviews of another source, without further training.

python -m analysis.transfer RUN_DIR [RUN_DIR ...] --data reviews.csv --output transfer.json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from analysis.logs import Run, files_of_runs, identify, load_run
from analysis.statistics import check_classes, is_correct, share_interval
from data import read_file, warn_of_few_reviews, write_text
from predict import TrainedModel, predicted_labels
from training.command import check_output, run_command
from training.device import device_name, pick_device

# Reviews after which the progress bar moves.
REVIEWS_AT_A_TIME = 512


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status of `run_command`."""
    parser = argparse.ArgumentParser(description="Zero-shot transfer: accuracy of trained models on other reviews.")
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="folders of complete runs")
    parser.add_argument(
        "--data", type=Path, required=True, help="labelled reviews, a file or a folder: see docs/data.md"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    options = parser.parse_args(arguments)
    return run_command(lambda: _transfer_and_write(options.run_dirs, options.data, options.output))


def zero_shot_transfer(run_dirs: Sequence[Path], data: Path) -> dict:
    """Accuracy of each run's model on the labelled reviews of a file.

    Args:
        run_dirs: folders of complete runs with their models.
        data: labelled reviews of both classes, in any form that `data.read_file` takes.

    Returns:
        `data`, `reviews` (how many), `positive` (share), `device`, and `models`: by name (`analysis.logs.identify`) the
        label, the accuracy with its 95% interval, and the share of reviews predicted positive.

    Raises:
        InputError: the reviews or a model can't be read, or two runs can't be told apart.
    """
    runs = identify([load_run(run_dir) for run_dir in run_dirs])
    reviews = read_file(data)
    texts, labels = list(reviews["text"]), np.array(reviews["label"])
    check_classes(labels, str(data))
    warn_of_few_reviews(str(data), labels)
    return {
        "data": data.name,
        "reviews": len(labels),
        "positive": float(labels.mean()),
        "device": device_name(pick_device("auto")),
        "models": {name: _evaluate_run(run, texts, labels) for name, run in runs.items()},
    }


def _evaluate_run(run: Run, texts: Sequence[str], labels: np.ndarray) -> dict:
    model, parts = TrainedModel(run.folder), range(0, len(texts), REVIEWS_AT_A_TIME)
    probabilities = np.concatenate(
        [
            model.probabilities(texts[start : start + REVIEWS_AT_A_TIME])
            for start in tqdm(parts, desc=run.label, leave=False, disable=None)
        ]
    )
    return {"label": run.summary["architecture"], **accuracy_facts(probabilities, labels)}


def accuracy_facts(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    """Accuracy of probabilities of positive, (n,), with its 95% interval, and the share predicted positive."""
    num_correct = int(is_correct(probabilities, labels).sum())
    return {
        "accuracy": num_correct / len(labels),
        "interval": share_interval(num_correct, len(labels)),
        "share_predicted_positive": float(predicted_labels(probabilities).mean()),
    }


def _transfer_and_write(run_dirs: Sequence[Path], data: Path, output: Path) -> None:
    check_output(output, data, *files_of_runs(run_dirs))
    log = zero_shot_transfer(run_dirs, data)
    for name, model in log["models"].items():
        low, high = (100 * end for end in model["interval"])
        print(f"{name} {model['label']}: {100 * model['accuracy']:.1f}% (95% CI {low:.1f}% to {high:.1f}%)")
    write_text(output, json.dumps(log, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
