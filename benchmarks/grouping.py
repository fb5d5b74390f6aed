"""Does grouping reviews by length change how well a model learns? Learning curves with and without, over seeds.

    python benchmarks/grouping.py [--seeds 3] [--output benchmarks/grouping]

Everything but the composition of the batches is the same; a line is the mean over the seeds, a band their range.
Writes OUTPUT.json and OUTPUT.png.
"""

from project import ROOT

# isort: split
import argparse
import json
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from config import load_config
from data import load_reviews
from models import build_model
from training.device import device_name, pick_device, prepare_process
from training.trainer import Trainer

EXPERIMENTS = ("1_lstm", "5_transformer_prenorm")
KEYS = ("step", "train_loss", "validation_loss", "validation_accuracy")


def learn(experiment: str, grouped: bool, seed: int) -> dict:
    """One run on the quick profile: its curves, and its seconds of training."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["profile=quick", f"data.group_by_length={grouped}", f"seed={seed}", "train.eval_steps=25"]
        config = load_config(ROOT / "configs" / f"{experiment}.yaml", [*overrides, f"data.cache_dir={ROOT}/.cache"])
        reviews, device = load_reviews(config.data), pick_device("auto")
        torch.manual_seed(seed)
        model = build_model(config.model, len(reviews.tokenizer), config.data.max_length).to(device)
        record = Trainer(config, model, reviews, device, Path(folder)).fit()
    curves = {key: [line[key] for line in record.history] for key in KEYS}
    return {
        "experiment": experiment,
        "grouped": grouped,
        "seed": seed,
        "device": device_name(device),
        "train_seconds": round(record.train_seconds, 1),
        "best_validation_accuracy": max(curves["validation_accuracy"]),
        **curves,
    }


def draw(runs: list[dict], path: Path) -> None:
    """Validation loss and accuracy over steps: a row an experiment, a line with and one without grouping."""
    figure, axes = plt.subplots(len(EXPERIMENTS), 2, figsize=(10, 7), layout="constrained", sharex=True)
    for row, experiment in zip(axes, EXPERIMENTS, strict=True):
        for axis, key, scale in zip(row, ("validation_loss", "validation_accuracy"), (1, 100), strict=True):
            for grouped, color in ((True, "tab:blue"), (False, "tab:orange")):
                chosen = [run for run in runs if (run["experiment"], run["grouped"]) == (experiment, grouped)]
                values = scale * np.array([run[key] for run in chosen])
                label = "grouped by length" if grouped else "not grouped"
                axis.plot(chosen[0]["step"], values.mean(axis=0), color=color, label=label)
                axis.fill_between(chosen[0]["step"], values.min(axis=0), values.max(axis=0), color=color, alpha=0.2)
            unit = "nats" if key == "validation_loss" else "%"
            axis.set(title=experiment, xlabel="training step", ylabel=f"{key.replace('_', ' ')} ({unit})")
            axis.grid(alpha=0.3)
            axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "grouping")
    options = parser.parse_args()
    prepare_process()
    runs = []
    for experiment in EXPERIMENTS:
        for seed in range(options.seeds):
            for grouped in (True, False):
                runs.append(learn(experiment, grouped, seed))
                shown = {key: runs[-1][key] for key in ("best_validation_accuracy", "train_seconds")}
                print(experiment, "grouped" if grouped else "not grouped", f"seed {seed}", shown, flush=True)
    options.output.with_suffix(".json").write_text(json.dumps(runs, indent=1) + "\n")
    draw(runs, options.output.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
