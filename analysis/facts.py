"""What the logs bear: comparisons on the same reviews, seeds, cost and its frontier, how the curves behave.

Everything here is computed from what runs have left (`summary.json`, `metrics.jsonl`, `test_predictions.csv`); the
written report, README and the notebook take their numbers from `facts`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control, ttest_ind

from analysis.logs import Run, load_runs, read_predictions
from analysis.statistics import mcnemar_p, paired_interval, share_interval
from config import InputError, load_config

GIB = 2**30
SIGNIFICANT = 0.05
# Asked of the report: each pair's later experiment against the one that it builds on.
PAIRS = (("2", "1"), ("3", "2"), ("4", "3"), ("6", "5"), ("7", "5"), ("8", "5"))
# How a verdict names what is no experiment.
NAMES = {
    "0": "the linear floor",
    "0w": "the linear floor on whole reviews",
    "8t": "8 with all layers trained",
}
# Tokens at either end of a review that count as its beginning and its end.
EDGE = 32
COSTS = ("train_seconds", "steady_memory_bytes", "parameters")


# ---------------------------------------------------------------- predictions


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same reviews; accuracies are shares.

    `difference` is that of `first` less that of `second`, with a 95% interval (`paired_interval`); `p` is McNemar's,
    `adjusted_p` after Benjamini and Hochberg's correction over all comparisons of a report.
    """

    first: str
    second: str
    reviews: int
    difference: float
    low: float
    high: float
    p: float
    adjusted_p: float = 1.0

    @property
    def shown(self) -> bool:
        """Whether a difference is shown at all."""
        return self.adjusted_p < SIGNIFICANT

    def verdict(self, names: dict[str, str] | None = None) -> str:
        """The comparison in a sentence, whichever way it came out."""
        first, second = ((names or {}).get(key, f"experiment {key}") for key in (self.first, self.second))
        points = (
            f"95% interval {100 * self.low:+.1f} to {100 * self.high:+.1f}, adjusted p {p_text(self.adjusted_p)}, "
            f"{self.reviews:,} test reviews"
        )
        if not self.shown:
            return (
                f"no difference between {first} and {second} is shown ({100 * self.difference:+.1f} points; {points})"
            )
        way = "ahead of" if self.difference > 0 else "behind"
        return f"{first} is {way} {second} by {abs(100 * self.difference):.1f} points ({points})"


