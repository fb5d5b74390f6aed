"""The report's figures, drawn from what `evidence.py` found in the logs."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from analysis.facts import GIB, SIGNIFICANT, Run

FLOOR = "0.45"


def color_of(experiment: int) -> tuple:
    """The same colour in every figure; nearly black for the floor."""
    return plt.get_cmap("tab10").colors[(experiment - 1) % 10] if experiment else (0.15, 0.15, 0.15)


def learning_curves(runs: list[Run]) -> Figure:
    """Train loss, validation loss and validation accuracy over training iterations, a line an experiment."""
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 4.2), layout="constrained")
    panels = (
        ("train_loss", "training loss (nats)", 1),
        ("validation_loss", "validation loss (nats)", 1),
        ("validation_accuracy", "validation accuracy (%)", 100),
    )
    floors = [run for run in runs if not run.summary["experiment"]]
    for axis, (key, title, scale) in zip(axes, panels, strict=True):
        for run in runs:
            if run in floors:
                continue
            # A variant of an experiment has its colour, dashed.
            style = "-" if run.key == str(run.summary["experiment"]) else "--"
            steps = [line["step"] for line in run.metrics]
            values = [scale * line[key] for line in run.metrics]
            color = color_of(run.summary["experiment"])
            axis.plot(steps, values, style, marker="o", markersize=3, linewidth=1.5, color=color, label=run.label)
        for run in floors[:1] if key == "validation_accuracy" else []:
            axis.axhline(100 * run.summary["best_validation_accuracy"], color=FLOOR, linestyle=":", linewidth=1.2)
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


def accuracies(facts: dict) -> Figure:
    """Validation and test accuracy of each run, the test with its 95% interval; the floor as a dashed line."""
    runs = list(facts["runs"].values())
    figure, axis = plt.subplots(figsize=(8, 0.42 * len(runs) + 1.4), layout="constrained")
    for row, run in enumerate(runs):
        low, high = (100 * end for end in run["test_interval"])
        color = color_of(run["experiment"])
        axis.plot([low, high], [row, row], color=color, linewidth=2)
        axis.plot(100 * run["test_accuracy"], row, "o", color=color)
        axis.plot(100 * run["best_validation_accuracy"], row, "D", markerfacecolor="white", color=color)
    if "0" in facts["runs"]:
        axis.axvline(100 * facts["runs"]["0"]["test_accuracy"], color=FLOOR, linestyle="--", linewidth=1)
    axis.plot([], [], "ko", label="test, with 95% interval")
    axis.plot([], [], "kD", markerfacecolor="white", label="best validation")
    axis.set_yticks(range(len(runs)), [f"{run['key']} {run['name']}" for run in runs])
    axis.invert_yaxis()
    axis.set(xlabel="accuracy (%)", title="Accuracy of the runs")
    axis.grid(alpha=0.3, axis="x")
    axis.legend(loc="lower left", fontsize=8)
    return figure


# Where the labels of points that may lie close stand, in points from theirs.
LABELS = ((6, 4), (6, -12), (-12, 4), (-12, -12))
COST_AXES = (
    ("train_seconds", "training time (s)", 1),
    ("steady_memory_bytes", "memory (GiB)", GIB),
    ("parameters", "parameters (millions)", 1e6),
)


def costs(facts: dict) -> Figure:
    """Validation accuracy over training time, memory and parameters; the frontier is drawn through the runs that no
    other beats at the same cost or less."""
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.9), layout="constrained", sharey=True)
    runs = {key: run for key, run in facts["runs"].items() if run["experiment"]}
    for axis, (key, title, unit) in zip(axes, COST_AXES, strict=True):
        front = [runs[name] for name in facts["frontiers"][key]]
        xs, ys = (
            [run[what] / scale for run in front] for what, scale in ((key, unit), ("best_validation_accuracy", 0.01))
        )
        axis.plot(xs, ys, color="0.6", linewidth=1.2, drawstyle="steps-post", zorder=1)
        for number, run in enumerate(runs.values()):
            x, y = run[key] / unit, 100 * run["best_validation_accuracy"]
            axis.scatter(x, y, s=45, color=color_of(run["experiment"]), zorder=2)
            axis.annotate(run["key"], (x, y), textcoords="offset points", xytext=LABELS[number % 4], fontsize=10)
        if "0" in facts["runs"]:
            floor = 100 * facts["runs"]["0"]["best_validation_accuracy"]
            axis.axhline(floor, color=FLOOR, linestyle="--", linewidth=1)
        axis.set(xlabel=title)
        axis.margins(x=0.1, y=0.1)
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="best validation accuracy (%)")
    figure.suptitle("Accuracy and its cost")
    return figure


def comparisons(facts: dict) -> Figure:
    """Paired differences of test accuracy with their 95% intervals."""
    found = list(facts["comparisons"].values())
    figure, axis = plt.subplots(figsize=(8, 0.42 * len(found) + 1.4), layout="constrained")
    for row, c in enumerate(found):
        color = "tab:blue" if c["shown"] else "0.55"
        axis.plot([100 * c["low"], 100 * c["high"]], [row, row], color=color, linewidth=2)
        axis.plot(100 * c["difference"], row, "o", color=color)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(found)), [f"{c['first']} less {c['second']}" for c in found])
    axis.invert_yaxis()
    axis.set(xlabel="difference of test accuracy (points)", title="The same reviews, two models")
    axis.grid(alpha=0.3, axis="x")
    return figure


def reach(panels: dict[str, dict[str, Sequence[float]]]) -> Figure:
    """How strongly each position pulls at the label (`explain.reach`): a panel a title, a line a model."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3 + 5 * len(panels), 3.8), layout="constrained", squeeze=False, sharey=True
    )
    for axis, (title, rows) in zip(axes[0], panels.items(), strict=True):
        for label, pulls in rows.items():
            values = np.array(pulls) / max(pulls)
            axis.semilogy(values, label=label, color=color_of(int(label[0])), linewidth=1.5)
        axis.set(xlabel="position of the token in the review", title=title, ylim=(1e-9, 3))
        axis.grid(alpha=0.3)
    axes[0][0].set(ylabel="pull on the label, share of the largest")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    return figure


