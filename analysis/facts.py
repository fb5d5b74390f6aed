"""What the logs say in numbers: costs and accuracies of the runs, comparisons, seeds, memory, robustness, saliency.

Everything is computed from what the commands left (`summary.json`, `metrics.jsonl`, `test_predictions.csv` and the
JSON logs); the written report, README and the notebook take their numbers from `collect_facts`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from analysis.comparisons import compare_pairs
from analysis.logs import Run, by_key, check_same_data, has_train_sample, identify, load_runs
from analysis.statistics import SIGNIFICANCE_LEVEL, accuracy_interval
from analysis.studies import mean_accuracy, size_facts, sweep_facts
from config import InputError, load_config, read_json

BYTES_PER_GIB = 2**30
# The pairs that the report asks about: each experiment against the one that it builds on.
ASSIGNED_PAIRS = (("2", "1"), ("3", "2"), ("4", "3"), ("6", "5"), ("7", "5"), ("8", "5"))
# With attention against every LSTM without it, not only the one of which it is the next step.
ATTENTION_PAIRS = (("4", "2"), ("4", "1"))
BASELINE_PAIRS = (("8t", "0"), ("0w", "0"), ("4d", "0d"))
# Is it attention or pooling? The assigned attention against every other way to read the steps, and without an LSTM.
POOLING_PAIRS = (("1e", "4"), *((experiment + kind, "4") for experiment in "123" for kind in "lmxa"))
COST_KEYS = ("train_seconds", "steady_memory_bytes", "parameters")
SUMMARY_KEYS = ("experiment", "architecture", "parameters", "train_seconds", "steady_memory_bytes", "device")
HYPER_PARAMETERS = (
    *("learning_rate", "lr_scheduler", "warmup_ratio", "batch_size", "epochs", "weight_decay", "adam_eps"),
    *("max_grad_norm", "precision"),
)
ROBUSTNESS_KEYS = (
    *("accuracy", "drop", "adjusted_p", "flip_rate", "probability_change"),
    *("num_targeted", "share_lowered", "share_flipped", "uncut"),
)
# Tokens at either end of a review that count as its beginning and its end.
EDGE_TOKENS = 32
# Validation accuracy to which training is timed.
LEVEL = 0.85
# Validation accuracy at which a model has begun to learn; both classes are equally frequent.
START_LEVEL = 0.6


def collect_facts(folder: Path, memory: Path) -> dict:
    """All that the report says in numbers, as JSON.

    Args:
        folder: holds `imdb/` (the comparison) and `robustness.json`; where they were made also `seeds/`,
            `ablation/`, `sizes/`, `sizes_tried/`, `sweep/`, `imdb_h200/`, `transfer.json` and `saliency.json`.
        memory: the log of benchmarks/memory.py.

    Raises:
        InputError: a log that is needed is missing or can't be read, or two runs can't be told apart.
    """
    runs = load_runs(folder / "imdb")
    seeds, variants = (_load_optional(folder / name) for name in ("seeds", "ablation"))
    all_runs = [*runs, *seeds, *variants]
    facts = {
        **describe(runs, [*seeds, *variants]),
        "accuracies": {key: mean_accuracy(group) for key, group in by_key(all_runs).items()},
        "variants": {key: run_facts(group) for key, group in by_key(variants).items()},
        "curves": {key: curves_by_seed(group) for key, group in by_key(all_runs).items() if key[0] != "0"},
        "memory": read_json(memory)["rows"],
        "robustness": robustness_facts(read_json(folder / "robustness.json")),
        "settings": {run.key: settings_of(run) for run in runs if run.summary["experiment"]},
        "gpu": gpu_facts(_load_optional(folder / "imdb_h200")),
    }
    return facts | _optional_facts(folder)


def describe(runs: Sequence[Run], further: Sequence[Run] = ()) -> dict:
    """What the runs of one folder say: metrics, ranking of the eight, comparisons, cost frontiers (variants included);
    the linear baseline where it is among them.

    Args:
        runs: one of each key.
        further: seeds of them, over which accuracies are averaged, and variants, which enter the comparisons only.

    Raises:
        InputError: two runs share a key, none is of the eight, predictions are missing, or the runs are on different
            data.
    """
    check_same_data(runs)
    one_each = _one_run_per_key(runs)
    groups = by_key(list(identify([*runs, *further]).values()))
    if not any(run.is_assigned for run in runs):
        raise InputError(f"{runs[0].folder.parent}: none of the eight experiments is among the runs; train one first")
    described = {key: run_facts(groups[key]) for key in one_each}
    neural = [metrics for metrics in described.values() if metrics["experiment"]]
    assigned = [described[key] for key, run in one_each.items() if run.is_assigned]
    ranking = [m["key"] for m in sorted(assigned, key=lambda m: -m["best_validation_accuracy"])]
    from_scratch = [key for key in ranking if described[key]["experiment"] < 8]
    names = {key: group[0].summary["architecture"] for key, group in groups.items()}
    variants = [*((key, key[0]) for key in groups if len(key) > 1), *POOLING_PAIRS]
    comparisons = compare_pairs(groups, _report_pairs(ranking, from_scratch), variants)
    return {
        "runs": described,
        "data": one_each[ranking[0]].summary["data"],
        "devices": sorted({run.summary["device"] for run in [*runs, *further]}),
        "ranking": ranking,
        "best_from_scratch": next(iter(from_scratch), None),
        "fastest": min(assigned, key=lambda m: m["train_seconds"])["key"],
        "comparisons": {
            pair: {**asdict(c), "significant": c.is_significant, "verdict": c.verdict(names)}
            for pair, c in comparisons.items()
        },
        "frontiers": {cost: cost_frontier(neural, cost) for cost in COST_KEYS},
    }


def run_facts(runs: Sequence[Run]) -> dict:
    """The metrics of an experiment that the report mentions.

    Args:
        runs: its seeds. Accuracies are means over them, the test accuracy with a 95% interval over seeds and reviews;
            costs are those of the first.
    """
    summary, accuracies = runs[0].summary, mean_accuracy(runs)
    return {
        "key": runs[0].key,
        **{key: summary[key] for key in SUMMARY_KEYS},
        "epochs": summary.get("epochs"),
        "frozen_features_seconds": summary.get("frozen_features_seconds", 0.0),
        "test_seconds": summary.get("test_seconds"),
        "num_reviews": {split: summary["data"][split] for split in ("train", "validation", "test")},
        "best_validation_accuracy": accuracies["validation_mean"],
        "test_accuracy": accuracies["mean"],
        "test_interval": (accuracies["low"], accuracies["high"]),
        "test_by_seed": accuracies["by_seed"],
    }


def curve_facts(run: Run) -> dict:
    """How a learning curve behaves.

    Returns:
        `validation_loss_rise` (nats): last validation loss minus its minimum. `train_accuracy` at the end: that of the
        fixed training sample, or of a run without one, that since the evaluation before, with dropout on.
        `accuracy_gap`: it minus the validation accuracy at the end. `largest_accuracy_drop`: of validation accuracy
        from one evaluation to the next. `start_step_share`: share of the steps after which the validation accuracy was
        first at least `START_LEVEL`, None if it never was; `best_step_share`: after which the best model was reached;
        `seconds_to_best`: of training until then; `seconds_to_level`: until the first evaluation with a validation
        accuracy of at least `LEVEL`, None if there is none. Also the validation accuracy of the first evaluation and
        the number of evaluations.

    Raises:
        InputError: there is no evaluation after the best step of `summary.json`.
    """
    losses = [line["validation_loss"] for line in run.metrics]
    accuracies = [line["validation_accuracy"] for line in run.metrics]
    drops = [before - after for before, after in zip(accuracies, accuracies[1:], strict=False)]
    last, best_step = run.metrics[-1], run.summary["best_validation_step"]
    best = [line for line in run.metrics if line["step"] == best_step]
    if not best:
        raise InputError(
            f"{run.folder / 'metrics.jsonl'}: no evaluation after step {best_step}, the best one in summary.json"
        )
    train_accuracy = last["train_sample_accuracy" if has_train_sample(run) else "train_accuracy"]
    start = _first_reaching(run, START_LEVEL)
    return {
        "validation_loss_rise": losses[-1] - min(losses),
        "train_accuracy": train_accuracy,
        "accuracy_gap": train_accuracy - accuracies[-1],
        "largest_accuracy_drop": max([0.0, *drops]),
        "start_step_share": start["step"] / last["step"] if start else None,
        "best_step_share": best_step / last["step"],
        "seconds_to_best": best[0]["train_seconds"],
        "seconds_to_level": _first_reaching(run, LEVEL).get("train_seconds"),
        "first_validation_accuracy": accuracies[0],
        "num_evaluations": len(accuracies),
    }


def _first_reaching(run: Run, level: float) -> dict:
    """The first evaluation with at least that validation accuracy; empty if there is none."""
    return next((line for line in run.metrics if line["validation_accuracy"] >= level), {})


def curves_by_seed(runs: Sequence[Run]) -> dict[str, list]:
    """`curve_facts` of each seed of an experiment, by name of the metric; the accuracy on training reviews and the gap
    of those seeds only that have a fixed training sample, where some have one: of `train_sample_seeds`."""
    by_seed = [curve_facts(run) for run in runs]
    curves = {name: [facts[name] for facts in by_seed] for name in by_seed[0]}
    curves["train_sample_seeds"] = [run.summary["seed"] for run in runs if has_train_sample(run)]
    sampled = [facts for run, facts in zip(runs, by_seed, strict=True) if has_train_sample(run)]
    if sampled:
        curves |= {name: [facts[name] for facts in sampled] for name in ("train_accuracy", "accuracy_gap")}
    return curves


def gpu_facts(runs: Sequence[Run]) -> dict:
    """The eight on a GPU, by key: device, training time and memory; nothing where there are none."""
    return {
        run.key: {key: run.summary[key] for key in ("device", "train_seconds", "steady_memory_bytes")}
        | {"peak_bytes": run.summary["memory"]["peak_bytes"], "batch_size": settings_of(run)["batch_size"]}
        for run in runs
        if run.summary["memory"]["kind"] == "cuda_allocated"
    }


def settings_of(run: Run) -> dict:
    """The hyper-parameters of a run, by their names in the section `train` of its settings, and its dropout."""
    config = load_config(run.folder / "config.yaml")
    return {name: getattr(config.train, name) for name in HYPER_PARAMETERS} | {"dropout": config.model.dropout}


def cost_frontier(described: Sequence[dict], cost: str) -> list[str]:
    """Keys of the runs that no other beats in validation accuracy at the same cost or less, cheapest first.

    Args:
        described: metrics of runs, as from `run_facts`.
        cost: one of `COST_KEYS`.
    """
    ordered = sorted(described, key=lambda metrics: (metrics[cost], -metrics["best_validation_accuracy"]))
    keys, best = [], -1.0
    for metrics in ordered:
        if metrics["best_validation_accuracy"] > best:
            keys.append(metrics["key"])
            best = metrics["best_validation_accuracy"]
    return keys


def robustness_facts(log: dict) -> dict:
    """What a log of `analysis.robustness` says, by condition, amount and model.

    Returns:
        `drops` and `mechanisms` nested so, `controls` by condition, control, amount and model, `attacks` by model (with
        the 95% interval of the accuracy after the last edit in `greedy_interval`), and of each condition, in
        `examples`, the review whose probability changed most at the smallest amount.
    """
    drops, mechanisms, controls = {}, {}, {}
    for row in log["rows"]:
        entry = {key: row[key] for key in ROBUSTNESS_KEYS if key in row} | _named_interval(row)
        entry["significant"] = row["adjusted_p"] < SIGNIFICANCE_LEVEL
        drops.setdefault(row["condition"], {}).setdefault(f"{row['amount']:g}", {})[row["model"]] = entry
    for row in log["mechanisms"]:
        mechanisms.setdefault(row["condition"], {})[f"{row['amount']:g}"] = row
    for row in log["controls"]:
        by_amount = controls.setdefault(row["condition"], {}).setdefault(row["control"], {})
        by_amount.setdefault(f"{row['amount']:g}", {})[row["model"]] = row | _named_interval(row)
    return {
        "reviews": log["reviews"],
        "models": {model["model"]: model for model in log["models"]},
        "drops": drops,
        "mechanisms": mechanisms,
        "controls": controls,
        "attacks": {
            attack["model"]: attack | {"greedy_interval": accuracy_interval(attack["greedy"][-1], attack["reviews"])}
            for attack in log["attacks"]
        },
        "examples": _clearest_examples(log["examples"]),
    }


def saliency_facts(log: dict) -> dict:
    """What a log of `analysis.saliency` says: how many reviews, and by state (`short_...` of padded reviews) and model
    the share of the saliency that falls on the last `EDGE_TOKENS` tokens, and on those between them and the first
    `EDGE_TOKENS`."""

    def shares(values: Sequence[float]) -> dict[str, float]:
        return {
            "between": sum(values[EDGE_TOKENS:-EDGE_TOKENS]) / sum(values),
            "last": sum(values[-EDGE_TOKENS:]) / sum(values),
        }

    numbers = {key: log[key] for key in ("reviews", "short_reviews", "short_lengths") if key in log}
    states = [prefix + state for prefix in ("", "short_") for state in ("untrained", "trained")]
    return {**numbers, "edge_tokens": EDGE_TOKENS} | {
        state: {name: shares(model[state]) for name, model in log["models"].items()}
        for state in states
        if state in next(iter(log["models"].values()))
    }


def _optional_facts(folder: Path) -> dict:
    """Of the studies that were made: sweep, sizes, transfer, saliency."""
    facts = {}
    if (folder / "sweep" / "trials.json").is_file():
        facts["sweep"] = sweep_facts(folder / "sweep")
    if (folder / "sizes").is_dir():
        facts["sizes"] = size_facts(folder / "sizes", _load_optional(folder / "sizes_tried"))
    if (folder / "transfer.json").is_file():
        facts["transfer"] = read_json(folder / "transfer.json")
    if (folder / "saliency.json").is_file():
        facts["saliency"] = saliency_facts(read_json(folder / "saliency.json"))
    return facts


def _one_run_per_key(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by key; InputError where two share one."""
    repeated = [key for key, count in Counter(run.key for run in runs).items() if count > 1]
    if repeated:
        folders = " and ".join(str(run.folder) for run in runs if run.key == repeated[0])
        raise InputError(
            f"{folders} are all runs of {repeated[0]}; the comparison takes one run of each: move further seeds to "
            "another folder (for the written report: seeds/)"
        )
    return identify(runs)


def _report_pairs(ranking: list[str], from_scratch: list[str]) -> list[tuple[str, str]]:
    """The pairs that the report compares; the first of a pair is the one of which the sentence speaks."""
    return [
        *ASSIGNED_PAIRS,
        *ATTENTION_PAIRS,
        *zip(ranking, ranking[1:2], strict=False),
        ("8t", "8"),
        (ranking[0], "0"),
        *BASELINE_PAIRS,
        *((key, "0") for key in from_scratch[:1]),
    ]


def _named_interval(row: dict) -> dict[str, float]:
    return dict(zip(("low", "high"), row["drop_interval"], strict=True))


def _clearest_examples(examples: Sequence[dict]) -> dict[str, dict]:
    """By condition the example with the largest change at the smallest amount, whose text can still be read."""
    clearest: dict[str, dict] = {}
    for example in sorted(
        examples, key=lambda e: (e["amount"], -abs(e["probability_after"] - e["probability_before"]))
    ):
        clearest.setdefault(example["condition"], example)
    return clearest


def _load_optional(folder: Path) -> list[Run]:
    """The runs of a folder, none where it is missing."""
    return load_runs(folder) if folder.is_dir() else []
