"""Logs of runs -> tables, figures and the written report.

    python report.py logs/quick                       # the table and the learning curves of a folder of runs
    python report.py logs/reference --written report  # the whole report: figures, tables, facts, report.pdf

Reads what `train.py` and the other commands left in the folders, and nothing else.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import typst
from matplotlib.figure import Figure

from analysis import figures
from analysis.facts import GIB, Run, facts, load_runs, read_json
from config import InputError

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "report" / "report.typ"
MEMORY = ROOT / "benchmarks" / "memory.json"
COLUMNS = (
    ("model", lambda s: s["architecture"]),
    ("parameters (M)", lambda s: f"{s['parameters'] / 1e6:.1f}"),
    ("train acc. (%)", lambda s: f"{100 * s['train_accuracy']:.1f}"),
    ("best val. acc. (%)", lambda s: f"{100 * s['best_validation_accuracy']:.1f}"),
    ("test acc. (%)", lambda s: f"{100 * s['test_accuracy']:.1f}"),
    ("train time (s)", lambda s: f"{s['train_seconds']:.0f}"),
    ("eval. time (s)", lambda s: f"{s['evaluation_seconds']:.0f}"),
    ("memory (GiB)", lambda s: f"{s['steady_memory_bytes'] / GIB:.2f}"),
)


def results_cells(runs: list[Run], bold: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the results: a row a run, its number and the best validation accuracy of the eight in `bold`,
    such as `**{}**`."""
    header = ["#", *(name for name, _ in COLUMNS)]
    best = max((run.summary["best_validation_accuracy"] for run in runs if run.is_assigned), default=None)
    rows = []
    for run in runs:
        row = [bold.format(run.key), *(cell(run.summary) for _, cell in COLUMNS)]
        if run.is_assigned and run.summary["best_validation_accuracy"] == best:
            column = header.index("best val. acc. (%)")
            row[column] = bold.format(row[column])
        rows.append(row)
    return header, rows


def results_table(runs: list[Run]) -> str:
    """Markdown: a row an experiment, its number in bold, the best validation accuracy in bold."""
    return markdown(*results_cells(runs, "**{}**"))


def results_latex(runs: list[Run]) -> str:
    """The same table as a LaTeX tabular, for which `booktabs` is needed."""
    header, rows = results_cells(runs, r"\textbf{{{}}}")
    escaped = [[re.sub("[%#&_]", r"\\\g<0>", text) for text in row] for row in [header, *rows]]
    lines = [" & ".join(row) + r" \\" for row in escaped]
    lines = [r"\begin{tabular}{ll" + "r" * (len(header) - 2) + "}", r"\toprule", lines[0], r"\midrule", *lines[1:]]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


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
        f"({data['source']}), on {'; '.join(devices)}. Train acc.: over the reviews since the evaluation before the "
        "last, dropout on. Best val. acc.: the highest of all evaluations (in bold the best of the eight); test acc.: "
        "of the model kept at that point. Times are wall-clock, evaluation apart from training. Memory: "
        f"{memory}, averaged over the steps after the first ones."
    )


# ---------------------------------------------------------------- the written report


class ClaimError(ValueError):
    """A sentence of the report that the logs do not bear."""


def write_report(logs: Path, output: Path, memory: Path = MEMORY) -> dict:
    """The whole report of a folder of logs: figures/, table.md, table.tex, answer.md, facts.json and report.pdf.

    Args:
        logs: as for `evidence.facts`.
        output: gets all of it; report.typ is copied there if it stands elsewhere.
        memory: rows of benchmarks/memory.py.

    Returns:
        The facts.

    Raises:
        InputError: a log is missing or can't be read.
        ClaimError: the text makes a claim that the logs do not bear; there is no PDF then.
    """
    found, runs = facts(logs, memory), load_runs(logs / "imdb")
    damaged = read_json(logs / "quick" / "robustness.json")
    (output / "figures").mkdir(parents=True, exist_ok=True)
    drawn = all_figures(found, runs, damaged)
    if "reach" in found:
        drawn["reach"] = reach_figure(read_json(logs / "reach.json"))
    for name, figure in drawn.items():
        save(figure, output / "figures" / name)
    (output / "table.md").write_text(results_table(runs) + "\n\n" + table_caption(runs) + "\n")
    (output / "table.tex").write_text(results_latex(runs) + "\n")
    (output / "answer.md").write_text(answer(found) + "\n")
    header, rows = results_cells(runs, "*{}*")
    found |= {"table": {"header": header, "rows": rows, "caption": table_caption(runs)}}
    (output / "facts.json").write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    template = output / TEMPLATE.name
    if template.resolve() != TEMPLATE:
        shutil.copyfile(TEMPLATE, template)
    (output / "report.pdf").unlink(missing_ok=True)
    try:
        typst.compile(template, output=output / "report.pdf", root=output)
    except typst.TypstError as error:
        raise ClaimError(f"{template}: {error}") from None
    return found


