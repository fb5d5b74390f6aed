"""Plots of a log of `analysis.robustness`: accuracy lost, accuracy by amount, what changes in the input, the attack."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.statistics import SIGNIFICANCE_LEVEL, accuracy_interval

MECHANISMS = (
    ("words_changed", "words changed (%)"),
    ("tokens_added", "tokens added (%)"),
    ("unknown_after", "[UNK] among the tokens (%)"),
    ("pushed_past_the_limit", "reviews pushed past\nthe length limit (%)"),
    ("tokens_lost", "visible tokens lost (%)"),
    ("untrained_after", "visible tokens that no\ntraining review has (%)"),
)
FIGURES = ("heat_map", "amounts", "mechanisms", "controls", "attack")
AMOUNT = "amount (share of eligible places)"


def figure_paths(output: Path) -> dict[str, Path]:
    """The plots of a log by name: files beside it that begin with its name."""
    return {name: output.with_name(f"{output.stem}_{name}.png") for name in FIGURES}


def write_figures(log: dict, output: Path) -> None:
    """The plots of a log as PNG files at `figure_paths`; those of controls and attack only if the log has them."""
    paths = figure_paths(output)
    figures = {"heat_map": heat_map(log), "amounts": amount_curves(log), "mechanisms": mechanism_bars(log)}
    if log["controls"]:
        figures["controls"] = control_points(log)
    if log["attacks"]:
        figures["attack"] = attack_curves(log)
    for name, figure in figures.items():
        # One panel for each condition makes a large plot.
        figure.savefig(paths[name], dpi=80 if name == "amounts" else 110)
        plt.close(figure)


def heat_map(log: dict, amount: float | None = None) -> Figure:
    """Accuracy lost, in points, conditions x models.

    Args:
        log: of `analysis.robustness`.
        amount: of the perturbations; default: the middle one of the log.
    """
    amount = _middle_amount(log) if amount is None else amount
    rows = {(row["condition"], row["model"]): row for row in log["rows"] if row["amount"] == amount}
    conditions = list(dict.fromkeys(condition for condition, _ in rows))
    models = [model["model"] for model in log["models"]]
    points = np.array([[100 * rows[condition, model]["drop"] for model in models] for condition in conditions])
    size = (3.4 + 0.95 * max(2, len(models)), 2.4 + 0.27 * len(conditions))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    extreme = max(1.0, float(np.abs(points).max()))
    image = axis.imshow(points, cmap="RdBu_r", vmin=-extreme, vmax=extreme, aspect="auto")
    for i, condition in enumerate(conditions):
        for j, model in enumerate(models):
            star = "*" if rows[condition, model]["adjusted_p"] < SIGNIFICANCE_LEVEL else ""
            color = "white" if abs(points[i, j]) > 0.6 * extreme else "black"
            axis.text(j, i, _signed(points[i, j]) + star, ha="center", va="center", fontsize=8, color=color)
    axis.set_xticks(range(len(models)), _labels(log).values(), rotation=35, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(conditions)), conditions)
    axis.set_title(f"Accuracy lost at amount {amount:g}\n* adjusted p < {SIGNIFICANCE_LEVEL:g}")
    figure.colorbar(image, ax=axis, label="accuracy lost (points)", aspect=40)
    figure.get_layout_engine().set(w_pad=0.1)
    return figure


def amount_curves(log: dict, conditions: Sequence[str] | None = None) -> Figure:
    """Accuracy by amount: a panel for each condition, a line for each model, from the accuracy at amount 0.

    Args:
        log: of `analysis.robustness`.
        conditions: to show; default: all.
    """
    conditions = list(conditions or dict.fromkeys(row["condition"] for row in log["rows"]))
    num_columns = min(4, len(conditions))
    num_lines = -(-len(conditions) // num_columns)
    legend_columns = max(2, num_columns)
    size = (3.3 * legend_columns, 2.4 * num_lines + 0.8 + 0.22 * len(log["models"]) / legend_columns)
    figure, axes = plt.subplots(num_lines, num_columns, figsize=size, layout="constrained", squeeze=False, sharey=True)
    for axis, condition in zip(axes.flat, conditions, strict=False):
        _draw_amounts(axis, log, condition)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy (%)")
    # The lowest panel of each column.
    for index in range(max(0, len(conditions) - num_columns), len(conditions)):
        axes.flat[index].set_xlabel(AMOUNT)
    for axis in axes.flat[len(conditions) :]:
        axis.remove()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=legend_columns, frameon=False)
    return figure


def mechanism_bars(log: dict, amount: float | None = None) -> Figure:
    """What each condition changes in the words and tokens that a model reads.

    Args:
        log: of `analysis.robustness`.
        amount: of the perturbations; default: the middle one of the log.
    """
    amount = _middle_amount(log) if amount is None else amount
    rows = {row["condition"]: row for row in log["mechanisms"] if row["amount"] == amount}
    size = (4 + 2 * len(MECHANISMS), 1.5 + 0.25 * len(rows))
    figure, axes = plt.subplots(1, len(MECHANISMS), figsize=size, layout="constrained", sharey=True)
    for axis, (key, title) in zip(axes, MECHANISMS, strict=True):
        axis.barh(list(rows), [100 * row[key] for row in rows.values()], color="tab:blue")
        axis.set_xlabel(title)
        axis.grid(alpha=0.3, axis="x")
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    figure.suptitle(f"Changes in the words and tokens at amount {amount:g}")
    figure.get_layout_engine().set(w_pad=0.1)
    return figure


def control_points(log: dict) -> Figure:
    """Accuracy that a perturbation loses in addition to its control, with 95% intervals: a panel for each perturbation
    and control, a line for each model, by amount."""
    pairs = list(dict.fromkeys((row["condition"], row["control"]) for row in log["controls"]))
    num_columns = min(4, len(pairs))
    num_lines = -(-len(pairs) // num_columns)
    size = (2.9 * max(3, num_columns), 2.5 * num_lines + 0.9)
    figure, axes = plt.subplots(num_lines, num_columns, figsize=size, layout="constrained", squeeze=False, sharey=True)
    amounts = sorted({row["amount"] for row in log["controls"]})
    for axis, (condition, control) in zip(axes.flat, pairs, strict=False):
        rows = [row for row in log["controls"] if (row["condition"], row["control"]) == (condition, control)]
        _draw_controls(axis, rows, log)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(amounts)), [f"{amount:g}" for amount in amounts])
        axis.set_title(f"{condition} − {control}".replace("_", " "), fontsize=9)
        axis.grid(alpha=0.3, axis="y")
    for axis in axes[:, 0]:
        axis.set_ylabel("lost in addition (points)")
    for index in range(max(0, len(pairs) - num_columns), len(pairs)):
        axes.flat[index].set_xlabel("amount")
    for axis in axes.flat[len(pairs) :]:
        axis.remove()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def attack_curves(log: dict) -> Figure:
    """Accuracy by the number of edited words: chosen by the attack (solid, 95% intervals) and at random (dashed)."""
    figure, axis = plt.subplots(figsize=(7.5, 5.2), layout="constrained")
    labels, colors = _labels(log), _colors(log)
    for number, attack in enumerate(log["attacks"]):
        color = colors[attack["model"]]
        greedy, random = (100 * np.array(attack[search]) for search in ("greedy", "random"))
        ends = 100 * np.array([accuracy_interval(accuracy, attack["reviews"]) for accuracy in attack["greedy"]]).T
        # The intervals of the models stand side by side.
        places = np.arange(len(greedy)) + 0.02 * (number - (len(log["attacks"]) - 1) / 2)
        axis.errorbar(places, greedy, np.abs(ends - greedy), color=color, elinewidth=1)
        axis.plot(range(len(random)), random, "--", color=color)
    styles = [Line2D([], [], color="0.3", linestyle=style) for style in ("-", "--")]
    axis.add_artist(axis.legend(styles, ["chosen by the attack", "at random"], loc="lower left", title="edited words"))
    axis.set(xlabel="number of edited words", ylabel="accuracy (%)", title="Accuracy under attack", ylim=(0, None))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    lines = [Line2D([], [], color=colors[attack["model"]]) for attack in log["attacks"]]
    names = [labels[attack["model"]] for attack in log["attacks"]]
    figure.legend(lines, names, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _draw_controls(axis: Axes, rows: Sequence[dict], log: dict) -> None:
    """The differences of one perturbation from one control; models of one amount stand side by side."""
    labels, colors = _labels(log), _colors(log)
    for number, name in enumerate(labels):
        own = [row for row in rows if row["model"] == name]
        places = [i + 0.08 * (number - (len(labels) - 1) / 2) for i in range(len(own))]
        drops = np.array([100 * row["drop"] for row in own])
        low, high = np.array([row["drop_interval"] for row in own]).T * 100
        look = {"color": colors[name], "markersize": 3, "linewidth": 1}
        axis.errorbar(places, drops, [drops - low, high - drops], fmt="o", label=labels[name], **look)


def _draw_amounts(axis: Axes, log: dict, condition: str) -> None:
    """Accuracy of every model under one condition."""
    labels, colors = _labels(log), _colors(log)
    for model in log["models"]:
        name = model["model"]
        rows = [row for row in log["rows"] if (row["condition"], row["model"]) == (condition, name)]
        amounts = [0, *(row["amount"] for row in rows)]
        percents = [100 * accuracy for accuracy in (model["accuracy"], *(row["accuracy"] for row in rows))]
        axis.plot(amounts, percents, marker="o", markersize=3, color=colors[name], label=labels[name])
    axis.set_title(condition, fontsize=10)
    axis.grid(alpha=0.3)


def _labels(log: dict) -> dict[str, str]:
    """`4 LSTM encoder-decoder + attention` of each model by name."""
    return {model["model"]: f"{model['model']} {model['label']}" for model in log["models"]}


def _colors(log: dict) -> dict[str, tuple]:
    """A colour for each model, in the order of the log; for 1 to 8 those of the learning curves."""
    palette = plt.get_cmap("tab10").colors
    return {model["model"]: palette[i % len(palette)] for i, model in enumerate(log["models"])}


def _middle_amount(log: dict) -> float:
    amounts = sorted({row["amount"] for row in log["rows"]})
    return amounts[len(amounts) // 2]


def _signed(value: float) -> str:
    """One decimal, with a true minus sign and none before zero."""
    return f"{round(value, 1) + 0.0:.1f}".replace("-", "−")
