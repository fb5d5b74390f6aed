"""Comparisons of runs: paired on the same test reviews, and of experiments over their seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import false_discovery_control

from analysis.logs import TEST_DATA_KEYS, Run, check_same_data, identify, read_predictions
from analysis.statistics import SIGNIFICANCE_LEVEL, crossed_difference, is_correct, mcnemar_p, paired_interval
from config import InputError


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same test reviews.

    `difference` is the accuracy of `first` minus that of `second`, as a share, with a 95% interval from `low` to
    `high` (`paired_interval`); `p` is McNemar's, `adjusted_p` after Benjamini and Hochberg's correction over all
    comparisons made together.
    """

    first: str
    second: str
    num_reviews: int
    difference: float
    low: float
    high: float
    p: float
    adjusted_p: float = 1.0

    @property
    def is_significant(self) -> bool:
        return self.adjusted_p < SIGNIFICANCE_LEVEL

    def verdict(self, names: dict[str, str]) -> str:
        """The comparison in a sentence of Markdown, whichever way it came out.

        Args:
            names: the models' short names by key.
        """
        evidence = (
            f"95% CI {signed_points(self.low)} to {signed_points(self.high)}, adjusted p {p_text(self.adjusted_p)}, "
            f"{self.num_reviews:,} test reviews"
        )
        if not self.is_significant:
            points = signed_points(self.difference)
            return f"**{self.first}** and **{self.second}** do not differ significantly ({points} points; {evidence})"
        first, second = (f"**{key}** ({names[key]})" for key in (self.first, self.second))
        direction = "higher" if self.difference > 0 else "lower"
        return f"{first} scores {abs(100 * self.difference):.1f} points {direction} than {second} ({evidence})"


def compare_runs(first: Run, second: Run) -> Comparison:
    """A paired comparison on the test split.

    Raises:
        InputError: predictions are missing, or the runs were tested on different reviews.
    """
    correct, other_correct = correct_by_run([first, second])
    only_first, only_second = int((correct & ~other_correct).sum()), int((~correct & other_correct).sum())
    low, high = paired_interval(only_first, only_second, len(correct))
    difference = (only_first - only_second) / len(correct)
    p = mcnemar_p(only_first, only_second)
    return Comparison(first.key, second.key, len(correct), difference, low, high, p)


def compare_pairs(runs: dict[str, Run], pairs: Sequence[tuple[str, str]]) -> dict[str, Comparison]:
    """`"4-3"` -> comparison, for each pair of which `runs` holds both; p is adjusted over all of them.

    Raises:
        InputError: as `compare_runs`.
    """
    present = [(first, second) for first, second in dict.fromkeys(pairs) if first in runs and second in runs]
    comparisons = [compare_runs(runs[first], runs[second]) for first, second in present]
    adjusted = false_discovery_control([comparison.p for comparison in comparisons]) if comparisons else []
    return {
        f"{comparison.first}-{comparison.second}": replace(comparison, adjusted_p=float(p))
        for comparison, p in zip(comparisons, adjusted, strict=True)
    }


def accuracies_by_seed(runs: Sequence[Run]) -> dict[str, dict]:
    """By key: the accuracies of its seeds, their mean and standard deviation; keys with a single seed are left out.

    Raises:
        InputError: two runs have the same key and seed, or are on different data.
    """
    identify(runs)
    check_same_data(runs)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.key, []).append(run)
    return {key: _seed_statistics(group) for key, group in groups.items() if len(group) > 1}


def seed_difference(first: Sequence[Run], second: Sequence[Run], keys: Sequence[str] = TEST_DATA_KEYS) -> dict:
    """The difference of the mean test accuracies of two experiments, each with its seeds; its 95% interval and p, with
    both seeds and reviews as sources of error (`crossed_difference`).

    Args:
        first: the seeds of one.
        second: those of the other; their numbers may differ.
        keys: of a summary's `data`, in which all must agree.

    Raises:
        InputError: as `compare_runs`.
    """
    correct = correct_by_run([*first, *second], keys)
    difference, low, high, p = crossed_difference(correct[: len(first)], correct[len(first) :])
    return {"difference": difference, "low": low, "high": high, "p": p}


def correct_by_run(runs: Sequence[Run], keys: Sequence[str] = TEST_DATA_KEYS) -> np.ndarray:
    """(runs, reviews) bool: whether each run's prediction of each test review is correct.

    Args:
        runs: on the same test reviews.
        keys: of a summary's `data`, in which they must agree.

    Raises:
        InputError: predictions are missing, or the runs were tested on different reviews.
    """
    check_same_data(runs, keys)
    rows, labels, _ = read_predictions(runs[0].folder / "test_predictions.csv")
    correct = []
    for run in runs:
        other_rows, other_labels, probabilities = read_predictions(run.folder / "test_predictions.csv")
        if not (np.array_equal(rows, other_rows) and np.array_equal(labels, other_labels)):
            raise InputError(
                f"{runs[0].folder} and {run.folder} were tested on different reviews; compare runs on one split"
            )
        correct.append(is_correct(probabilities, labels))
    return np.array(correct)


def signed_points(share: float) -> str:
    """A difference of shares in percentage points with its sign: `+1.6`, `−0.3`."""
    # Adding 0.0 turns a negative zero into zero.
    return f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", "\N{MINUS SIGN}")


def p_text(p: float) -> str:
    """`0.034`, or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _seed_statistics(runs: Sequence[Run]) -> dict:
    test_accuracies = [run.summary["test_accuracy"] for run in runs]
    return {
        "seeds": [run.summary["seed"] for run in runs],
        "test_accuracies": test_accuracies,
        "validation_accuracies": [run.summary["best_validation_accuracy"] for run in runs],
        "test_mean": float(np.mean(test_accuracies)),
        "test_std": float(np.std(test_accuracies, ddof=1)),
    }
