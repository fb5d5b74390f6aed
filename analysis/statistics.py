"""Whether a difference between two classifiers on the same reviews is more than chance."""

import numpy as np
from scipy.stats import binomtest, norm


def paired_interval(lost: int, won: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a difference of paired shares, (lost - won) / count (Bonett & Price 2012, eq. 3).

    Half a review is added to each kind of change, so that the interval has a width even if nothing changed.

    Args:
        lost: reviews right before and wrong after.
        won: wrong before and right after.
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
        hits: reviews that were right.
        count: all reviews.
        level: of confidence.
    """
    interval = binomtest(hits, count).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)
