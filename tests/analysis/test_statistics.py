"""analysis/statistics.py: against scipy on the same counts, by hand, and over simulations."""

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from analysis.statistics import (
    check_classes,
    crossed_difference,
    is_correct,
    mcnemar_p,
    paired_interval,
    share_interval,
)
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
def test_reviews_of_one_class_are_refused(label, name):
    with pytest.raises(InputError, match=f"x.csv: none of the 50 reviews is {name}; both classes are needed"):
        check_classes(np.full(50, label), "x.csv")
    check_classes(np.repeat([label, 1 - label], [50, 1]), "x.csv")


@pytest.mark.parametrize(("seed_spread", "num_seeds"), [(0.0, (3, 5)), (0.5, (3, 3)), (0.5, (5, 5)), (0.0, (5, 1))])
def test_crossed_interval_covers_the_difference_as_often_as_it_says(seed_spread, num_seeds):
    """Of made-up classifiers whose expected accuracies are equal; reviews and seeds are drawn anew for each trial."""
    generator = np.random.default_rng(0)
    covered, num_trials = 0, 600
    for _ in range(num_trials):
        difficulty = generator.normal(0, 1, 400)
        skills = [generator.normal(1.2, seed_spread, (n, 1)) for n in num_seeds]
        first, second = (generator.normal(size=(len(s), 400)) < s - difficulty for s in skills)
        _, low, high, p = crossed_difference(first, second)
        covered += low <= 0 <= high
        assert (p < 0.05) == (not low <= 0 <= high)
    assert 0.93 <= covered / num_trials <= 0.99


def test_crossed_interval_of_single_runs_is_the_paired_one():
    generator = np.random.default_rng(1)
    first, second = generator.random((2, 1, 2000)) < 0.85
    difference, low, high, p = crossed_difference(first, second)
    lost, won = int((first & ~second).sum()), int((~first & second).sum())
    assert difference == pytest.approx((lost - won) / 2000)
    assert (low, high) == pytest.approx(paired_interval(lost, won, 2000), abs=1e-3)
    assert p == pytest.approx(mcnemar_p(lost, won), abs=0.04)


def test_crossed_interval_widens_with_the_spread_of_the_seeds():
    alike = np.array([[True] * 80 + [False] * 20] * 3)
    spread = np.array([[True] * hits + [False] * (100 - hits) for hits in (70, 80, 90)])
    other = np.array([[True] * 75 + [False] * 25] * 3)
    widths = [high - low for _, low, high, _ in (crossed_difference(first, other) for first in (alike, spread))]
    assert widths[1] > 2 * widths[0]
    assert crossed_difference(alike, alike) == (0, 0, 0, 1)
