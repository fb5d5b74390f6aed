"""Labels and probabilities for new reviews, by the model that a run has kept; or its metrics on labelled ones.

python predict.py RUN_DIR reviews.csv --output predictions.csv
python predict.py RUN_DIR reviews.csv --evaluate
python predict.py RUN_DIR --text "The food was great."
"""

import training  # noqa: F401  before torch

# isort: split
import argparse
import csv
import itertools
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from tqdm import tqdm

from config import InputError, load_config
from data import TokenizedTexts, atomic_path, clean, read_file, warn_of_few_reviews, write_text
from models import find_saved_model, load_model
from sources.files import Columns, check_text, count_texts, read_texts, shorten
from training.command import check_output, run_command
from training.device import pick_device
from training.evaluation import predict_logits

# Texts that are tokenised at a time: the tokens of a long review take about 100 times the space of its text.
CHUNK_SIZE = 1024
CALIBRATION_BINS = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status of `run_command`."""
    parser = argparse.ArgumentParser(description="Label reviews with a trained model: 0 negative, 1 positive.")
    parser.add_argument("run_dir", type=Path, help="folder of a run, such as logs/quick/4_lstm_attention")
    parser.add_argument("reviews", type=Path, nargs="?", help="file or folder of reviews; - is CSV on standard input")
    parser.add_argument("--output", type=Path, help="file to write: label,probability a review; with --evaluate JSON")
    parser.add_argument("--text", help="label this one review, and print the result")
    parser.add_argument("--evaluate", action="store_true", help="the reviews have labels: print accuracy, F1 and more")
    for name in ("text-column", "label-column", "labels"):
        parser.add_argument(f"--{name}", metavar="VALUE", help=f"as data.{name.replace('-', '_')} of train.py")
    options = parser.parse_args(arguments)
    if (options.text is None) == (options.reviews is None):
        parser.error("give either a file of reviews or --text")
    if options.reviews is not None and options.output is None and not options.evaluate:
        parser.error("a file of reviews needs --output FILE.csv or --evaluate")
    if options.text is not None and (options.output is not None or options.evaluate):
        parser.error("--text prints its result; --output and --evaluate need a file of reviews")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_command(lambda: _run(options))


def predict(run_dir: str | Path, texts: Iterable[str], batch_size: int = 64) -> np.ndarray:
    """The probability of each text being positive, computed on a GPU where there is one.

    Args:
        run_dir: a run's folder, or a folder of `models.save_model`.
        texts: reviews as people write them (a list, a column of a table, an array); cleaned as in training.
        batch_size: reviews at a time.

    Returns:
        (n,) float64, in the order of the texts.

    Raises:
        InputError: the folder holds no model, or `texts` is something else than strings.
    """
    texts = _check_texts(texts)
    return TrainedModel(run_dir).probabilities([clean(text) for text in texts], batch_size)


def predicted_labels(probabilities: np.ndarray) -> np.ndarray:
    """(n,) 0/1 from the probabilities of positive: positive from one half on."""
    return (probabilities >= 0.5).astype(np.int64)


class TrainedModel:
    """The classifier that a run has kept, with its tokenizer, ready to predict.

    Args:
        run_dir: a run's folder, or a folder of `models.save_model`.
        precision: of the forward pass: fp32, bf16 or fp16.

    Raises:
        InputError: the folder holds no model.
    """

    def __init__(self, run_dir: str | Path, precision: str = "fp32"):
        self.precision = precision
        model, self.tokenizer, self.max_length = load_model(find_saved_model(run_dir))
        self.device = pick_device("auto")
        self.model = model.to(self.device)

    def probabilities(self, texts: Iterable[str], batch_size: int = 64) -> np.ndarray:
        """The probability of positive of each cleaned text, (n,) float64, in their order."""
        texts = _check_texts(texts)
        chunks = [texts[start : start + CHUNK_SIZE] for start in range(0, len(texts), CHUNK_SIZE)]
        parts = [self.probabilities_of_ids(self.token_ids(chunk), batch_size) for chunk in chunks]
        return np.concatenate([np.zeros(0), *parts])

    def token_ids(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of each text, cut to `max_length` tokens; [CLS] and [SEP] alone for an empty text."""
        texts = _check_texts(texts)
        return self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"] if texts else []

    def probabilities_of_ids(self, ids: Sequence[Sequence[int]], batch_size: int = 64) -> np.ndarray:
        """`probabilities` of texts that are tokenised already."""
        logits = predict_logits(self.model, TokenizedTexts(ids), batch_size, self.device, self.precision)
        return logits.softmax(dim=1)[:, 1].numpy()


def evaluate_file(run_dir: str | Path, path: str | Path, columns: Columns) -> dict:
    """Metrics of a run's model on the labelled reviews of a file; see `classification_metrics`.

    Raises:
        InputError: the reviews or the model can't be read, or the reviews are of one class.
    """
    model, reviews = TrainedModel(run_dir), read_file(path, columns)
    warn_of_few_reviews(str(path), np.array(reviews["label"]))
    parts = _probabilities(model, iter(reviews["text"]), len(reviews))
    metrics = classification_metrics(np.array(reviews["label"]), np.concatenate(list(parts)))
    return {"run": str(run_dir), "data": str(path), **metrics}


