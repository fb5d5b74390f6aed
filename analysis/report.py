"""Logs of runs -> tables, figures and the written report.

    python -m analysis.report logs/quick                       # table and learning curves of a folder of runs
    python -m analysis.report logs/reference --written report  # whole report: figures, tables, facts, PDF and web page

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
import numpy as np
import typst
from matplotlib.figure import Figure

from analysis import figures, robustness_figures
from analysis.facts import BYTES_PER_GIB, collect_facts
from analysis.logs import Run, by_data, by_key, check_same_data, has_train_sample, identify, load_runs
from config import InputError, RunError, read_json
from training.command import run_command

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "report" / "report.typ"
MEMORY_LOG = ROOT / "benchmarks" / "memory.json"
# Header of a column, and its accuracies from the seeds of an experiment.
ACCURACY_COLUMNS = (
    ("train acc. (%)", lambda runs: _train_accuracies(runs)),
    ("best val. acc. (%)", lambda runs: [run.summary["best_validation_accuracy"] for run in runs]),
    ("test acc. (%)", lambda runs: [run.summary["test_accuracy"] for run in runs]),
)
# And its cell from the summary of the first.
COST_COLUMNS = (
    ("train time (s)", lambda s: f"{s['train_seconds']:.0f}"),
    ("test time (s)", lambda s: f"{s['test_seconds']:.0f}"),
    ("memory (GiB)", lambda s: f"{s['steady_memory_bytes'] / BYTES_PER_GIB:.2f}"),
    ("parameters (M)", lambda s: f"{s['parameters'] / 1e6:.1f}"),
)
BEST_COLUMN = 3
# What README's answer asks of the variants, and the comparisons that answer it.
CONTROLS = {
    "Is it attention, or pooling? A control has no attention: **1m** is **1** read at the mean over its steps, not at "
    "the first.": ("1m-1", "1m-4"),
    "What if a model may read 512 tokens in place of 256?": ("4d-4",),
}
MEMORY_KINDS = {
    "process_resident": "resident memory of the process",
    "cuda_allocated": "GPU memory allocated by torch",
}


class ClaimError(RunError):
    """A sentence of the report that the logs do not support."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status of `run_command`, 1 for a claim that the logs do not support."""
    parser = argparse.ArgumentParser(description="Table and learning curves of a folder of runs, or the whole report.")
    parser.add_argument("folder", type=Path, help="for example logs/quick; with --written logs/reference")
    parser.add_argument("--written", type=Path, metavar="DIR", help="write the whole report into this folder")
    options = parser.parse_args(arguments)
    if options.written is None:
        return run_command(lambda: report_runs(options.folder))
    return run_command(lambda: print(f"Report: {write_report(options.folder, options.written)}"))


def report_runs(folder: Path) -> None:
    """Print the table of a folder of runs and write its learning curves there; one of each for each set of reviews.

    Raises:
        InputError: a log can't be read, or two runs can't be told apart.
    """
    groups = by_data(load_runs(folder))
    # Before the first figure is written.
    tables = [results_table(runs) for runs in groups]
    if len(groups) > 1:
        print(f"The runs are on {len(groups)} different sets of reviews, which can't be compared: a table for each.\n")
    for number, (runs, table) in enumerate(zip(groups, tables, strict=True), start=1):
        path = folder / ("learning_curves" if len(groups) == 1 else f"learning_curves_{number}")
        print(table)
        print("\n" + table_caption(runs))
        _save(figures.learning_curves(runs), path)
        print(f"\nLearning curves: {path}.png" + "\n" * (number < len(groups)))


