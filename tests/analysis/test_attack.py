"""analysis/attack.py: the greedy attack and its random control, against models whose important words are defined."""

import sys

import numpy as np
import pytest

from analysis.attack import ATTACK_EDITS, attack
from perturbations import PERTURBATIONS

POSITIVE, NEGATIVE = "lovely", "awful"


class KeywordModel:
    """A stand-in for `TrainedModel`: positive with 0.9 if it reads "lovely", with 0.1 if "awful", else with 0.4."""

    def __init__(self, max_length: int = 50):
        self.max_length = max_length
        self.texts: list[str] = []

    def probabilities(self, texts):
        self.texts += texts
        return np.array([self._probability(text.split()[: self.max_length]) for text in texts])

    @staticmethod
    def _probability(words: list[str]) -> float:
        return 0.9 if POSITIVE in words else 0.1 if NEGATIVE in words else 0.4


@pytest.fixture
def reviews():
    """Three positive reviews with the word "lovely" at different places, and one negative review."""
    texts = ["a lovely place", "so many words before lovely", "lovely and cheap", "an awful place"]
    return texts, np.array([1, 1, 1, 0])


def test_greedy_attack_edits_the_most_important_word_first(reviews):
    accuracies = attack(KeywordModel(), *reviews, budget=2)
    # Without their word the positive ones are predicted negative, and the negative one stays negative.
    assert accuracies["greedy"] == [1.0, 0.25, 0.25]


def test_greedy_attack_applies_the_edit_that_hurts_most():
    class AsciiModel(KeywordModel):
        """Only homoglyphs change its prediction."""

        _probability = staticmethod(lambda words: 0.9 if " ".join(words).isascii() else 0.1)

    accuracies = attack(AsciiModel(), ["a nice place", "good and cheap"], np.array([1, 1]), budget=1)
    assert accuracies["greedy"] == [1.0, 0.0]


def test_random_edits_start_from_the_same_accuracy(reviews):
    accuracies = attack(KeywordModel(), *reviews, budget=3)
    assert accuracies["random"][0] == accuracies["greedy"][0] == 1.0
    assert len(accuracies["random"]) == len(accuracies["greedy"]) == 4
    assert accuracies["random"][1] > accuracies["greedy"][1]


def test_probability_of_one_half_counts_as_positive():
    class Undecided(KeywordModel):
        _probability = staticmethod(lambda words: 0.5)

    accuracies = attack(Undecided(), ["one", "two", "three"], np.array([1, 1, 0]), budget=1)
    assert accuracies["greedy"] == accuracies["random"] == [pytest.approx(2 / 3)] * 2


def test_same_seed_gives_the_same_attack(reviews):
    one, other = KeywordModel(), KeywordModel()
    attack(one, *reviews, budget=2, seed=3)
    attack(other, *reviews, budget=2, seed=3)
    assert one.texts == other.texts
    third = KeywordModel()
    attack(third, *reviews, budget=2, seed=4)
    assert third.texts != one.texts


def test_words_beyond_the_length_limit_are_not_edited():
    model = KeywordModel(max_length=2)
    attack(model, ["one two three four"], np.array([0]), budget=4)
    greedy_only = [text for text in model.texts if "[UNK]" in text]
    assert greedy_only == ["[UNK] two three four", "one [UNK] three four"]


def test_reviews_with_fewer_words_than_the_budget_keep_their_last_edits():
    accuracies = attack(KeywordModel(), ["lovely", "..."], np.array([1, 0]), budget=3)
    assert accuracies["greedy"] == [1.0, 0.5, 0.5, 0.5]


def test_attack_edits_are_word_edits():
    assert {PERTURBATIONS[name].kind for name in ATTACK_EDITS} == {"word_edit"}


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_bars_are_for_a_terminal_only(reviews, capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    attack(KeywordModel(), *reviews, budget=2)
    printed = capsys.readouterr().err
    assert ("importance of words" in printed, "edited words" in printed) == (is_terminal, is_terminal)
