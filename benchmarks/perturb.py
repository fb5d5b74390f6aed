"""How long the perturbations take on 1,000 IMDB reviews, in one process on one core.

python benchmarks/perturb.py
"""

import project  # noqa: F401

# isort: split
import statistics
import sys
import time
from collections.abc import Sequence

from config import DataConfig
from data import load_reviews
from perturbations import PERTURBATIONS, WORD, WORD_EDITS, perturb

NUM_REVIEWS, NUM_TURNS = 1000, 3


def main() -> int:
    texts = load_reviews(DataConfig()).validation.texts[:NUM_REVIEWS]
    num_words = sum(len(WORD.findall(text)) for text in texts)
    print(f"{len(texts):,} reviews, {num_words:,} words; processor time at amount 0.5, median of {NUM_TURNS}")
    for label, names in {**{name: name for name in PERTURBATIONS}, "all eight word edits": WORD_EDITS}.items():
        seconds = statistics.median(_processor_seconds(texts, names, seed) for seed in range(NUM_TURNS))
        print(f"{label:20s} {seconds:6.2f} s  {num_words / seconds / 1e3:8,.0f} k words/s")
    return 0


def _processor_seconds(texts: Sequence[str], names: str | Sequence[str], seed: int) -> float:
    started = time.process_time()
    perturb(texts, names, seed=seed)
    return time.process_time() - started


if __name__ == "__main__":
    sys.exit(main())