MEMORY_PARTS = (
    ("libraries_bytes", "interpreter and libraries"),
    ("weights_bytes", "weights"),
    ("gradients_bytes", "gradients"),
    ("optimizer_bytes", "AdamW's moments"),
    ("saved_bytes", "kept for the backward pass"),
)


def memory(facts: dict) -> Figure:
    """What a step keeps by arithmetic, stacked, beside the resident memory that was measured."""
    rows = [row for row in facts["memory"] if row["key"] in facts["runs"]]
    figure, axis = plt.subplots(figsize=(9, 4.4), layout="constrained")
    bottom = np.zeros(len(rows))
    for key, title in MEMORY_PARTS:
        sizes = np.array([row[key] / GIB for row in rows])
        axis.bar(range(len(rows)), sizes, bottom=bottom, label=title, width=0.6)
        bottom += sizes
    measured = {
        "measured, peak of one step": ("x", 9, [row["measured_bytes"] / GIB for row in rows]),
        "measured, full run": ("_", 28, [facts["runs"][row["key"]]["steady_memory_bytes"] / GIB for row in rows]),
    }
    for label, (marker, size, values) in measured.items():
        axis.plot(range(len(rows)), values, f"k{marker}", markersize=size, markeredgewidth=2, label=label)
    axis.set_xticks(range(len(rows)), [f"{row['key']} {row['name']}" for row in rows], rotation=20, ha="right")
    axis.set(ylabel="memory (GiB)", title="Memory by arithmetic and as measured")
    axis.grid(alpha=0.3, axis="y")
    axis.legend(fontsize=8)
    return figure


def seeds(facts: dict) -> Figure:
    """Test accuracy of each seed."""
    figure, axis = plt.subplots(figsize=(6, 0.5 * len(facts["seeds"]) + 1.6), layout="constrained")
    for row, (key, found) in enumerate(facts["seeds"].items()):
        run = facts["runs"][key]
        axis.plot([100 * a for a in found["test"]], [row] * len(found["test"]), "o", color=color_of(run["experiment"]))
        axis.plot(100 * found["test_mean"], row, "|", color="black", markersize=16)
    axis.set_yticks(range(len(facts["seeds"])), [f"{k} {facts['runs'][k]['name']}" for k in facts["seeds"]])
    axis.set_ylim(len(facts["seeds"]) - 0.5, -0.5)
    axis.set(xlabel="test accuracy (%)", title="The same experiment, other seeds")
    axis.grid(alpha=0.3, axis="x")
    return figure


# ---------------------------------------------------------------- robustness