def answer(found: dict) -> str:
    """The answer in three sentences, as README leads with it; every number and every verdict from the facts."""
    best, second, scratch, fastest = found["ranking"][0], found["ranking"][1], found["best_scratch"], found["fastest"]

    def told(key: str) -> str:
        run = found["runs"][key]
        return f"experiment {key} ({run['architecture']}), {100 * run['test_accuracy']:.1f}% of the test reviews right"

    def over_seeds(first: str, second: str) -> str:
        if f"{first}-{second}" not in found["seeds_apart"]:
            return ""
        one, other = found["seeds"][first], found["seeds"][second]
        counts = len(one["test"]), len(other["test"])
        seeds = f"{counts[0]} seeds each" if counts[0] == counts[1] else f"{counts[0]} and {counts[1]} seeds"
        return f"; over {seeds} the means are {100 * one['test_mean']:.1f}% and {100 * other['test_mean']:.1f}%"

    verdicts = {key: c["verdict"] for key, c in found["comparisons"].items()}
    first = f"**Of the eight, {told(best)}, is best on the validation reviews**: {verdicts[f'{best}-{second}']}"
    first += f"{over_seeds(best, second)}."
    others = f"Of those trained from nothing the best is {told(scratch)}; the" if scratch != best else "The"
    others += (
        f" fastest is {told(fastest)}, after {found['runs'][fastest]['train_seconds'] / 60:.0f} minutes of training."
    )
    floor = found["runs"]["0"]
    last = f"A linear model on bags of the same words has {100 * floor['test_accuracy']:.1f}% right after "
    last += f"{floor['train_seconds']:.0f} seconds: {verdicts[f'{best}-0']}."
    return "\n".join([first, others, last])


def all_figures(found: dict, runs: list[Run], damaged: dict) -> dict[str, Figure]:
    """Every figure of the report for which there are logs, by name."""
    drawn = {
        "learning_curves": figures.learning_curves(runs),
        "accuracies": figures.accuracies(found),
        "costs": figures.costs(found),
        "comparisons": figures.comparisons(found),
        "memory": figures.memory(found),
        "robustness_heat_map": figures.heat_map(damaged),
        "robustness_mechanisms": figures.mechanism_bars(damaged),
        "robustness_attack": figures.attack_curves(damaged),
    }
    if found["seeds"]:
        drawn["seeds"] = figures.seeds(found)
    return drawn


def reach_figure(found: dict) -> Figure:
    """The two panels of a log of `explain.py`."""
    return figures.reach(
        {
            f"{state.capitalize()} models": {
                f"{key} {pulls['name']}": pulls[state] for key, pulls in found["models"].items()
            }
            for state in ("untrained", "trained")
        }
    )


def save(figure: Figure, path: Path) -> None:
    """PNG and PDF, the same bytes for the same figure."""
    figure.savefig(path.with_suffix(".png"), dpi=110)
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0 done, 1 a claim that the logs do not bear, 2 no usable logs."""
    parser = argparse.ArgumentParser(description="Table and learning curves of a folder of runs, or the whole report.")
    parser.add_argument("folder", type=Path, help="for example logs/quick; with --written logs/reference")
    parser.add_argument("--written", type=Path, metavar="DIR", help="write the whole report into this folder")
    options = parser.parse_args(arguments)
    try:
        if options.written:
            write_report(options.folder, options.written)
            print(f"Report: {options.written / 'report.pdf'}")
        else:
            summarize(options.folder)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ClaimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def summarize(folder: Path) -> None:
    """Print the table of a folder of runs and write its learning curves beside them."""
    runs = load_runs(folder)
    print(results_table(runs))
    print("\n" + table_caption(runs))
    save(figures.learning_curves(runs), folder / "learning_curves")
    print(f"\nLearning curves: {folder / 'learning_curves.png'}")


if __name__ == "__main__":
    sys.exit(main())
