"""analysis/comparisons.py: paired comparisons and seeds, against counts by hand on made-up runs."""

import numpy as np
import pytest

from analysis.comparisons import (
    Comparison,
    compare,
    compare_pairs,
    signed_points,
)
from analysis.logs import load_run
from analysis.statistics import crossed_difference, mcnemar_p, paired_interval
from config import InputError
from helpers import write_run_folder

NAMES = {"4": "LSTM encoder-decoder + attention", "3": "LSTM encoder-decoder"}


def make_run(folder, key, wrong=(), seed=0, **summary):
    return load_run(write_run_folder(folder / f"{key}_{seed}", key, seed, wrong, **summary))


def test_comparison_counts_reviews_that_only_one_run_predicts_correctly(tmp_path):
    one, other = make_run(tmp_path, "4", range(0, 3)), make_run(tmp_path, "3", range(2, 14))
    comparison = compare([one], [other])
    assert (comparison.first, comparison.second, comparison.num_reviews) == ("4", "3", 40)
    assert comparison.difference == pytest.approx(9 / 40)
    assert (comparison.low, comparison.high) == pytest.approx(paired_interval(11, 2, 40))
    assert comparison.p == mcnemar_p(11, 2)
    assert compare([other], [one]).difference == -comparison.difference


def test_p_values_are_adjusted_over_all_pairs_with_benjamini_hochberg(tmp_path):
    num_wrong = {"1": 20, "2": 4, "3": 5}
    runs = {key: [make_run(tmp_path, key, range(count))] for key, count in num_wrong.items()}
    comparisons = compare_pairs(runs, [("2", "1"), ("3", "2"), ("2", "1"), ("9", "1")])
    assert list(comparisons) == ["2-1", "3-2"]
    # Benjamini and Hochberg: the smaller p counts twice, the larger once.
    assert comparisons["2-1"].adjusted_p == pytest.approx(2 * mcnemar_p(16, 0))
    assert comparisons["3-2"].adjusted_p == 1
    assert comparisons["2-1"].is_significant
    assert not comparisons["3-2"].is_significant
    assert compare_pairs(runs, [("9", "1")]) == {}


def test_verdict_says_higher_lower_or_not_significantly_different():
    higher = Comparison("4", "3", 2000, 0.08, 0.06, 0.1, 1e-9, 1e-8)
    assert higher.verdict(NAMES) == (
        "**4** (LSTM encoder-decoder + attention) scores 8.0 points higher than **3** (LSTM encoder-decoder) "
        "(95% CI +6.0 to +10.0, adjusted p < 0.001, 2,000 test reviews)"
    )
    lower = Comparison("4", "3", 2000, -0.08, -0.1, -0.06, 0.01, 0.02)
    assert "scores 8.0 points lower than **3**" in lower.verdict(NAMES)
    assert "95% CI \N{MINUS SIGN}10.0 to \N{MINUS SIGN}6.0, adjusted p 0.020" in lower.verdict(NAMES)
    alike = Comparison("4", "3", 2000, 0.01, -0.01, 0.03, 0.3, 0.4)
    assert alike.verdict(NAMES) == (
        "**4** and **3** do not differ significantly (+1.0 points; 95% CI \N{MINUS SIGN}1.0 to +3.0, adjusted p 0.400, "
        "2,000 test reviews)"
    )


def test_differences_that_round_to_zero_have_no_minus_sign():
    assert [signed_points(share) for share in (-0.0004, 0.0, -0.001)] == ["+0.0", "+0.0", "\N{MINUS SIGN}0.1"]


def test_runs_tested_on_different_reviews_are_refused(tmp_path):
    one, other = make_run(tmp_path, "1"), make_run(tmp_path, "2")
    path = other.folder / "test_predictions.csv"
    text = path.read_text()
    for changed in (text.replace("\n7,", "\n70,"), text.replace("\n7,1", "\n7,0")):
        path.write_text(changed)
        with pytest.raises(InputError, match="1_0 and .*2_0 were tested on different reviews"):
            compare([one], [other])
    path.unlink()
    with pytest.raises(InputError, match=r"2_0.test_predictions\.csv: not the predictions of a run"):
        compare([one], [other])


def test_difference_over_seeds_is_crossed_with_the_reviews(tmp_path):
    wrong = {("1", 0): range(0, 9), ("1", 1): range(3, 13), ("1", 2): range(1, 7), ("2", 0): range(2), ("2", 1): [30]}
    runs = {place: make_run(tmp_path, place[0], rows, seed=place[1]) for place, rows in wrong.items()}
    groups = [[run for (key, _), run in runs.items() if key == wanted] for wanted in ("2", "1")]
    correct = [
        np.array([[row not in wrong[key, seed] for row in range(40)] for seed in range(n)])
        for key, n in (("2", 2), ("1", 3))
    ]
    comparison = compare(*groups)
    assert (comparison.first, comparison.second, comparison.num_seeds) == ("2", "1", (2, 3))
    assert comparison.difference == pytest.approx((25 / 3 - 1.5) / 40)
    values = (comparison.difference, comparison.low, comparison.high, comparison.p)
    assert values == crossed_difference(*correct)
    assert ", 2 and 3 seeds, 40 test reviews)" in comparison.verdict({"1": "BiLSTM", "2": "BiLSTM + dropout"})
    assert ", 2 seeds each, 40 test reviews)" in compare(groups[0], groups[1][:2]).verdict({"1": "a", "2": "b"})
    (groups[1][2].folder / "test_predictions.csv").unlink()
    with pytest.raises(InputError, match="not the predictions of a run"):
        compare(*groups)


def test_runs_tested_on_different_data_are_refused(tmp_path):
    """Whose predictions look alike: the same rows with the same labels."""
    data = {"source": "files", "train": 2000, "validation": 20, "test": 40, "fingerprint": "a1b2"}
    run = make_run(tmp_path, "4", data=data)
    other = make_run(tmp_path, "3", data=data | {"fingerprint": "c3d4"})
    with pytest.raises(InputError, match=r"are on different data \(fingerprint.*a1b2 and c3d4\) and can't be compared"):
        compare([run], [other])
    # Trained on fewer reviews, tested on the same.
    fewer = make_run(tmp_path, "2", data=data | {"train": 500})
    assert compare([run], [fewer]).difference == 0
    # A variant may differ in the length limit, which is part of the fingerprint.
    longer = make_run(tmp_path, "4d", data=data | {"fingerprint": "c3d4"})
    groups = {"4": [run], "4d": [longer]}
    assert compare_pairs(groups, [], [("4d", "4")])["4d-4"].difference == 0
    with pytest.raises(InputError, match="are on different data"):
        compare_pairs(groups, [("4d", "4")])