def p_text(p: float) -> str:
    """`0.034`, or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def compare_runs(first: Run, second: Run) -> Comparison:
    """A paired comparison on the test split.

    Raises:
        InputError: the runs were tested on different reviews.
    """
    one, other = (read_predictions(run.folder / "test_predictions.csv") for run in (first, second))
    if not (np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])):
        raise InputError(f"{first.folder} and {second.folder} were tested on different reviews: nothing to pair")
    a, b = (((p >= 0.5) == labels) for _, labels, p in (one, other))
    won, lost = int((a & ~b).sum()), int((~a & b).sum())
    low, high = paired_interval(won, lost, len(a))
    return Comparison(first.key, second.key, len(a), (won - lost) / len(a), low, high, mcnemar_p(won, lost))


def compare_all(runs: dict[str, Run], pairs: Sequence[tuple[str, str]]) -> dict[str, Comparison]:
    """`"4-3"` -> comparison, for the pairs of which both are there, p corrected over all of them."""
    found = [compare_runs(runs[a], runs[b]) for a, b in dict.fromkeys(pairs) if a in runs and b in runs]
    adjusted = false_discovery_control([c.p for c in found]) if found else []
    return {
        f"{c.first}-{c.second}": Comparison(**{**asdict(c), "adjusted_p": float(p)})
        for c, p in zip(found, adjusted, strict=True)
    }


# ---------------------------------------------------------------- one run


def curve_facts(run: Run) -> dict:
    """How a learning curve behaves: loss regained after its minimum (nats), gap between training and validation
    accuracy at the end, largest fall of validation accuracy between two evaluations, whether the end was the best."""
    losses = [line["validation_loss"] for line in run.metrics]
    accuracies = [line["validation_accuracy"] for line in run.metrics]
    falls = [before - after for before, after in zip(accuracies, accuracies[1:], strict=False)]
    return {
        "loss_regained": losses[-1] - min(losses),
        "gap": run.metrics[-1]["train_accuracy"] - accuracies[-1],
        "largest_fall": max([0.0, *falls]),
        "best_at_share": run.summary["best_validation_step"] / run.metrics[-1]["step"],
        "first_accuracy": accuracies[0],
        "evaluations": len(accuracies),
    }


def run_facts(run: Run) -> dict:
    """The figures of one run that a report speaks of."""
    summary = run.summary
    _, labels, probabilities = read_predictions(run.folder / "test_predictions.csv")
    hits = (probabilities >= 0.5) == labels
    keys = (
        *("experiment", "name", "architecture", "parameters", "train_accuracy", "best_validation_accuracy"),
        *("test_accuracy", "train_seconds", "evaluation_seconds", "steady_memory_bytes", "seed", "device"),
    )
    return {
        "key": run.key,
        **{key: summary[key] for key in keys},
        "epochs": summary.get("epochs"),
        "reviews": {split: summary["data"][split] for split in ("train", "validation", "test")},
        "test_interval": share_interval(int(hits.sum()), len(hits)),
        **(curve_facts(run) if run.summary["experiment"] else {}),
    }


def frontier(found: Sequence[dict], cost: str) -> list[str]:
    """Keys of the runs that none beats in validation accuracy at no more cost, cheapest first."""
    ordered = sorted(found, key=lambda facts: (facts[cost], -facts["best_validation_accuracy"]))
    keys, best = [], -1.0
    for facts in ordered:
        if facts["best_validation_accuracy"] > best:
            keys.append(facts["key"])
            best = facts["best_validation_accuracy"]
    return keys


# ---------------------------------------------------------------- seeds


def seed_facts(runs: Sequence[Run]) -> dict[str, dict]:
    """By experiment: accuracies of its seeds and their standard deviation; experiments with one seed are left out."""
    found = {}
    for key in dict.fromkeys(run.key for run in runs):
        same = [run for run in runs if run.key == key]
        if len({run.summary["seed"] for run in same}) > 1:
            test = [run.summary["test_accuracy"] for run in same]
            validation = [run.summary["best_validation_accuracy"] for run in same]
            found[key] = {
                "seeds": [run.summary["seed"] for run in same],
                "test": test,
                "validation": validation,
                "test_mean": float(np.mean(test)),
                "test_deviation": float(np.std(test, ddof=1)),
            }
    return found


def seeds_apart(first: dict, second: dict) -> dict:
    """Whether two experiments differ by more than their seeds: Welch's interval of the difference of means."""
    result = ttest_ind(first["test"], second["test"], equal_var=False)
    interval = result.confidence_interval(0.95)
    return {
        "difference": first["test_mean"] - second["test_mean"],
        "low": float(interval.low),
        "high": float(interval.high),
        "p": float(result.pvalue),
    }


# ---------------------------------------------------------------- all of it


def describe(runs: Sequence[Run]) -> dict:
    """What the runs of one folder say: figures, ranking of the eight, comparisons, frontiers (of variants too); the
    floor where it is among them.

    Raises:
        InputError: predictions are missing, or the runs were tested on different reviews.
    """
    by_key = {run.key: run for run in runs}
    described = {key: run_facts(run) for key, run in by_key.items()}
    neural = [d for d in described.values() if d["experiment"]]
    eight = [described[run.key] for run in runs if run.is_assigned]
    ranking = [d["key"] for d in sorted(eight, key=lambda d: -d["best_validation_accuracy"])]
    scratch = [key for key in ranking if described[key]["experiment"] < 8]
    pairs = [
        *PAIRS,
        *zip(ranking, ranking[1:2], strict=False),
        ("8t", "8"),
        (ranking[0], "0"),
        ("8t", "0"),
        ("0w", "0"),
    ]
    pairs += [(key, "0") for key in scratch[:1]]
    return {
        "runs": described,
        "data": by_key[ranking[0]].summary["data"],
        "devices": sorted({run.summary["device"] for run in runs}),
        "ranking": ranking,
        "best_scratch": next(iter(scratch), None),
        "fastest": min(eight, key=lambda d: d["train_seconds"])["key"],
        "smallest_gap": min(eight, key=lambda d: abs(d["gap"]))["key"],
        "comparisons": {
            key: {**asdict(c), "shown": c.shown, "verdict": c.verdict(NAMES)}
            for key, c in compare_all(by_key, pairs).items()
        },
        "frontiers": {cost: frontier(neural, cost) for cost in COSTS},
    }


