"""The linear baseline beside the eight: TF-IDF + logistic regression, fitted in seconds.

    python -m analysis.linear_baseline                  # IMDB, into logs/imdb
    python -m analysis.linear_baseline profile=quick    # the reviews of another profile; run_dir=FOLDER/x: into FOLDER
    python -m analysis.linear_baseline data.max_length=512 key=0d name=linear_baseline_512 \
        'architecture=linear baseline, 512 tokens'      # a variant: the first of the two alone, under that key

The features are the TF-IDF of a review's tokens and of its pairs of neighbouring tokens: once of the tokens that the
eight read (`0_linear_baseline`), once of the whole review (`0w_linear_baseline_whole_reviews`). The regularisation is
chosen on the validation split; the test split is read once, by the chosen model. A folder that holds the baseline
complete is kept as it is; one of other settings is refused, unless overwrite=true.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from datasets import Dataset
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, log_loss
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from analysis.statistics import check_classes
from analysis.transfer import accuracy_facts
from config import Config, ModelConfig, TrainConfig, load_config
from data import Reviews, load_reviews, token_ids, write_text
from predict import predicted_labels
from training.command import run_command
from training.device import MemoryMeter, device_name
from training.run_folder import PREDICTIONS, finished_run, run_lock, start_run, write_predictions, write_summary
from training.summary import build_summary

log = logging.getLogger(__name__)

# Values of scikit-learn's C that are tried.
INVERSE_REGULARISATIONS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)
SPLITS = ("train", "validation", "test")
# Key, name and architecture, by whether whole reviews are read.
IDENTITIES = {
    False: ("0", "linear_baseline", "linear baseline"),
    True: ("0w", "linear_baseline_whole_reviews", "linear baseline, whole reviews"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status of `run_command`."""
    parser = argparse.ArgumentParser(
        description="Linear baseline: TF-IDF + logistic regression on the reviews of a profile."
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as of train.py: profile=..., data....")
    settings = parser.parse_args(arguments).settings
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    return run_command(lambda: _run_both(settings))


def run_baseline(
    config: Config,
    reviews: Reviews,
    whole: bool,
    run_dir: Path,
    others: Mapping[str, Dataset] = MappingProxyType({}),
    identity: tuple[str, str, str] | None = None,
) -> dict:
    """Fit, select and test one baseline, and write its run folder; the summary alone where that holds it complete.

    Args:
        config: whose data and profile count.
        reviews: the splits.
        whole: read whole reviews; else the tokens that the eight read.
        run_dir: gets what a run of `train.py` leaves, except a model.
        others: by name, further reviews (`text`, `label`) on which it is tested, for `transfer.json`.
        identity: key, name and architecture, where they are not those of `IDENTITIES`.

    Returns:
        The summary.

    Raises:
        InputError: the folder holds another run, or a split has one class only.
    """
    config = _identified(config, identity or IDENTITIES[whole])
    if (summary := finished_run(config, run_dir)) is not None:
        log.info("%s: already complete, kept as it is (overwrite=true fits it again)", run_dir)
        return summary
    labels = {name: getattr(reviews, name).labels for name in SPLITS}
    for name in SPLITS:
        check_classes(labels[name], f"{name} split")
    with run_lock(run_dir):
        return _fit_and_write(config, reviews, labels, whole, run_dir, others)


def _fit_and_write(
    config: Config,
    reviews: Reviews,
    labels: dict[str, np.ndarray],
    whole: bool,
    run_dir: Path,
    others: Mapping[str, Dataset],
) -> dict:
    """`run_baseline`, in a folder that is this process's own."""
    fit = _fit(reviews, labels, whole)
    probabilities = {"validation": fit.validation}
    started = time.perf_counter()
    texts = tokens_as_text(reviews, "test", whole)
    probabilities["test"] = fit.model.predict_proba(fit.vectorizer.transform(texts))[:, 1]
    test_metrics = {"test_seconds": round(time.perf_counter() - started, 3)}
    test_metrics |= _metrics("test", labels["test"], probabilities["test"])
    summary = _summary(config, reviews, fit, test_metrics)
    start_run(run_dir, config)
    if others:
        limit = None if whole else config.data.max_length
        accuracies = {name: _test_on(fit, other, reviews.tokenizer, limit) for name, other in others.items()}
        write_text(run_dir / "transfer.json", json.dumps(accuracies, indent=1) + "\n")
    _write_run(run_dir, reviews, fit.lines, probabilities, summary)
    accuracies = (100 * summary[f"{name}_accuracy"] for name in ("best_validation", "test"))
    log.info("%s: best validation accuracy %.1f%%, test accuracy %.1f%%, %.0f s", run_dir, *accuracies, fit.seconds)
    return summary


def _test_on(fit: "_Fit", others: Dataset, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> dict:
    """The accuracy on other reviews, cut at `limit` tokens (None: whole)."""
    texts = _as_text(
        _all_ids(others["text"], tokenizer) if limit is None else token_ids(list(others["text"]), tokenizer, limit)
    )
    probabilities = fit.model.predict_proba(fit.vectorizer.transform(texts))[:, 1]
    return accuracy_facts(probabilities, np.array(others["label"]))


def ngram_features(reviews: Reviews, whole: bool) -> tuple[TfidfVectorizer, dict[str, csr_matrix]]:
    """The TF-IDF of the training and validation reviews' tokens and pairs of tokens, (n, V); vocabulary and weights are
    those of the training split."""
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
    for name in ("train", "validation"):
        texts = tokens_as_text(reviews, name, whole)
        matrices[name] = vectorizer.fit_transform(texts) if name == "train" else vectorizer.transform(texts)
    return vectorizer, matrices


def tokens_as_text(reviews: Reviews, split: str, whole: bool) -> list[str]:
    """The token ids of each review, separated by blanks."""
    chosen = getattr(reviews, split)
    return _as_text(_all_ids(chosen.texts, reviews.tokenizer) if whole else chosen.dataset["input_ids"])


def _all_ids(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The token ids of whole texts."""
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]


def _as_text(ids: Iterable[Sequence[int]]) -> list[str]:
    return [" ".join(map(str, tokens)) for tokens in ids]


@dataclass(frozen=True)
class _Fit:
    """Fitted models: a line of metrics a regularisation, the best line, its model and that model's probabilities of the
    validation reviews, and what all of it cost."""

    lines: list[dict]
    best: dict
    validation: np.ndarray
    vectorizer: TfidfVectorizer
    model: LogisticRegression
    seconds: float
    memory: dict


def _run_both(settings: Sequence[str]) -> None:
    config = load_config(None, settings)
    is_variant = any(word.startswith("key=") for word in settings)
    identities = {False: (config.key, config.name, config.architecture)} if is_variant else IDENTITIES
    folders = {whole: Path(config.run_dir).parent / f"{key}_{name}" for whole, (key, name, _) in identities.items()}
    # Another run in one of the folders is refused before anything is computed.
    for whole, folder in folders.items():
        finished_run(_identified(config, identities[whole]), folder)
    reviews = load_reviews(config.data)
    for whole, folder in folders.items():
        run_baseline(config, reviews, whole, folder, identity=identities[whole])


def _identified(config: Config, identity: tuple[str, str, str]) -> Config:
    """The settings of a baseline, without those of a network, on which nothing depends here."""
    key, name, architecture = identity
    return replace(
        config,
        experiment=0,
        key=key,
        name=name,
        architecture=architecture,
        seed=0,
        model=ModelConfig(),
        train=TrainConfig(),
    )


def _fit(reviews: Reviews, labels: dict[str, np.ndarray], whole: bool) -> _Fit:
    """A model of each regularisation, the best by validation accuracy (the first of equals)."""
    meter = MemoryMeter(torch.device("cpu"))
    started = time.perf_counter()
    vectorizer, matrices = ngram_features(reviews, whole)
    lines, best, best_model, best_validation = [], None, None, None
    bar = tqdm(INVERSE_REGULARISATIONS, desc="regularisations", leave=False, disable=None)
    for step, strength in enumerate(bar, start=1):
        model = LogisticRegression(C=strength, max_iter=1000).fit(matrices["train"], labels["train"])
        line = {"step": step, "inverse_regularisation": strength}
        probabilities = {name: model.predict_proba(matrix)[:, 1] for name, matrix in matrices.items()}
        for name in probabilities:
            line |= _metrics(name, labels[name], probabilities[name])
        lines.append(line)
        if best is None or line["validation_accuracy"] > best["validation_accuracy"]:
            best, best_model, best_validation = line, model, probabilities["validation"]
        meter.sample()
    seconds = time.perf_counter() - started
    return _Fit(lines, best, best_validation, vectorizer, best_model, seconds, meter.result())


def _metrics(split: str, labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Loss (nats), accuracy and F1 of a split, under the names that `train.py` logs."""
    predicted = predicted_labels(probabilities)
    return {
        f"{split}_loss": float(log_loss(labels, probabilities)),
        f"{split}_accuracy": float(accuracy_score(labels, predicted)),
        f"{split}_f1": float(f1_score(labels, predicted)),
    }


def _summary(config: Config, reviews: Reviews, fit: _Fit, test_metrics: dict) -> dict:
    """The run in one JSON object, as of `train.py`."""
    measured = {
        "parameters": fit.model.coef_.size + fit.model.intercept_.size,
        "inverse_regularisation": fit.best["inverse_regularisation"],
        "train_loss": fit.best["train_loss"],
        "train_accuracy": fit.best["train_accuracy"],
        **{f"best_validation_{metric}": fit.best[f"validation_{metric}"] for metric in ("accuracy", "loss", "f1")},
        "best_validation_step": fit.best["step"],
        **test_metrics,
        "train_seconds": round(fit.seconds, 3),
        "evaluation_seconds": 0.0,
        "memory": fit.memory,
        "device": device_name(torch.device("cpu")),
    }
    return build_summary(config, reviews, measured, packages=("scikit-learn",))


def _write_run(
    run_dir: Path, reviews: Reviews, lines: list[dict], probabilities: dict[str, np.ndarray], summary: dict
) -> None:
    """What a complete run leaves in its folder, the summary last."""
    write_predictions(run_dir / PREDICTIONS, reviews.validation, probabilities["validation"])
    write_predictions(run_dir / "test_predictions.csv", reviews.test, probabilities["test"])
    write_text(run_dir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_summary(run_dir, summary)


if __name__ == "__main__":
    sys.exit(main())