def middle_amount(found: dict) -> float:
    """Of the amounts of a log the middle one."""
    amounts = sorted({row["amount"] for row in found["rows"]})
    return amounts[len(amounts) // 2]


def heat_map(found: dict, amount: float | None = None) -> Figure:
    """Loss of accuracy in points, models x conditions, at one amount (the middle one); a star: significant."""
    amount = amount if amount is not None else middle_amount(found)
    rows = {(r["condition"], r["model"]): r for r in found["rows"] if r["amount"] == amount}
    names, models = list(dict.fromkeys(key[0] for key in rows)), [m["model"] for m in found["models"]]
    values = np.array([[100 * rows[name, model]["drop"] for model in models] for name in names])
    figure, axis = plt.subplots(figsize=(2.5 + 1.05 * len(models), 1.6 + 0.3 * len(names)), layout="constrained")
    extreme = max(1.0, float(np.abs(values).max()))
    image = axis.imshow(values, cmap="RdBu_r", vmin=-extreme, vmax=extreme, aspect="auto")
    for i, name in enumerate(names):
        for j, model in enumerate(models):
            star = "*" if rows[name, model]["adjusted_p"] < SIGNIFICANT else ""
            color = "white" if abs(values[i, j]) > 0.6 * extreme else "black"
            axis.text(j, i, f"{values[i, j]:.1f}{star}", ha="center", va="center", fontsize=8, color=color)
    axis.set_xticks(range(len(models)), models, rotation=30, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set_title(f"Accuracy lost (points) at amount {amount:g}; * adjusted p < {SIGNIFICANT:g}")
    figure.colorbar(image, ax=axis, label="accuracy lost (points)")
    return figure


def severity_curves(found: dict, conditions: Sequence[str] | None = None) -> Figure:
    """Accuracy over the amount: a panel a condition, a line a model, from the accuracy on the texts as they are."""
    names = list(conditions or dict.fromkeys(row["condition"] for row in found["rows"]))
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.6 * columns, 2.7 * lines), layout="constrained", squeeze=False, sharey=True
    )
    for axis, name in zip(axes.flat, names, strict=False):
        for model in found["models"]:
            chosen = [r for r in found["rows"] if (r["condition"], r["model"]) == (name, model["model"])]
            values = [100 * model["accuracy"], *(100 * row["accuracy"] for row in chosen)]
            color = color_of(model["experiment"])
            axis.plot(
                [0, *(r["amount"] for r in chosen)], values, marker="o", markersize=3, color=color, label=model["model"]
            )
        axis.set(title=name, xlabel="amount", ylabel="accuracy (%)")
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(names) :]:
        axis.remove()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


MECHANISMS = (
    ("words_changed", "words changed (%)"),
    ("tokens_added", "tokens added (%)"),
    ("unknown_after", "tokens that are [UNK] (%)"),
    ("pushed_past_the_limit", "reviews pushed past the limit (%)"),
)


def mechanism_bars(found: dict, amount: float | None = None) -> Figure:
    """How each condition reaches a model, at one amount (the middle one)."""
    amount = amount if amount is not None else middle_amount(found)
    chosen = {row["condition"]: row for row in found["mechanisms"] if row["amount"] == amount}
    figure, axes = plt.subplots(
        1, len(MECHANISMS), figsize=(13, 1.2 + 0.26 * len(chosen)), layout="constrained", sharey=True
    )
    for axis, (key, title) in zip(axes, MECHANISMS, strict=True):
        axis.barh(list(chosen), [100 * row[key] for row in chosen.values()], color="tab:blue")
        axis.set(xlabel=title)
        axis.grid(alpha=0.3, axis="x")
    axes[0].set_ylim(len(chosen) - 0.4, -0.6)
    figure.suptitle(f"How the damage reaches the model, at amount {amount:g}")
    return figure


def attack_curves(found: dict) -> Figure:
    """Accuracy over the number of edited words: greedy as a full line, random as a dashed one."""
    figure, axis = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    experiments = {model["model"]: model["experiment"] for model in found["models"]}
    for result in found["attacks"]:
        color = color_of(experiments[result["model"]])
        for kind, style, label in (("greedy", "-", result["model"]), ("random", "--", None)):
            values = [100 * value for value in result[kind]]
            axis.plot(range(len(values)), values, style, color=color, label=label)
    axis.set(xlabel="words edited (full: chosen to hurt, dashed: at random)", ylabel="accuracy (%)")
    axis.set_title("Accuracy under attack")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure
