"""The report's figures, drawn from runs and from what `analysis.facts` collected of them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.facts import BYTES_PER_GIB
from analysis.logs import Run, by_key, identify, load_run
from analysis.sweep import run_folder

BASELINE_GREY = "0.45"
# Where a label can stand beside its marker, and the size of a cost panel; in points.
LABEL_OFFSETS = ((10, 8), (10, -8), (-10, 8), (-10, -8), (0, 11), (0, -11), (12, 0), (-12, 0))
PANEL_POINTS = (200, 140)
LABEL_ROUNDS = 4
# A curve leaves out evaluations that are closer to the one before, as a share of the largest distance.
MOST_CROWDED = 0.2
LINE_STYLES = ("-", "--", ":", "-.")
# Key, label and factor to the label's unit.
CURVE_PANELS = (
    ("train_loss", "training loss (nats)", 1),
    ("validation_loss", "validation loss (nats)", 1),
    ("validation_accuracy", "validation accuracy (%)", 100),
)
# Lines of a panel in `curves_by_experiment`: metric, label, line style.
LOSS_LINES = (("train_loss", "training", "--"), ("validation_loss", "validation", "-"))
ACCURACY_LINES = (("train_sample_accuracy", "training sample", "--"), ("validation_accuracy", "validation", "-"))
NUM_COLUMNS = 4
COST_PANELS = (
    ("train_seconds", "training time (s)", 1),
    ("steady_memory_bytes", "memory (GiB)", 1 / BYTES_PER_GIB),
    ("parameters", "parameters (millions)", 1e-6),
)
MEMORY_PARTS = (
    ("libraries_bytes", "interpreter and libraries"),
    ("weights_bytes", "weights"),
    ("gradients_bytes", "gradients"),
    ("optimizer_bytes", "AdamW's moments"),
    ("saved_bytes", "activations saved for the backward pass"),
)
CURVES_CAPTION = (
    "Learning curves of the experiments. A point is an evaluation; one at an epoch's end that follows another within a "
    "few steps is left out. The training loss is the mean over the reviews since the previous evaluation, with dropout "
    "on; it can exceed the validation loss, which is computed without dropout. Iterations are optimiser steps; every "
    "experiment trains on the same reviews in the same batches."
)


def learning_curves(runs: Sequence[Run]) -> Figure:
    """Training loss, validation loss and validation accuracy over training iterations, a line a run; the linear
    baseline's best validation accuracy as a dotted line."""
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 4.4), layout="constrained")
    named = identify(runs)
    styles = _line_styles(named)
    for axis, (metric, title, scale) in zip(axes, CURVE_PANELS, strict=True):
        for name, run in named.items():
            if run.summary["experiment"]:
                lines = _evenly_spaced(run.metrics)
                steps = [line["step"] for line in lines]
                values = [scale * line[metric] for line in lines]
                look = {"color": color_of(run.summary["experiment"]), "marker": "o", "markersize": 3, "linewidth": 1.5}
                axis.plot(steps, values, styles[name], label=f"{name} {run.summary['architecture']}", **look)
        axis.set(xlabel="training iteration (step)", ylabel=title, title=title[:1].upper() + title[1:])
        axis.grid(alpha=0.3)
    baselines = {name: run for name, run in named.items() if not run.summary["experiment"]}
    for name, run in list(baselines.items())[:1]:
        accuracy, label = 100 * run.summary["best_validation_accuracy"], f"{name} {run.summary['architecture']}"
        axes[2].axhline(accuracy, color=BASELINE_GREY, linestyle=":", linewidth=1.2, label=label)
    handles, labels = axes[2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def curves_by_experiment(
    runs: Sequence[Run], lines: Sequence[tuple[str, str, str]], label: str, scale: float = 1, level: float | None = None
) -> Figure:
    """Learning curves, a panel an experiment: every seed as a thin line, their mean as a thick one.

    Args:
        runs: of the eight, with all seeds.
        lines: metrics to draw in each panel; a metric that a run's log does not have, or that is null, is left out.
        label: of the vertical axis.
        scale: factor to its unit.
        level: a dotted horizontal line, in that unit, such as the linear baseline's accuracy.
    """
    groups = by_key(runs)
    figure, axes = _panels([group[0].label for group in groups.values()])
    for axis, group in zip(axes, groups.values(), strict=True):
        color = color_of(group[0].summary["experiment"])
        for metric, name, style in lines:
            _seeds_and_mean(axis, [_points(run, metric, scale) for run in group], color, style, name)
        if level is not None:
            axis.axhline(level, color=BASELINE_GREY, linestyle=":", linewidth=1.2)
    for axis in axes[::NUM_COLUMNS]:
        axis.set_ylabel(label)
    handles = [
        Line2D([], [], color="0.2", linestyle=style, label=name)
        for metric, name, style in lines
        if any(_points(run, metric, scale) for run in runs)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(lines), frameon=False)
    return figure


def _panels(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A figure with a panel of learning curves for each title, and the panels."""
    num_rows = -(-len(titles) // NUM_COLUMNS)
    figure, axes = plt.subplots(
        num_rows, NUM_COLUMNS, figsize=(9.5, 0.9 + 2.1 * num_rows), layout="constrained", sharey=True, squeeze=False
    )
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title, fontsize=8)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(titles) :]:
        axis.set_axis_off()
    # The lowest panel of each column.
    for axis in axes.flat[max(0, len(titles) - NUM_COLUMNS) : len(titles)]:
        axis.set_xlabel("step")
    return figure, list(axes.flat[: len(titles)])


def _points(run: Run, metric: str, scale: float) -> list[tuple[int, float]]:
    """Step and value of each evaluation that has the metric."""
    lines = _evenly_spaced(run.metrics)
    return [(line["step"], scale * line[metric]) for line in lines if line.get(metric) is not None]


def _seeds_and_mean(axis: Axes, curves: Sequence[list[tuple[int, float]]], color: tuple, style: str, name: str) -> None:
    """A thin line a seed that has the metric; a thick one of their mean, where all have an evaluation after the same
    steps."""
    curves = [curve for curve in curves if curve]
    if not curves:
        return
    for curve in curves:
        axis.plot(*zip(*curve, strict=True), style, color=color, linewidth=0.7, alpha=0.5)
    steps = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
    means = [np.mean([dict(curve)[step] for curve in curves]) for step in steps]
    axis.plot(steps, means, style, color=color, linewidth=2, label=name)


def _evenly_spaced(metrics: Sequence[dict]) -> list[dict]:
    """Without the evaluations at an epoch's end that follow another at once: their training loss is that of a few
    steps, and they draw a vertical line."""
    gaps = np.diff([0, *(line["step"] for line in metrics)])
    return [line for line, gap in zip(metrics, gaps, strict=True) if gap >= MOST_CROWDED * gaps.max()]


def accuracies(facts: dict) -> Figure:
    """Test accuracy of each experiment, the mean over its seeds with its 95% interval and each seed as a small point,
    and its best validation accuracy; the linear baseline's test accuracy as a dashed line."""
    runs = list(facts["runs"].values())
    figure, axis = _row_plot(len(runs))
    for row, run in enumerate(runs):
        low, high = (100 * end for end in run["test_interval"])
        color = color_of(run["experiment"])
        axis.plot([low, high], [row, row], color=color, linewidth=2)
        axis.plot([100 * accuracy for accuracy in run["test_by_seed"]], [row] * len(run["test_by_seed"]), "k.", ms=4)
        axis.plot(100 * run["test_accuracy"], row, "o", color=color, zorder=2)
        axis.plot(100 * run["best_validation_accuracy"], row, "D", markerfacecolor="white", color=color)
    if "0" in facts["runs"]:
        baseline = 100 * facts["runs"]["0"]["test_accuracy"]
        axis.axvline(baseline, color=BASELINE_GREY, linestyle="--", linewidth=1, label="linear baseline, test")
    axis.plot([], [], "o", color="0.4", label="test, with 95% CI")
    if any(len(run["test_by_seed"]) > 1 for run in runs):
        axis.plot([], [], "k.", ms=4, label="test, each seed")
    axis.plot([], [], "kD", markerfacecolor="white", label="best validation")
    axis.set_yticks(range(len(runs)), [f"{run['key']} {run['architecture']}" for run in runs])
    axis.set(xlabel="accuracy (%)", title="Validation and test accuracy")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def costs(facts: dict) -> Figure:
    """Validation accuracy over training time, memory and parameters; the frontier joins the runs that no other beats
    at the same cost or less."""
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.9), layout="constrained", sharey=True)
    for axis, (cost, title, scale) in zip(axes, COST_PANELS, strict=True):
        _cost_panel(axis, facts, cost, scale)
        axis.set(xlabel=title)
    axes[0].set(ylabel="best validation accuracy (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle("Validation accuracy over cost")
    return figure


def comparisons(facts: dict) -> Figure:
    """Differences of test accuracy between the runs, variants apart, with their 95% intervals; grey where not
    significant."""
    rows = [c for c in facts["comparisons"].values() if c["first"] in facts["runs"]]
    figure, axis = _row_plot(len(rows))
    for row, comparison in enumerate(rows):
        color = "tab:blue" if comparison["significant"] else "0.55"
        axis.plot([100 * comparison["low"], 100 * comparison["high"]], [row, row], color=color, linewidth=2)
        axis.plot(100 * comparison["difference"], row, "o", color=color)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [f"{c['first']} \N{MINUS SIGN} {c['second']}" for c in rows])
    axis.set(xlabel="difference of test accuracy (percentage points)", title="Paired differences, with 95% CI")
    return figure


def variants(facts: dict) -> Figure:
    """Mean test accuracy of each experiment (filled) and of its variants (open), with 95% intervals; the linear
    baseline's as a dashed line. An interval of more than 10 points runs off the axis and has its numbers beside it."""
    accuracies = facts["accuracies"]
    rows = dict(sorted(accuracies.items()))
    shown = [entry for entry in rows.values() if entry["high"] - entry["low"] <= 0.1] or [*rows.values()]
    left, right = 100 * min(entry["low"] for entry in shown) - 1, 100 * max(entry["high"] for entry in shown) + 1
    figure, axis = _row_plot(len(rows), row_height=0.22)
    for row, (key, entry) in enumerate(rows.items()):
        color = color_of(entry["experiment"])
        low, mean, high = (100 * entry[name] for name in ("low", "mean", "high"))
        axis.plot([low, high], [row, row], color=color, linewidth=2)
        axis.plot(mean, row, "o", color=color, markerfacecolor=color if len(key) == 1 else "white")
        if low < left:
            axis.text(left + 0.1, row - 0.15, f"{mean:.1f} ({low:.1f} to {high:.1f})", fontsize=7)
    if "0" in accuracies:
        axis.axvline(100 * accuracies["0"]["mean"], color=BASELINE_GREY, linestyle="--", linewidth=1)
    names = [f"{key} {entry['architecture']} ({len(entry['seeds'])})" for key, entry in rows.items()]
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.set(xlabel="test accuracy (%), mean over seeds (their number in brackets)", xlim=(left, right))
    return figure


