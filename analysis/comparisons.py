"""Comparisons of experiments on the same test reviews, over all their seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import false_discovery_control

from analysis.logs import TEST_DATA_KEYS, TEST_SPLIT_KEYS, Run, check_same_data, read_predictions
from analysis.statistics import SIGNIFICANCE_LEVEL, crossed_difference, is_correct, mcnemar_p, paired_interval
from config import InputError


@dataclass(frozen=True)
class Comparison:
    """Two experiments on the same test reviews, each with one run or several seeds.

    `difference` is the mean accuracy of `first` minus that of `second`, as a share, with a 95% interval from `low` to
    `high`. Of two single runs these are `paired_interval` and McNemar's p; where there are seeds, those of
    `crossed_difference`, whose sources of error are seeds and reviews. `adjusted_p` is p after Benjamini and
    Hochberg's correction over all comparisons made together.
    """

    first: str
    second: str
    num_reviews: int
    difference: float
    low: float
    high: float
    p: float
    adjusted_p: float = 1.0
    num_seeds: tuple[int, int] = (1, 1)

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
            f"{self._seeds()}{self.num_reviews:,} test reviews"
        )
        if not self.is_significant:
            points = signed_points(self.difference)
            return f"**{self.first}** and **{self.second}** do not differ significantly ({points} points; {evidence})"
        first, second = (f"**{key}** ({names[key]})" for key in (self.first, self.second))
        direction = "higher" if self.difference > 0 else "lower"
        return f"{first} scores {abs(100 * self.difference):.1f} points {direction} than {second} ({evidence})"

    def _seeds(self) -> str:
        """`3 seeds each, `; nothing of two single runs."""
        first, second = self.num_seeds
        if self.num_seeds == (1, 1):
            return ""
        return f"{first} seeds each, " if first == second else f"{first} and {second} seeds, "


def compare(first: Sequence[Run], second: Sequence[Run], keys: Sequence[str] = TEST_DATA_KEYS) -> Comparison:
    """Two experiments on the test split, each with all its seeds.

    Args:
        first: the runs of one.
        second: those of the other; their numbers may differ.
        keys: of a summary's `data`, in which all must agree.

    Raises:
        InputError: predictions are missing, or the runs were tested on different reviews.
    """
    correct = correct_by_run([*first, *second], keys)
    num_seeds, num_reviews = (len(first), len(second)), correct.shape[1]
    if num_seeds == (1, 1):
        only_first, only_second = (int((one & ~other).sum()) for one, other in (correct, correct[::-1]))
        difference = (only_first - only_second) / num_reviews
        low, high = paired_interval(only_first, only_second, num_reviews)
        p = mcnemar_p(only_first, only_second)
    else:
        difference, low, high, p = crossed_difference(correct[: len(first)], correct[len(first) :])
    return Comparison(first[0].key, second[0].key, num_reviews, difference, low, high, p, num_seeds=num_seeds)


def compare_pairs(
    groups: dict[str, Sequence[Run]], pairs: Sequence[tuple[str, str]], variants: Sequence[tuple[str, str]] = ()
) -> dict[str, Comparison]:
    """`"4-3"` -> comparison, for each pair of which `groups`, the seeds by key, has both; p is adjusted over all.

    Args:
        groups: runs by key.
        pairs: of keys.
        variants: further pairs, of runs that may differ in the training reviews and the length limit.

    Raises:
        InputError: as `compare`.
    """
    keys = dict.fromkeys(variants, TEST_SPLIT_KEYS) | dict.fromkeys(pairs, TEST_DATA_KEYS)
    comparisons = [
        compare(groups[first], groups[second], keys[first, second])
        for first, second in dict.fromkeys([*pairs, *variants])
        if first in groups and second in groups
    ]
    return {f"{comparison.first}-{comparison.second}": comparison for comparison in adjust(comparisons)}


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with p adjusted over all of them (Benjamini & Hochberg 1995)."""
    adjusted = false_discovery_control([comparison.p for comparison in comparisons]) if comparisons else []
    return [replace(comparison, adjusted_p=float(p)) for comparison, p in zip(comparisons, adjusted, strict=True)]


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
