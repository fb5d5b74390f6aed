"""Logs of runs -> the results table and the learning curves.

    python report.py logs/quick

Reads what `train.py` left in the run folders, and nothing else.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from config import InputError

GIB = 2**30


@dataclass(frozen=True)
class Run:
    """A complete run: its summary and its evaluations in order."""

    folder: Path
    summary: dict
    metrics: list[dict]

    @property
    def label(self) -> str:
        """`4 lstm_attention`"""
        return f"{self.summary['experiment']} {self.summary['name']}"


def load_runs(folder: str | Path) -> list[Run]:
    """The complete runs directly inside a folder, sorted by experiment.

    Raises:
        InputError: there is none, or a log can't be read.
    """
    runs = [load_run(path.parent) for path in sorted(Path(folder).glob("*/summary.json"))]
    if not runs:
        raise InputError(f"{folder}: no complete run (*/summary.json); train some first, for example with `make run`")
    return sorted(runs, key=lambda run: (run.summary["experiment"], run.summary["seed"]))


def load_run(folder: Path) -> Run:
    """One run folder."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text())
        path = folder / "metrics.jsonl"
        metrics = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as a log of train.py ({error})") from None
    return Run(folder, summary, metrics)


COLUMNS = (
    ("#", lambda s: str(s["experiment"])),
    ("model", lambda s: s["architecture"]),
    ("parameters (M)", lambda s: f"{s['parameters'] / 1e6:.1f}"),
    ("train acc. (%)", lambda s: f"{100 * s['train_accuracy']:.1f}"),
    ("best val. acc. (%)", lambda s: f"{100 * s['best_validation_accuracy']:.1f}"),
    ("test acc. (%)", lambda s: f"{100 * s['test_accuracy']:.1f}"),
    ("train time (s)", lambda s: f"{s['train_seconds']:.0f}"),
    ("eval. time (s)", lambda s: f"{s['evaluation_seconds']:.0f}"),
    ("memory (GiB)", lambda s: f"{s['steady_memory_bytes'] / GIB:.2f}"),
)


def results_table(runs: list[Run]) -> str:
    """Markdown: a row an experiment, its number in bold, the best validation accuracy in bold."""
    rows = [[cell(run.summary) for _, cell in COLUMNS] for run in runs]
    best = max(run.summary["best_validation_accuracy"] for run in runs)
    column = [name for name, _ in COLUMNS].index("best val. acc. (%)")
    for row, run in zip(rows, runs, strict=True):
        row[0] = f"**{row[0]}**"
        if run.summary["best_validation_accuracy"] == best:
            row[column] = f"**{row[column]}**"
    return markdown([name for name, _ in COLUMNS], rows)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns line up as text, too."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [header, *rows]
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def table_caption(runs: list[Run]) -> str:
    """What the table's shorthand means, and on what the runs were made."""
    data = runs[0].summary["data"]
    devices = sorted({run.summary["device"] for run in runs})
    kinds = {
        "process_resident": "resident memory of the process",
        "cuda_allocated": "GPU memory that torch had allocated",
    }
    memory = " or ".join(kinds[kind] for kind in sorted({run.summary["memory"]["kind"] for run in runs}))
    return (
        f"Trained on {data['train']:,}, validated on {data['validation']:,} and tested on {data['test']:,} reviews "
        f"({data['source']}), on {', '.join(devices)}. Train acc.: over the reviews since the evaluation before the "
        "last, dropout on. Best val. acc.: the highest of all evaluations (in bold the best model); test acc.: of the "
        "model kept at that point. Times are wall-clock, evaluation apart from training. Memory: "
        f"{memory}, averaged over the steps after the first ones."
    )


def learning_curves(runs: list[Run]) -> Figure:
    """Train loss, validation loss and validation accuracy over training iterations, a line an experiment."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.8), layout="constrained")
    panels = (
        ("train_loss", "training loss (nats)", 1),
        ("validation_loss", "validation loss (nats)", 1),
        ("validation_accuracy", "validation accuracy (%)", 100),
    )
    colors = plt.get_cmap("tab10").colors
    for axis, (key, title, scale) in zip(axes, panels, strict=True):
        for run in runs:
            color = colors[(run.summary["experiment"] - 1) % len(colors)]
            steps = [line["step"] for line in run.metrics]
            values = [scale * line[key] for line in run.metrics]
            axis.plot(steps, values, marker="o", markersize=3, linewidth=1.5, color=color, label=run.label)
        axis.set(xlabel="training iteration (step)", ylabel=title, title=title[:1].upper() + title[1:])
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


CURVES_CAPTION = (
    "Learning curves of the experiments. A point is an evaluation. Training loss: mean over the reviews seen since "
    "the evaluation before, with dropout on, so it may stand above the validation loss, which is without. Iterations "
    "are steps of the optimiser; every experiment sees the same reviews in the same batches."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of a folder of runs and write its learning curves beside them."""
    parser = argparse.ArgumentParser(description="Results table and learning curves of a folder of runs.")
    parser.add_argument("folder", type=Path, help="for example logs/quick")
    folder = parser.parse_args(arguments).folder
    try:
        runs = load_runs(folder)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(results_table(runs))
    print("\n" + table_caption(runs))
    figure = learning_curves(runs)
    for suffix in ("png", "pdf"):
        figure.savefig(folder / f"learning_curves.{suffix}", dpi=120)
    plt.close(figure)
    print(f"\nLearning curves: {folder / 'learning_curves.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
