"""The floor beside the eight: logistic regression on bags of words, which costs seconds.

    python baseline.py                          # IMDB: logs/imdb/0_bag_of_words and logs/imdb/0w_bag_of_words_whole
    python baseline.py profile=quick            # the reviews of another profile; run_dir=FOLDER/0 writes into FOLDER

A review is the TF-IDF of its tokens and of its pairs of neighbouring tokens, once of the tokens that the eight read
(`0_bag_of_words`), once of the whole review (`0w_bag_of_words_whole`). The strength of the regularisation is chosen on
the validation split, the test split is read once, with the strength chosen.
"""

import argparse
import json
import logging
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, log_loss

from config import Config, InputError, load_config
from data import Reviews, load_reviews
from training.checkpoint import write_text
from training.device import MemoryMeter, device_name
from training.run_folder import PREDICTIONS, RUN_FILES, write_predictions

log = logging.getLogger(__name__)

STRENGTHS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)
SPLITS = ("train", "validation", "test")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0 done, 2 for input that can't be used."""
    parser = argparse.ArgumentParser(description="Linear floor on bags of words, on the reviews of a profile.")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as of train.py: profile=..., data....")
    settings = parser.parse_args(arguments).settings
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        config = load_config(None, settings)
        reviews = load_reviews(config.data)
        for whole in (False, True):
            name = "bag_of_words_whole" if whole else "bag_of_words"
            run_floor(config, reviews, whole, Path(config.run_dir).parent / f"{'0w' if whole else '0'}_{name}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run_floor(config: Config, reviews: Reviews, whole: bool, run_dir: Path) -> dict:
    """Fit, choose and test one floor, and write its run folder.

    Args:
        config: whose data and profile count.
        reviews: the splits.
        whole: read the whole reviews; else the tokens that the eight read.
        run_dir: gets what a run of `train.py` leaves, but for a model.

    Returns:
        The summary.
    """
    meter = MemoryMeter(torch.device("cpu"))
    labels = {name: getattr(reviews, name).labels for name in SPLITS}
    started = time.perf_counter()
    vectorizer, matrices = bags(reviews, whole)
    lines, best = [], None
    for step, strength in enumerate(STRENGTHS, start=1):
        model = LogisticRegression(C=strength, max_iter=1000).fit(matrices["train"], labels["train"])
        line = {"step": step, "inverse_regularisation": strength}
        for name in ("train", "validation"):
            line |= figures(name, labels[name], model.predict_proba(matrices[name])[:, 1])
        lines.append(line)
        if best is None or line["validation_accuracy"] > best[0]["validation_accuracy"]:
            best = line, model
        meter.sample()
    seconds = time.perf_counter() - started
    line, model = best
    probabilities = {name: model.predict_proba(matrices[name])[:, 1] for name in ("validation", "test")}
    memory = meter.result()
    summary = {
        "experiment": 0,
        "name": run_dir.name.partition("_")[2],
        "architecture": f"bag of words, linear, {'whole reviews' if whole else 'the same tokens'}",
        "profile": config.profile,
        "parameters": len(vectorizer.vocabulary_) + 1,
        "inverse_regularisation": line["inverse_regularisation"],
        "train_loss": line["train_loss"],
        "train_accuracy": line["train_accuracy"],
        **{f"best_validation_{key}": line[f"validation_{key}"] for key in ("accuracy", "loss", "f1")},
        "best_validation_step": line["step"],
        **figures("test", labels["test"], probabilities["test"]),
        "train_seconds": round(seconds, 3),
        "evaluation_seconds": 0.0,
        "steady_memory_bytes": memory["steady_bytes"],
        "peak_memory_bytes": memory["peak_bytes"],
        "memory": memory,
        "device": device_name(torch.device("cpu")),
        "versions": {"python": platform.python_version(), "scikit-learn": version("scikit-learn")},
        "seed": 0,
        "data": {
            "source": config.data.source,
            **{name: len(labels[name]) for name in SPLITS},
            "fingerprint": reviews.fingerprint,
        },
        "completed": True,
    }
    write_run(run_dir, reviews, lines, probabilities, summary)
    log.info(
        "%s: best validation accuracy %.1f%%, test accuracy %.1f%%, %.0f s",
        run_dir,
        100 * summary["best_validation_accuracy"],
        100 * summary["test_accuracy"],
        seconds,
    )
    return summary


def bags(reviews: Reviews, whole: bool) -> tuple[TfidfVectorizer, dict[str, csr_matrix]]:
    """The TF-IDF of each split's tokens and pairs of tokens; learnt, as its vocabulary, on the training split."""
    # The text is a review's tokens already: there is nothing left to do before the n-grams.
    vectorizer = TfidfVectorizer(
        preprocessor=None,
        tokenizer=str.split,
        token_pattern=None,
        lowercase=False,
        ngram_range=(1, 2),
        min_df=2,
        sublinear_tf=True,
    )
    matrices = {}
    for name in SPLITS:
        texts = tokens_as_text(reviews, name, whole)
        matrices[name] = vectorizer.fit_transform(texts) if name == "train" else vectorizer.transform(texts)
    return vectorizer, matrices


def tokens_as_text(reviews: Reviews, split: str, whole: bool) -> list[str]:
    """The ids of each review's tokens, with blanks between them."""
    chosen = getattr(reviews, split)
    if whole:
        ids = reviews.tokenizer(chosen.texts, add_special_tokens=False, verbose=False)["input_ids"]
    else:
        ids = chosen.dataset["input_ids"]
    return [" ".join(map(str, tokens)) for tokens in ids]


def figures(name: str, labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Loss (nats), accuracy and F1 of a split, as `train.py` logs them."""
    predicted = probabilities >= 0.5
    return {
        f"{name}_loss": float(log_loss(labels, probabilities)),
        f"{name}_accuracy": float(accuracy_score(labels, predicted)),
        f"{name}_f1": float(f1_score(labels, predicted)),
    }


def write_run(
    run_dir: Path, reviews: Reviews, lines: list[dict], probabilities: dict[str, np.ndarray], summary: dict
) -> None:
    """The run folder, the summary last."""
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in RUN_FILES:
        (run_dir / name).unlink(missing_ok=True)
    write_predictions(run_dir / PREDICTIONS, reviews.validation, probabilities["validation"])
    write_predictions(run_dir / "test_predictions.csv", reviews.test, probabilities["test"])
    write_text(run_dir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_text(run_dir / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
