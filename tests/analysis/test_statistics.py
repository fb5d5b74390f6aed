"""analysis/statistics.py: against scipy on the same counts, by hand, and over simulations."""

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from analysis.statistics import check_classes, is_correct, mcnemar_p, paired_interval, share_interval
from config import InputError


def test_prediction_is_correct_where_the_likelier_class_is_the_label():
    probabilities, labels = np.array([0.5, 0.5, 0.49, 0.49, 1.0, 0.0]), np.array([1, 0, 1, 0, 1, 1])
    assert is_correct(probabilities, labels).tolist() == [True, False, False, True, True, False]


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (0, 5), (7, 3), (40, 12), (12, 40), (25, 25)])
def test_mcnemar_is_the_exact_binomial_test(lost, won):
    count = lost + won
    expected = min(1.0, 2 * binom.cdf(min(lost, won), count, 0.5)) if count else 1.0
    assert mcnemar_p(lost, won) == pytest.approx(expected, abs=1e-12)


def test_paired_interval_is_the_formula_of_bonett_and_price():
    """By hand for 9 lost, 3 won of 50: (10 - 4) / 52 and its standard error."""
    low, high = paired_interval(9, 3, 50)
    half = 1.959963984540054 * math.sqrt((10 / 52 + 4 / 52 - (6 / 52) ** 2) / 52)
    assert (low, high) == pytest.approx((6 / 52 - half, 6 / 52 + half), abs=1e-12)


@pytest.mark.parametrize(("p_lost", "p_won", "count"), [(0.1, 0.04, 200), (0.02, 0.02, 500), (0.3, 0.1, 100)])
def test_paired_interval_covers_the_true_difference_in_95_percent_of_simulations(p_lost, p_won, count):
    rng = np.random.default_rng(0)
    draws = rng.multinomial(count, [p_lost, p_won, 1 - p_lost - p_won], size=2000)
    covered = [
        low <= p_lost - p_won <= high for low, high in (paired_interval(int(b), int(c), count) for b, c, _ in draws)
    ]
    assert abs(np.mean(covered) - 0.95) <= 0.015


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (450, 500), (1, 3)])
def test_share_interval_solves_wilsons_score_equation(hits, count):
    """At both ends (Wilson 1927) the observed share is 1.96 standard errors away, that of the end itself."""
    for end in share_interval(hits, count):
        distance = abs(hits / count - end)
        assert distance == pytest.approx(norm.ppf(0.975) * math.sqrt(end * (1 - end) / count), abs=1e-9)


@pytest.mark.parametrize(("label", "name"), [(0, "positive"), (1, "negative")])
def test_reviews_of_one_class_are_refused_and_few_of_one_are_warned_of(label, name, caplog):
    with pytest.raises(InputError, match=f"x.csv: none of the 50 reviews is {name}; both classes are needed"):
        check_classes(np.full(50, label), "x.csv")
    check_classes(np.repeat([label, 1 - label], [50, 29]), "x.csv")
    counts = {"positive": "50 negative and 29 positive", "negative": "29 negative and 50 positive"}[name]
    expected = f"warning: x.csv has {counts} reviews; with fewer than 30 of a class, its metrics are rough"
    assert caplog.messages == [expected]
    caplog.clear()
    check_classes(np.repeat([0, 1], 30), "x.csv")
    assert not caplog.messages