def write_report(logs: Path, output: Path, memory: Path = MEMORY_LOG) -> Path:
    """Write figures/, table.md, table.tex, answer.md, facts.json, report.pdf and report.html from a folder of logs.

    Args:
        logs: as for `facts.collect_facts`.
        output: gets all of it; report.typ is copied there if it is another folder than the template's.
        memory: the log of benchmarks/memory.py.

    Returns:
        The path of report.pdf.

    Raises:
        InputError: a log or the template is missing or can't be read, or two runs can't be told apart.
        ClaimError: the text makes a claim that the logs do not support; no PDF is written then.
    """
    if not TEMPLATE.is_file():
        raise InputError(
            f"{TEMPLATE}: the report's template is missing; an installed package has none: run this command in a clone "
            "of the repository"
        )
    facts, runs = collect_facts(logs, memory), load_runs(logs / "imdb")
    seeds = load_runs(logs / "seeds") if (logs / "seeds").is_dir() else []
    (output / "figures").mkdir(parents=True, exist_ok=True)
    for name, figure in all_figures(logs, facts, [*runs, *seeds]).items():
        _save(figure, output / "figures" / name)
    caption = table_caption(runs, seeds)
    (output / "table.md").write_text(results_table(runs, seeds) + "\n\n" + caption + "\n")
    (output / "table.tex").write_text(results_latex(runs, seeds) + "\n")
    (output / "answer.md").write_text(answer(facts) + "\n")
    header, rows = results_cells(runs, "*{}*", seeds)
    facts |= {"table": {"header": header, "rows": rows, "caption": caption}}
    (output / "facts.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return _compile(output)


def answer(facts: dict) -> str:
    """The answer as README leads with it, in Markdown: a line each on the best, the fastest, attention, the length
    limit, the linear baseline and more data."""
    best, second, fastest = facts["ranking"][0], facts["ranking"][1], facts["fastest"]
    scratch, baseline = facts["best_from_scratch"], facts["runs"]["0"]
    verdicts = {pair: comparison["verdict"] for pair, comparison in facts["comparisons"].items()}
    lines = [
        f"Of the eight, {_named(facts, best)} has the best validation accuracy, with {_test_accuracy(facts, best)}. "
        f"{verdicts[f'{best}-{second}']}."
    ]
    if scratch not in (None, best):
        lines.append(
            f"The best of those trained from scratch is {_named(facts, scratch)}: {_test_accuracy(facts, scratch)}."
        )
    minutes = facts["runs"][fastest]["train_seconds"] / 60
    lines += [
        f"The fastest to train is {_named(facts, fastest)}: {_test_accuracy(facts, fastest)} after {minutes:.0f} "
        "minutes.",
        *_control_lines(verdicts),
        f"The linear baseline (TF-IDF + logistic regression) reaches {_test_accuracy(facts, '0')} after "
        f"{baseline['train_seconds']:.0f} seconds: {verdicts[f'{best}-0']}.",
        *_sizes_lines(facts),
    ]
    return "\n".join(lines)


def _control_lines(verdicts: dict[str, str]) -> list[str]:
    """What the controls of `CONTROLS` say; nothing of one that is missing."""
    return [
        f"{question} {'. '.join(verdicts[pair] for pair in pairs)}."
        for question, pairs in CONTROLS.items()
        if set(pairs) <= verdicts.keys()
    ]


def _sizes_lines(facts: dict) -> list[str]:
    """What changes with more training reviews; nothing where it was not measured beside the linear baseline."""
    sizes = facts.get("sizes", {})
    if not sizes.get("passes_baseline"):
        return []
    from_scratch = {key: rows for key, rows in sizes["accuracies"].items() if 1 <= rows[0]["experiment"] <= 7}
    fewest, most = ([rows[end] for rows in from_scratch.values()] for end in (0, -1))
    apart = [max(row["mean"] for row in rows) - min(row["mean"] for row in rows) for rows in (fewest, most)]
    last = {key: rows[-1]["to_baseline"] for key, rows in from_scratch.items()}
    above = [f"**{key}**" for key, row in last.items() if row["significant"] and row["difference"] > 0]
    who = f"of them only {' and '.join(above)} score{'s' * (len(above) == 1)}" if above else "none of them scores"
    return [
        f"What changes with more data? On {sizes['sizes'][0]:,} Yelp reviews the best and the worst of **1** to **7** "
        f"are {100 * apart[0]:.1f} points apart, on {sizes['sizes'][-1]:,} {100 * apart[1]:.1f}; {who} "
        "significantly higher than the linear baseline there."
    ]


def results_table(runs: Sequence[Run], seeds: Sequence[Run] = ()) -> str:
    """Markdown: a row a run, its name in bold, the best validation accuracy of the eight in bold.

    Args:
        runs, seeds: as of `results_cells`.
    """
    header, rows = results_cells(runs, "**{}**", seeds)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [header, *rows]
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def results_latex(runs: Sequence[Run], seeds: Sequence[Run] = ()) -> str:
    """The same table as a LaTeX tabular; needs the package `booktabs`."""
    header, rows = results_cells(runs, r"\textbf{{{}}}", seeds)
    escaped = [[re.sub("[%#&_]", r"\\\g<0>", text) for text in row] for row in [header, *rows]]
    lines = [" & ".join(row).replace("±", r"$\pm$") + r" \\" for row in escaped]
    lines = [r"\begin{tabular}{ll" + "r" * (len(header) - 2) + "}", r"\toprule", lines[0], r"\midrule", *lines[1:]]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def results_cells(runs: Sequence[Run], bold: str, seeds: Sequence[Run] = ()) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the results: a row a run, in bold its name and the best validation accuracy of the eight.

    Args:
        runs: a row each.
        bold: how text is set in bold, such as `**{}**`.
        seeds: further seeds of the runs, over which accuracies are averaged.

    Raises:
        InputError: two runs can't be told apart, or are on different data.
    """
    check_same_data(runs)
    named, further = identify(runs), by_key(seeds)
    groups = {name: [run, *further.get(run.key, [])] for name, run in named.items()}
    best = max((_mean_validation(group) for group in groups.values() if group[0].is_assigned), default=None)
    rows = []
    for name, group in groups.items():
        row = [bold.format(name), group[0].summary["architecture"]]
        row += [_mean_cell(accuracies(group)) for _, accuracies in ACCURACY_COLUMNS]
        if group[0].is_assigned and _mean_validation(group) == best:
            row[BEST_COLUMN] = bold.format(row[BEST_COLUMN])
        rows.append([*row, *(cell(group[0].summary) for _, cell in COST_COLUMNS)])
    return ["#", "model", *(name for name, _ in (*ACCURACY_COLUMNS, *COST_COLUMNS))], rows


def table_caption(runs: Sequence[Run], seeds: Sequence[Run] = ()) -> str:
    """What the table's shorthand means, and on which data and machine the runs were made."""
    data = runs[0].summary["data"]
    devices = sorted({run.summary["device"] for run in runs})
    memory = " or ".join(MEMORY_KINDS[kind] for kind in sorted({run.summary["memory"]["kind"] for run in runs}))
    machine = f", on {'; '.join(devices)}."
    over_seeds = ""
    if seeds:
        over_seeds = f" Accuracies: means over the seeds ± their standard deviation; all else: of seed 0{machine}"
        machine = "."
    return (
        f"Trained on {data['train']:,}, validated on {data['validation']:,} and tested on {data['test']:,} reviews "
        f"({data['source']}){machine} Train acc.: {_train_accuracy_meaning(runs)}. Best val. acc.: "
        "the highest validation accuracy of all evaluations (in bold the best of the eight). Test acc.: test accuracy "
        f"of the model kept at that evaluation.{over_seeds} Times are wall-clock: of training, "
        f"without evaluation; and of one pass over the test reviews. Memory: {memory}, mean over the steps after the "
        "first ones."
    )


def all_figures(logs: Path, facts: dict, runs: Sequence[Run]) -> dict[str, Figure]:
    """Every figure of the report for which there are logs, by name."""
    robustness = read_json(logs / "robustness.json")
    assigned = sorted((run for run in runs if run.is_assigned), key=lambda run: run.key)
    drawn = {
        "losses": figures.curves_by_experiment(assigned, figures.LOSS_LINES, "loss (nats)"),
        "accuracies_by_step": figures.curves_by_experiment(
            assigned, figures.ACCURACY_LINES, "accuracy (%)", 100, _baseline_accuracy(facts)
        ),
        "accuracies": figures.accuracies(facts),
        "costs": figures.costs(facts),
        "comparisons": figures.comparisons(facts),
        "memory": figures.memory(facts),
        "robustness_heat_map": robustness_figures.heat_map(robustness),
        "robustness_mechanisms": robustness_figures.mechanism_bars(robustness),
        "robustness_attack": robustness_figures.attack_curves(robustness),
    }
    if robustness["controls"]:
        drawn["robustness_controls"] = robustness_figures.control_points(robustness)
    if facts["accuracies"].keys() - facts["runs"].keys():
        drawn["variants"] = figures.variants(facts)
    if "sweep" in facts:
        drawn["sweep"] = figures.sweep_curves(facts["sweep"], logs / "sweep")
    if "sizes" in facts:
        drawn["sizes"] = figures.accuracy_by_size(facts["sizes"])
    if "saliency" in facts:
        drawn["saliency"] = figures.saliency_by_position(read_json(logs / "saliency.json"))
    return drawn


def _baseline_accuracy(facts: dict) -> float | None:
    """The linear baseline's best validation accuracy (%), None without one."""
    return 100 * facts["runs"]["0"]["best_validation_accuracy"] if "0" in facts["runs"] else None


def _mean_validation(runs: Sequence[Run]) -> float:
    return float(np.mean([run.summary["best_validation_accuracy"] for run in runs]))


def _mean_cell(shares: Sequence[float]) -> str:
    """`85.4`, or of several `85.4 ± 0.6`, in percent."""
    mean = f"{100 * np.mean(shares):.1f}"
    return mean if len(shares) == 1 else f"{mean} ± {100 * np.std(shares, ddof=1):.1f}"


def _train_accuracies(runs: Sequence[Run]) -> list[float]:
    """At the end of training: on the fixed sample, of the seeds that have one; the running ones where none has."""
    on_sample = [run.summary["train_sample_accuracy"] for run in runs if has_train_sample(run)]
    return on_sample or [run.summary["train_accuracy"] for run in runs]


def _train_accuracy_meaning(runs: Sequence[Run]) -> str:
    on_sample = "at the end of training, on a fixed sample of the training reviews, without dropout"
    running = "over the training reviews between the last two evaluations, with dropout on"
    has_sample = {has_train_sample(run) for run in runs if run.summary["experiment"]}
    if len(has_sample) > 1:
        return f"{on_sample}, of the seeds evaluated on one; else {running}"
    return on_sample if True in has_sample else running


def _named(facts: dict, key: str) -> str:
    return f"**{key}** ({facts['runs'][key]['architecture']})"


def _test_accuracy(facts: dict, key: str) -> str:
    """That of the one run, or the mean over seeds."""
    num_seeds = len(facts["accuracies"][key]["by_seed"])
    over = f" (mean of {num_seeds} seeds)" if num_seeds > 1 else ""
    return f"{100 * facts['accuracies'][key]['mean']:.1f}% test accuracy{over}"


def _save(figure: Figure, path: Path) -> None:
    """PNG and PDF, the same bytes for the same figure."""
    figure.savefig(path.with_suffix(".png"), dpi=110)
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
    plt.close(figure)


def _compile(output: Path) -> Path:
    """report.pdf and report.html from the template and the facts in `output`; ClaimError where the template stops the
    build."""
    template, pdf = output / TEMPLATE.name, output / "report.pdf"
    if template.resolve() != TEMPLATE:
        for path in (TEMPLATE, TEMPLATE.with_name("references.yml")):
            if path.is_file():
                shutil.copyfile(path, output / path.name)
    page = output / "report.html"
    pdf.unlink(missing_ok=True)
    page.unlink(missing_ok=True)
    try:
        typst.compile(template, output=pdf, root=output)
        typst.compile(template, output=page, root=output, format="html")
    except typst.TypstError as error:
        raise ClaimError(f"{template}: {error}") from None
    return pdf


if __name__ == "__main__":
    sys.exit(main())
