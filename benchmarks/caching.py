"""Time and memory from a file of reviews to the cache of their tokens, and of a second start that reads it.

    python benchmarks/caching.py [--reviews 20000]        # 560000 is the size of Yelp Polarity

The reviews are generated: lengths as Yelp's (log-normal, mean 133 words), words by Zipf's law from a vocabulary made of
syllables. Each start is a process of its own; peak memory is that of the process, and the largest of its children.
"""

from project import in_a_fresh_process

# isort: split
import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from config import DataConfig
from data import load_reviews
from training.device import device_name

SYLLABLES = np.array([a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "er", "in", "on", "al")])
VOCABULARY, CHUNK = 20_000, 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=int, default=20_000, help="for training; 38 for each 560 are for testing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"train": options.reviews, "test": options.reviews * 38 // 560}
        for seed, (split, size) in enumerate(sizes.items()):
            write_reviews(folder / f"{split}.csv", size, seed)
        megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        print(
            f"{device_name(torch.device('cpu'))}; {sizes['train']:,} + {sizes['test']:,} reviews, {megabytes:,.0f} MB"
        )
        for label in ("cold", "warm"):
            seconds, own, children, _ = in_a_fresh_process(load, folder, environment={})
            memory = f"peak memory {own / 2**20:,.0f} MiB, of a child {children / 2**20:,.0f} MiB"
            print(f"{label}: {seconds:7.1f} s, {sum(sizes.values()) / seconds:,.0f} reviews/s, {memory}", flush=True)
    return 0


def write_reviews(path: Path, size: int, seed: int) -> None:
    """A file in the Yelp Polarity form, in bounded memory."""
    words = np.array(["".join(np.random.default_rng(i).choice(SYLLABLES, 1 + i % 3)) for i in range(VOCABULARY)])
    rng = np.random.default_rng(seed)
    frequencies = 1 / np.arange(10, VOCABULARY + 10)
    with path.open("w") as file:
        for start in range(0, size, CHUNK):
            lengths = np.clip(rng.lognormal(4.55, 0.83, min(CHUNK, size - start)), 5, 1000).astype(int)
            chosen = words[rng.choice(VOCABULARY, lengths.sum(), p=frequencies / frequencies.sum())]
            for number, text in enumerate(np.split(chosen, np.cumsum(lengths)[:-1])):
                file.write(f'"{1 + (start + number) % 2}","{" ".join(text)}.\\n""{number}"" &amp; done"\n')


def load(folder: Path) -> tuple[float, int, int, int]:
    """Seconds of `load_reviews`, peak memory in bytes of this process and of its largest child, number of reviews."""
    config = DataConfig(
        source="files",
        train=str(folder / "train.csv"),
        test=str(folder / "test.csv"),
        validation_first=1000,
        cache_dir=str(folder / "cache"),
    )
    started = time.perf_counter()
    reviews = load_reviews(config)
    seconds = time.perf_counter() - started
    scale = 1 if sys.platform == "darwin" else 1024
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return seconds, own * scale, children * scale, len(reviews.train)


if __name__ == "__main__":
    sys.exit(main())
