"""Whether two classifiers differ significantly on the same reviews, and 95% intervals of accuracies."""

import numpy as np
from scipy.stats import binomtest, norm

from config import InputError
from data import warn_of_few_reviews
from predict import predicted_labels
from sources.files import LABELS

# A difference is significant where its adjusted p is below this.
SIGNIFICANCE_LEVEL = 0.05


def is_correct(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) bool: whether each predicted label, from the probability of positive, is the true one."""
    return predicted_labels(probabilities) == labels


def check_classes(labels: np.ndarray, where: str) -> None:
    """Refuse (`InputError`) reviews of one class only, on which no accuracy is a result; warn of few of a class."""
    for label, name in enumerate(LABELS):
        if not (labels == label).any():
            raise InputError(f"{where}: none of the {len(labels)} reviews is {name}; both classes are needed")
    warn_of_few_reviews(where, labels)


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
