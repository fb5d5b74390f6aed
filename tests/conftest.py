"""No test reaches a network or a screen; small reviews and runs that several files share."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from config import Config, load_config

# Read when the hub's client and matplotlib are imported, which no import above does.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"

# File names of the eight, without their ending.
EXPERIMENTS = [path.stem for path in sorted(Path("configs").glob("[1-8]_*.yaml"))]
GOOD = ["great", "lovely", "tasty", "friendly", "perfect", "wonderful"]
BAD = ["awful", "rude", "dirty", "cold", "terrible", "bland"]
FILLER = ["the", "food", "and", "service", "at", "this", "place", "were", "so", "on", "a", "monday", "with", "family"]
# Sizes that train in a moment; the settings of a test come on top.
SMALL = {
    "lstm": ["model.embedding_size=8", "model.hidden_size=8"],
    "transformer": ["model.embedding_size=8", "model.hidden_size=8", "model.num_heads=2"],
    "bert": [],
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(self, address):
        # Sockets of this machine's own file system are how processes talk to each other.
        if self.family != socket.AF_UNIX:
            raise OSError(f"a test tried to connect to {address}")
        return connect(self, address)

    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)


def make_texts(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Reviews whose label one word gives away, in alternation, and the labels."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for i in range(count):
        words = list(rng.choice(FILLER, rng.integers(3, 14)))
        words.insert(rng.integers(len(words)), str(rng.choice(GOOD if i % 2 else BAD)))
        texts.append(" ".join(words))
        labels.append(i % 2)
    return texts, labels


def write_csv(path, texts: list[str], labels: list[int]):
    """A file in the Yelp Polarity form."""
    path.write_text("".join(f'"{label + 1}","{text}"\n' for text, label in zip(texts, labels, strict=True)))
    return path


@pytest.fixture(scope="session")
def review_files(tmp_path_factory):
    """Folder with train.csv (48 reviews), validation.csv (20) and test.csv (22), and a cache shared by all tests."""
    return write_review_files(tmp_path_factory.mktemp("reviews"))


def write_review_files(folder: Path) -> Path:
    """The files of `review_files` in `folder`."""
    for seed, (name, count) in enumerate([("train", 48), ("validation", 20), ("test", 22)]):
        write_csv(folder / f"{name}.csv", *make_texts(count, seed))
    return folder


@pytest.fixture
def make_config(review_files, tmp_path):
    """`make_config("5_transformer_prenorm", "train.epochs=2", ...)`: an experiment on the small files, small."""

    return lambda experiment, *overrides: small_config(experiment, review_files, tmp_path / "run", *overrides)


def small_config(experiment: str, files: Path, run_dir: Path, *overrides: str) -> Config:
    """An experiment on the small files of a folder, small."""
    path = f"configs/{experiment}.yaml"
    common = [
        "data.source=files",
        *(f"data.{name}={files / name}.csv" for name in ("train", "validation", "test")),
        f"data.cache_dir={files / 'cache'}",
        "data.max_length=24",
        f"run_dir={run_dir}",
        "device=cpu",
        "train.epochs=3" if experiment != "8_minilm" else "train.epochs=2",
        "train.batch_size=8",
        "train.eval_steps=4",
        "train.learning_rate=0.001",
        "train.lr_scheduler=constant_with_warmup",
        "train.warmup_ratio=0",
        "train.cache_frozen_features=null",
    ]
    return load_config(path, [*common, *SMALL[load_config(path).model.backbone], *overrides])