def facts(folder: Path, memory: Path) -> dict:
    """All that the report says in numbers, as JSON.

    Args:
        folder: holds `imdb/` (the comparison) and `quick/robustness.json`; where they were made also `seeds/`,
            `trials/`, `yelp_sample/`, `transfer.json` and `reach.json`.
        memory: the rows of benchmarks/memory.py.

    Raises:
        InputError: a log that is needed is missing or can't be read.
    """
    runs = load_runs(folder / "imdb")
    seeds = seed_facts([*runs, *load_optional(folder / "seeds")])
    described = describe(runs)
    pairs = [(c["first"], c["second"]) for c in described["comparisons"].values()]
    found = {
        **described,
        "seeds": seeds,
        "seeds_apart": {f"{a}-{b}": seeds_apart(seeds[a], seeds[b]) for a, b in pairs if a in seeds and b in seeds},
        "memory": read_json(memory),
        "robustness": robustness_facts(read_json(folder / "quick" / "robustness.json")),
        "trials": [trial_facts(run) for run in load_optional(folder / "trials")],
        "yelp": {run.key: run_facts(run) for run in load_optional(folder / "yelp_sample")},
    }
    for name, read in (("transfer", lambda found: found), ("reach", reach_facts)):
        if (folder / f"{name}.json").is_file():
            found[name] = read(read_json(folder / f"{name}.json"))
    return found


def reach_facts(found: dict) -> dict:
    """Of a log of `explain.py`: how many reviews, and by state and experiment the share of the pull on the label that
    the last `EDGE` tokens have, and that of all between them and the first `EDGE`."""
    return {"reviews": found["reviews"], "edge": EDGE} | {
        state: {
            key: {
                "between": sum(pulls[state][EDGE:-EDGE]) / sum(pulls[state]),
                "last": sum(pulls[state][-EDGE:]) / sum(pulls[state]),
            }
            for key, pulls in found["models"].items()
        }
        for state in ("untrained", "trained")
    }


def robustness_facts(found: dict) -> dict:
    """What a log of `robustness.py` says, by condition, amount and experiment.

    Returns:
        `drops` and `mechanisms` nested so, `controls` by amount and experiment, `attacks` by experiment, and of each
        condition, in `examples`, the review whose probability changed most at the smallest amount.
    """
    experiments = {model["model"]: str(model["experiment"]) for model in found["models"]}
    drops, mechanisms, examples = {}, {}, {}
    for row in found["rows"]:
        keys = ("accuracy", "drop", "adjusted_p", "flip_rate", "probability_change", "asked", "moved", "turned")
        entry = {key: row[key] for key in keys if key in row}
        entry |= {"low": row["drop_interval"][0], "high": row["drop_interval"][1]}
        entry["shown"] = row["adjusted_p"] < SIGNIFICANT
        by_amount = drops.setdefault(row["condition"], {}).setdefault(f"{row['amount']:g}", {})
        by_amount[experiments[row["model"]]] = entry
    for row in found["mechanisms"]:
        mechanisms.setdefault(row["condition"], {})[f"{row['amount']:g}"] = row
    # Of little damage, which can be read, that with the largest effect.
    for example in sorted(
        found["examples"], key=lambda e: (e["amount"], -abs(e["probability_after"] - e["probability_before"]))
    ):
        examples.setdefault(example["condition"], example)
    return {
        "reviews": found["reviews"],
        "models": {experiments[model["model"]]: model for model in found["models"]},
        "drops": drops,
        "mechanisms": mechanisms,
        "controls": {
            f"{row['amount']:g}": {
                experiments[r["model"]]: {**r, "low": r["drop_interval"][0], "high": r["drop_interval"][1]}
                for r in found["controls"]
                if r["amount"] == row["amount"]
            }
            for row in found["controls"]
        },
        "attacks": {experiments[attack["model"]]: attack for attack in found["attacks"]},
        "examples": examples,
    }


def load_optional(folder: Path) -> list[Run]:
    """The runs of a folder, none where it is missing."""
    return load_runs(folder) if folder.is_dir() else []


def trial_facts(run: Run) -> dict:
    """What a trial at a small scale was of, and its validation accuracy."""
    settings = asdict(load_config(run.folder / "config.yaml"))
    return {
        "name": run.summary["name"],
        "key": run.key,
        "learning_rate": settings["train"]["learning_rate"],
        "schedule": settings["train"]["schedule"],
        "batch_size": settings["train"]["batch_size"],
        "precision": settings["train"]["precision"],
        "train": run.summary["data"]["train"],
        "validated_on": run.summary["data"]["validation"],
        "epochs": run.summary["epochs"],
        "validation": run.summary["best_validation_accuracy"],
    }


def read_json(path: Path) -> Any:
    """A JSON file that another command has written; raises InputError."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: can't be read ({error})") from None
