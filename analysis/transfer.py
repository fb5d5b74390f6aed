"""Models carried over: what they reach on other reviews than those of their training, without any further training.

python transfer.py RUN_DIR [RUN_DIR ...] --data reviews.csv --output transfer.json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.logs import load_run
from analysis.statistics import share_interval
from config import InputError
from data import read_file
from predict import predict
from training.checkpoint import write_text
from training.device import device_name, pick_device


def carry_over(run_dirs: Sequence[Path], data: Path) -> dict:
    """Accuracy of each run's model on the labelled reviews of a file.

    Args:
        run_dirs: folders of complete runs with their models.
        data: labelled reviews, in any form that `data.read_file` takes.

    Returns:
        `data`, `reviews`, `positive` (share), `device`, and `models`: by key of the run its name, its accuracy, the
        accuracy's 95% interval, and the share of reviews that it calls positive.

    Raises:
        InputError: the reviews or a model can't be read.
    """
    reviews = read_file(data)
    texts, labels = list(reviews["text"]), np.array(reviews["label"])
    found = {}
    for run_dir in run_dirs:
        run = load_run(run_dir)
        positive = predict(run_dir, texts) >= 0.5
        hits = int((positive == labels).sum())
        found[run.key] = {
            "name": run.summary["name"],
            "accuracy": hits / len(labels),
            "interval": share_interval(hits, len(labels)),
            "called_positive": float(positive.mean()),
        }
    return {
        "data": data.name,
        "reviews": len(labels),
        "positive": float(labels.mean()),
        "device": device_name(pick_device("auto")),
        "models": found,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0 done, 2 for input that can't be used."""
    parser = argparse.ArgumentParser(description="Accuracy of trained models on other reviews.")
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="folders of complete runs")
    parser.add_argument("--data", type=Path, required=True, help="labelled reviews: .csv, .json, .jsonl or .parquet")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    options = parser.parse_args(arguments)
    try:
        found = carry_over(options.run_dirs, options.data)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for key, model in found["models"].items():
        low, high = (100 * end for end in model["interval"])
        print(f"{key} {model['name']}: {100 * model['accuracy']:.1f}% ({low:.1f} to {high:.1f})")
    write_text(options.output, json.dumps(found, indent=1, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