def classification_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict:
    """How well probabilities of positive fit the labels.

    Args:
        labels: (n,) 0/1.
        probabilities: (n,), of positive.

    Returns:
        `reviews` and `positive` (how many), `accuracy` with its 95% interval (Wilson 1927), `f1` of the positive class,
        `confusion_matrix` (rows: negative, positive; columns: predicted so), `expected_calibration_error` (over bins of
        equal width, the mean distance between probability and share of positive, weighted by reviews; Naeini et al.
        2015) and `calibration`, those bins.
    """
    predicted = predicted_labels(probabilities)
    interval = binomtest(int((predicted == labels).sum()), len(labels)).proportion_ci(method="wilson")
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    members = [bins == number for number in np.unique(bins)]
    calibration = [
        {
            "reviews": int(inside.sum()),
            "mean_probability": float(probabilities[inside].mean()),
            "share_positive": float(labels[inside].mean()),
        }
        for inside in members
    ]
    error = sum(b["reviews"] * abs(b["mean_probability"] - b["share_positive"]) for b in calibration) / len(labels)
    return {
        "reviews": len(labels),
        "positive": int(labels.sum()),
        "accuracy": float(accuracy_score(labels, predicted)),
        "accuracy_interval": [float(interval.low), float(interval.high)],
        "f1": float(f1_score(labels, predicted, zero_division=0)),
        "confusion_matrix": confusion_matrix(labels, predicted, labels=[0, 1]).tolist(),
        "expected_calibration_error": error,
        "calibration": calibration,
    }


# ---------------------------------------------------------------- the command


def _run(options: argparse.Namespace) -> None:
    """What the command line asks for."""
    if options.text is not None:
        _write(sys.stdout, predict(options.run_dir, [options.text]))
        return
    if options.output is not None:
        check_output(options.output, options.reviews)
    values = {name: getattr(options, name) for name in ("text_column", "label_column", "labels")}
    data = load_config(None, [f"data.{name}={value}" for name, value in values.items() if value is not None]).data
    columns = Columns(data.text_column, data.label_column, data.labels)
    if not options.evaluate:
        _label_file(options.run_dir, options.reviews, options.output, columns)
        return
    metrics = evaluate_file(options.run_dir, options.reviews, columns)
    print(_describe(metrics))
    if options.output is not None:
        write_text(options.output, json.dumps(metrics, indent=1, allow_nan=False) + "\n")


def _label_file(run_dir: Path, reviews: Path, output: Path, columns: Columns) -> None:
    """Label a file of any size, of which a chunk is in memory at a time."""
    model, total = TrainedModel(run_dir), None
    if str(reviews) != "-":
        # A row that can't be read is refused now rather than after hours.
        total, columns = count_texts(reviews, columns)
    texts = (clean(text) for text in read_texts(reviews, columns))
    with atomic_path(output) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        _write(file, itertools.chain.from_iterable(_probabilities(model, texts, total)))


def _probabilities(model: TrainedModel, texts: Iterator[str], total: int | None) -> Iterator[np.ndarray]:
    """The probabilities of positive of cleaned texts, chunk by chunk, with a progress bar on a terminal."""
    with tqdm(total=total, unit=" reviews", disable=None) as bar:
        while chunk := list(itertools.islice(texts, CHUNK_SIZE)):
            yield model.probabilities(chunk)
            bar.update(len(chunk))


def _write(file, probabilities: Iterable[float]) -> None:
    """`label,probability` of each review as CSV."""
    writer = csv.writer(file, lineterminator="\n" if file is sys.stdout else "\r\n")
    writer.writerow(["label", "probability"])
    writer.writerows([int(probability >= 0.5), f"{probability:.6f}"] for probability in probabilities)


def _describe(metrics: dict) -> str:
    """The metrics of `evaluate_file` as a text for people."""
    (low, high), matrix = metrics["accuracy_interval"], metrics["confusion_matrix"]
    negative = metrics["reviews"] - metrics["positive"]
    return "\n".join(
        [
            f"{metrics['reviews']} reviews: {negative} negative, {metrics['positive']} positive",
            f"accuracy {100 * metrics['accuracy']:.1f}% (95% CI {100 * low:.1f}% to {100 * high:.1f}%)",
            f"F1 of positive {metrics['f1']:.3f}",
            f"{'confusion matrix':<18}{'predicted negative':>20}{'predicted positive':>20}",
            *(
                f"{name:<18}{row[0]:>20}{row[1]:>20}"
                for name, row in zip(("negative", "positive"), matrix, strict=True)
            ),
            f"expected calibration error {metrics['expected_calibration_error']:.3f} ({CALIBRATION_BINS} bins)",
            f"{'reviews':>18}{'mean probability':>20}{'share of positive':>20}",
            *(
                f"{b['reviews']:>18}{b['mean_probability']:>20.3f}{b['share_positive']:>20.3f}"
                for b in metrics["calibration"]
            ),
        ]
    )


def _check_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list; `InputError`, with the position, for anything but strings.

    A string is a sequence of strings, a dictionary one of its keys, a table one of its columns' names: none is meant.
    """
    if isinstance(texts, str):
        raise InputError("texts is a string; expected a list of strings: predict(run_dir, [text])")
    if isinstance(texts, Mapping | set | frozenset) or hasattr(texts, "columns") or getattr(texts, "ndim", 1) != 1:
        raise InputError(
            f"texts is a {type(texts).__name__}; expected a list of strings, or the column of a table: table['text']"
        )
    if not isinstance(texts, Iterable):
        raise InputError(f"texts is {shorten(texts)}; expected a list of strings")
    return [str(check_text(text, f"texts[{position}]")) for position, text in enumerate(texts)]


if __name__ == "__main__":
    sys.exit(main())
