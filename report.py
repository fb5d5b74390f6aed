"""Logs of runs -> the results table and the learning curves.

    python report.py logs/quick

Reads what `train.py` left in the run folders, and nothing else.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from config import InputError
from evidence import GIB, Run, load_runs
from figures import learning_curves

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
