"""Whether two classifiers differ significantly on the same reviews, and 95% intervals of accuracies."""

import numpy as np
from scipy.stats import binomtest, norm, t

from config import InputError
from predict import predicted_labels
from sources.files import LABELS

# A difference is significant where its adjusted p is below this.
SIGNIFICANCE_LEVEL = 0.05


def is_correct(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) bool: whether each predicted label, from the probability of positive, is the true one."""
    return predicted_labels(probabilities) == labels


def check_classes(labels: np.ndarray, where: str) -> None:
    """Refuse (`InputError`) reviews of one class only, on which no accuracy is a result."""
    for label, name in enumerate(LABELS):
        if not (labels == label).any():
            raise InputError(f"{where}: none of the {len(labels)} reviews is {name}; both classes are needed")


def paired_interval(lost: int, won: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a difference of paired shares, (lost - won) / count (Bonett & Price 2012, eq. 3).

    Half a review is added to each kind of change, so that the interval has a width even if nothing changed.

    Args:
        lost: reviews predicted correctly before and wrongly after.
        won: wrongly before and correctly after.
        count: all reviews.
        level: of confidence.
    """
    p_lost, p_won = (lost + 1) / (count + 2), (won + 1) / (count + 2)
    half = norm.ppf((1 + level) / 2) * np.sqrt((p_lost + p_won - (p_lost - p_won) ** 2) / (count + 2))
    middle = p_lost - p_won
    return max(-1.0, float(middle - half)), min(1.0, float(middle + half))


def crossed_difference(first: np.ndarray, second: np.ndarray, level: float = 0.95) -> tuple[float, float, float, float]:
    """Difference of two accuracies, its interval and p, where seeds and reviews both vary; each seed reads each review.

    The variance of the difference is that over the reviews, of the means over seeds, plus for each classifier that over
    its seeds, less the part of it that the reviews explain already (the mean square of seeds by reviews; a two-way
    layout with both factors random, as in Searle, Casella & McCulloch 1992, chapter 4). The t quantile has
    Satterthwaite's (1946) degrees of freedom. A classifier with one seed adds no variance of seeds: the result then
    holds for that run.

    Args:
        first: (seeds, reviews) bool, whether each run of the first classifier is correct.
        second: the same of the second, on the same reviews; the numbers of seeds may differ.
        level: of confidence.

    Returns:
        Mean of `first` minus that of `second`, the ends of the interval, p; p is 1 where nothing differs.
    """
    num_reviews = first.shape[1]
    by_review = first.mean(axis=0) - second.mean(axis=0)
    difference = float(by_review.mean())
    parts = [(by_review.var(ddof=1) / num_reviews, num_reviews - 1)]
    variance = parts[0][0]
    for correct in (first, second):
        num_seeds = len(correct)
        if num_seeds > 1:
            of_seeds = correct.mean(axis=1).var(ddof=1) / num_seeds
            residual = correct - correct.mean(axis=0) - correct.mean(axis=1, keepdims=True) + correct.mean()
            mean_square = (residual**2).sum() / ((num_seeds - 1) * (num_reviews - 1))
            variance += max(0.0, of_seeds - mean_square / (num_seeds * num_reviews))
            parts.append((of_seeds, num_seeds - 1))
    # Rounding leaves a trace of it where the classifiers are always right and wrong together.
    if variance < np.finfo(float).eps ** 2:
        return difference, difference, difference, float(difference == 0)
    freedom = sum(part for part, _ in parts) ** 2 / sum(part**2 / degrees for part, degrees in parts)
    half = t.ppf((1 + level) / 2, freedom) * np.sqrt(variance)
    p = 2 * t.sf(abs(difference) / np.sqrt(variance), freedom)
    return difference, float(difference - half), float(difference + half), float(p)


def mcnemar_p(lost: int, won: int) -> float:
    """McNemar's exact p: of the reviews that changed, are as many lost as won? 1 where none changed."""
    return binomtest(lost, lost + won).pvalue if lost + won else 1.0


def share_interval(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share, such as an accuracy (Wilson 1927).

    Args:
        hits: reviews predicted correctly.
        count: all reviews.
        level: of confidence.
    """
    interval = binomtest(hits, count).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def accuracy_interval(accuracy: float, count: int) -> tuple[float, float]:
    """95% interval of an accuracy on `count` reviews, as of `share_interval`."""
    return share_interval(round(accuracy * count), count)
