"""Worst case: accuracy of a model when the words that matter most to it are misspelled, beside random misspellings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from analysis.statistics import is_correct
from perturbations import LETTER_EDITS, WORD, Span, perturb, random_numbers, replace_spans
from predict import TrainedModel

ATTACK_EDITS = (*LETTER_EDITS, "homoglyph")
EDITS_PER_KIND = 2
# The words at a review's start, of which `share_at_start` tells.
START_WORDS = 32


def attack(model: TrainedModel, texts: Sequence[str], labels: np.ndarray, budget: int, seed: int = 0) -> dict:
    """Accuracy when the words that matter most to the model each get the edit that hurts it most.

    A word's importance is how much probability the true label loses when the word is replaced by [UNK]. The words are
    edited one after the other, most important first; each gets that of twelve edits (two of each kind in
    `ATTACK_EDITS`) after which the true label is least probable (greedy, as in Gao et al. 2018 and Jin et al. 2020).
    The control makes as many random edits of random words.

    Args:
        model: to attack.
        texts: cleaned reviews.
        labels: (n,) 0/1.
        budget: maximum number of words to edit in a review.
        seed: of the edits, and of the control's choice of words.

    Returns:
        `greedy` and `random`: the accuracies after 0, 1, ... `budget` words. `share_at_start` and
        `random_share_at_start`: of the words that they choose, those among a review's first `START_WORDS`.
    """
    spans = [[match.span() for match in WORD.finditer(text)] for text in texts]
    target = _Target(model, texts, np.asarray(labels), spans)

    def greedy_edits(word: str, rank: int) -> list[str]:
        return _edits_of_each_kind(word, seed + rank)

    def random_edit(word: str, rank: int) -> list[str]:
        return [_random_edit(word, seed + rank)]

    important, random = _most_important_first(target), _random_order(target, seed)
    return {
        "greedy": _accuracies(target, important, budget, greedy_edits),
        "random": _accuracies(target, random, budget, random_edit),
        "share_at_start": _share_at_start(important, budget),
        "random_share_at_start": _share_at_start(random, budget),
    }


@dataclass(frozen=True)
class _Target:
    """A model and the reviews on which it is attacked; `spans` are those of each review's words."""

    model: TrainedModel
    texts: Sequence[str]
    labels: np.ndarray
    spans: Sequence[Sequence[Span]]

    def word(self, review: int, word: int) -> str:
        return self.texts[review][slice(*self.spans[review][word])]

    def edited(self, review: int, edits: dict[int, str]) -> str:
        """A review with some of its words, by index, replaced."""
        return replace_spans(self.texts[review], self.spans[review], dict(sorted(edits.items())))

    def label_probabilities(self, texts: Sequence[str], reviews: Sequence[int]) -> np.ndarray:
        """(n,) probability of the true label; `reviews` are the reviews that the texts were made from."""
        probabilities = self.model.probabilities(texts)
        return np.where(self.labels[list(reviews)] == 1, probabilities, 1 - probabilities)

    def accuracy(self, edits: Sequence[dict[int, str]]) -> float:
        """Accuracy on all reviews, each with its edits."""
        texts = [self.edited(review, of_review) for review, of_review in enumerate(edits)]
        return float(is_correct(self.model.probabilities(texts), self.labels).mean())


def _most_important_first(target: _Target) -> list[list[int]]:
    """The words of each review, as indices, by how much probability the true label loses without them."""
    # The model reads at most `max_length` tokens, so later words can't matter.
    order: list[list[int]] = []
    for review, spans in enumerate(tqdm(target.spans, desc="importance of words", leave=False, disable=None)):
        without = [target.edited(review, {word: "[UNK]"}) for word in range(min(len(spans), target.model.max_length))]
        probabilities = target.label_probabilities(without, [review] * len(without)) if without else []
        order.append(np.argsort(probabilities, kind="stable").tolist())
    return order


def _share_at_start(order: Sequence[Sequence[int]], budget: int) -> float | None:
    """Of the first `budget` words of each order, the share that is among the first `START_WORDS`; None of none."""
    chosen = [word for words in order for word in words[:budget]]
    return float(np.mean([word < START_WORDS for word in chosen])) if chosen else None


def _random_order(target: _Target, seed: int) -> list[list[int]]:
    """The words of each review, as indices, in random order."""
    return [
        np.argsort(random_numbers(seed, "attack", text)(len(spans))[:, 0]).tolist() if spans else []
        for text, spans in zip(target.texts, target.spans, strict=True)
    ]


def _accuracies(
    target: _Target, order: Sequence[Sequence[int]], budget: int, edits_of: Callable[[str, int], list[str]]
) -> list[float]:
    """Accuracies while the words of each review are edited one after the other.

    Args:
        target: model and reviews.
        order: of each review, its words as indices, first to be edited first.
        budget: words to edit.
        edits_of: (word, words edited before it) -> candidates, of which the worst for the model is applied.
    """
    edits: list[dict[int, str]] = [{} for _ in target.texts]
    accuracies = [target.accuracy(edits)]
    for rank in tqdm(range(budget), desc="edited words", leave=False, disable=None):
        candidates = [
            (review, words[rank], new)
            for review, words in enumerate(order)
            if rank < len(words)
            for new in edits_of(target.word(review, words[rank]), rank)
        ]
        if candidates:
            _apply_worst(target, edits, candidates)
        accuracies.append(target.accuracy(edits))
    return accuracies


def _apply_worst(target: _Target, edits: list[dict[int, str]], candidates: Sequence[tuple[int, int, str]]) -> None:
    """Add to each review's edits the candidate (review, word, new word) with the least probable true label."""
    texts = [target.edited(review, {**edits[review], word: new}) for review, word, new in candidates]
    probabilities = target.label_probabilities(texts, [review for review, _, _ in candidates])
    # In descending order, so that the lowest probability of a review is written last.
    for index in np.argsort(-probabilities, kind="stable"):
        review, word, new = candidates[index]
        edits[review][word] = new


def _edits_of_each_kind(word: str, seed: int) -> list[str]:
    seeds = [EDITS_PER_KIND * seed + turn for turn in range(EDITS_PER_KIND)]
    return list(dict.fromkeys(perturb(word, name, 1.0, seed) for name in ATTACK_EDITS for seed in seeds))


def _random_edit(word: str, seed: int) -> str:
    kind = int(random_numbers(seed, "edit", word)(1)[0, 0]) % len(ATTACK_EDITS)
    return perturb(word, ATTACK_EDITS[kind], 1.0, seed)