def sweep_curves(facts: dict, folder: Path) -> Figure:
    """Validation accuracy over training under each learning rate that was tried, in the batch size that was chosen: a
    panel an experiment, a thin line a seed, a thick one their mean.

    Args:
        facts: of `studies.sweep_facts`.
        folder: of the trials.
    """
    trials = facts["trials"]
    rates = sorted({row["learning_rate"] for rows in trials.values() for row in rows})
    colors = dict(zip(rates, plt.get_cmap("viridis")(np.linspace(0, 0.92, len(rates))), strict=True))
    figure, axes = _panels([f"{key} {rows[0]['architecture']}" for key, rows in trials.items()])
    for axis, rows in zip(axes, trials.values(), strict=True):
        (chosen,) = (row for row in rows if row["chosen"])
        axis.set_title(f"{axis.get_title()}\nbatches of {chosen['batch_size']}", fontsize=8)
        for row in rows:
            if row["batch_size"] == chosen["batch_size"]:
                setting = (row["learning_rate"], row["batch_size"])
                runs = [load_run(run_folder(row["experiment"], setting, seed, folder)) for seed in facts["seeds"]]
                curves = [_points(run, "validation_accuracy", 100) for run in runs]
                _seeds_and_mean(axis, curves, colors[row["learning_rate"]], "-", "")
    for axis in axes[::NUM_COLUMNS]:
        axis.set_ylabel("validation accuracy (%)")
    handles = [Line2D([], [], color=color, linewidth=2, label=f"{rate:g}") for rate, color in colors.items()]
    figure.legend(handles=handles, title="peak learning rate", loc="outside lower center", ncols=6, frameon=False)
    return figure


