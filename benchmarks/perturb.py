"""How long the perturbations take on 1,000 IMDB reviews, in one process on one core.

python benchmarks/perturb.py
"""

import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import DataConfig  # noqa: E402
from data import load_reviews  # noqa: E402
from perturbations import EIGHT, PERTURBATIONS, WORD, perturb  # noqa: E402

REVIEWS, TURNS = 1000, 3


def main() -> int:
    texts = load_reviews(DataConfig()).validation.texts[:REVIEWS]
    words = sum(len(WORD.findall(text)) for text in texts)
    print(f"{len(texts):,} reviews, {words:,} words; seconds of processor time at amount 0.5, median of {TURNS}")
    for label, names in {**{name: name for name in PERTURBATIONS}, "all eight swaps composed": EIGHT}.items():
        taken = []
        for turn in range(TURNS):
            started = time.process_time()
            perturb(texts, names, seed=turn)
            taken.append(time.process_time() - started)
        print(
            f"{label:26s} {statistics.median(taken):6.2f} s  {words / statistics.median(taken) / 1e3:8,.0f} k words/s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