def accuracy_by_size(facts: dict) -> Figure:
    """Mean test accuracy against the number of training reviews, with 95% intervals: a line an experiment, on its own
    test reviews; beside it a panel for each of the other sets of reviews, without intervals."""
    accuracies = facts["accuracies"]
    others = list(next(iter(accuracies.values()))[0]["also"])
    figure, axes = plt.subplots(
        1, 1 + len(others), figsize=(3.6 * (1 + len(others)), 4.6), layout="constrained", squeeze=False
    )
    for key, rows in accuracies.items():
        sizes = [row["training_reviews"] for row in rows]
        look = {"color": color_of(rows[0]["experiment"]), "marker": "o", "markersize": 4, "linewidth": 1.5}
        look["linestyle"] = "-" if len(key) == 1 else "--"
        means = np.array([100 * row["mean"] for row in rows])
        ends = [np.abs(100 * np.array([row[end] for row in rows]) - means) for end in ("low", "high")]
        axes[0][0].errorbar(sizes, means, ends, label=f"{key} {rows[0]['architecture']}", capsize=2, **look)
        for axis, name in zip(axes[0][1:], others, strict=True):
            axis.plot(sizes, [100 * row["also"][name] for row in rows], **look)
    for axis, name in zip(axes[0], ["test reviews", *others], strict=True):
        axis.set(xscale="log", xlabel="training reviews", title=f"On {name}")
        axis.set_xticks(facts["sizes"], [f"{size:,}" for size in facts["sizes"]], fontsize=8)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("accuracy (%)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def memory(facts: dict) -> Figure:
    """The calculated memory of a training step, stacked, beside the measured resident memory."""
    rows = [row for row in facts["memory"] if row["key"] in facts["runs"]]
    figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
    bottom = np.zeros(len(rows))
    for key, title in MEMORY_PARTS:
        sizes = np.array([row[key] / BYTES_PER_GIB for row in rows])
        axis.bar(range(len(rows)), sizes, bottom=bottom, label=title, width=0.6)
        bottom += sizes
    peaks = [row["measured_bytes"] / BYTES_PER_GIB for row in rows]
    means = [facts["runs"][row["key"]]["steady_memory_bytes"] / BYTES_PER_GIB for row in rows]
    axis.plot(range(len(rows)), peaks, "kx", markersize=9, markeredgewidth=2, label="measured, peak of one step")
    axis.plot(range(len(rows)), means, "k_", markersize=28, markeredgewidth=2, label="measured, mean of the full run")
    axis.set_xticks(range(len(rows)), [f"{row['key']} {row['label']}" for row in rows], rotation=25, ha="right")
    axis.set(ylabel="memory (GiB)", title="Calculated and measured memory")
    axis.grid(alpha=0.3, axis="y")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def saliency_by_position(log: dict, states: Sequence[str] = ("untrained", "trained")) -> Figure:
    """The gradient norm with respect to the token embeddings by position: a panel a state, a line a model; below it one
    of the padded reviews, where the log has them.

    Args:
        log: of `analysis.saliency`; `models` by name, each with `label`, `experiment` and (T,) values a state.
        states: columns to draw.
    """
    rows = {"": "reviews that fill all positions"}
    if "short_reviews" in log:
        rows["short_"] = "reviews of {} to {} tokens, padded".format(*log["short_lengths"])
    size = (1.5 + 5 * len(states), 1.2 + 3 * len(rows))
    figure, axes = plt.subplots(len(rows), len(states), figsize=size, layout="constrained", squeeze=False, sharey=True)
    for row, (prefix, reviews) in zip(axes, rows.items(), strict=True):
        for axis, state in zip(row, states, strict=True):
            for name, model in log["models"].items():
                values = np.array(model[prefix + state]) / max(model[prefix + state])
                color = color_of(model["experiment"])
                axis.semilogy(values, label=f"{name} {model['label']}", color=color, linewidth=1.5)
            axis.set(xlim=(0, None), ylim=(1e-9, 3))
            axis.set_title(f"{state.capitalize()} models, {reviews}", fontsize=10)
            axis.grid(alpha=0.3)
        row[0].set(ylabel="gradient norm (share of its maximum)")
    for axis in axes[-1]:
        axis.set_xlabel("position in the review (token)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def color_of(experiment: int) -> tuple:
    """An experiment's colour, the same in every figure; nearly black for the linear baseline."""
    return plt.get_cmap("tab10").colors[(experiment - 1) % 10] if experiment else (0.15, 0.15, 0.15)


def _line_styles(named: dict[str, Run]) -> dict[str, str]:
    """Full for the first run of an experiment; seeds and variants, which have its colour, are told apart by style."""
    num_runs, styles = Counter(), {}
    for name, run in named.items():
        styles[name] = LINE_STYLES[num_runs[run.summary["experiment"]] % len(LINE_STYLES)]
        num_runs[run.summary["experiment"]] += 1
    return styles


def _cost_panel(axis: Axes, facts: dict, cost: str, scale: float) -> None:
    runs = {key: run for key, run in facts["runs"].items() if run["experiment"]}
    frontier = [runs[key] for key in facts["frontiers"][cost]]
    xs = [scale * run[cost] for run in frontier]
    ys = [100 * run["best_validation_accuracy"] for run in frontier]
    axis.plot(xs, ys, color="0.6", linewidth=1.2, drawstyle="steps-post", zorder=1, label="frontier")
    if "0" in facts["runs"]:
        baseline = 100 * facts["runs"]["0"]["best_validation_accuracy"]
        axis.axhline(baseline, color=BASELINE_GREY, linestyle="--", linewidth=1, label="0 linear baseline")
    points = np.array([(scale * run[cost], 100 * run["best_validation_accuracy"]) for run in runs.values()])
    for (key, run), point, offset in zip(runs.items(), points, _label_offsets(points), strict=True):
        axis.scatter(*point, s=45, color=color_of(run["experiment"]), zorder=2, label=f"{key} {run['architecture']}")
        axis.annotate(
            key, point, textcoords="offset points", xytext=offset, ha="center", va="center", fontsize=10, zorder=3
        )
    axis.margins(x=0.1, y=0.1)
    axis.grid(alpha=0.3)


def _label_offsets(points: np.ndarray) -> list[tuple[int, int]]:
    """For each marker the offset at which its label is farthest from all markers and labels, in a few rounds.

    Args:
        points: (n, 2) positions of the markers in data units.
    """
    extent = np.ptp(points, axis=0)
    markers = (points - points.min(axis=0)) / np.where(extent > 0, extent, 1) * PANEL_POINTS
    offsets = [LABEL_OFFSETS[0]] * len(markers)
    for index in [*range(len(markers))] * LABEL_ROUNDS:
        labels = [marker + offset for marker, offset in zip(markers, offsets, strict=True)]
        obstacles = np.array([*markers, *labels[:index], *labels[index + 1 :]])
        places = markers[index] + np.array(LABEL_OFFSETS)
        distances = np.linalg.norm(places[:, None] - obstacles, axis=2).min(axis=1)
        offsets[index] = LABEL_OFFSETS[int(np.argmax(distances))]
    return offsets


def _row_plot(num_rows: int, width: float = 8.5, row_height: float = 0.36) -> tuple[Figure, Axes]:
    """A figure with a row an item, the first on top; sizes in inches."""
    figure, axis = plt.subplots(figsize=(width, row_height * num_rows + 1.3), layout="constrained")
    axis.set_ylim(num_rows - 0.5, -0.5)
    axis.grid(alpha=0.3, axis="x")
    return figure, axis
