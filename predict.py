"""Labels and probabilities for new reviews, by the model that a run has kept.

python predict.py RUN_DIR reviews.csv --output predictions.csv
python predict.py RUN_DIR --text "The food was great."
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from config import InputError
from data import TokenizedTexts, clean, read_texts
from models import load_model
from training.command import run_command
from training.device import pick_device
from training.evaluation import predict_logits


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status of `run_command`."""
    parser = argparse.ArgumentParser(description="Label reviews with a trained model: 0 negative, 1 positive.")
    parser.add_argument("run_dir", type=Path, help="folder of a run, such as logs/quick/4_lstm_attention")
    parser.add_argument("reviews", type=Path, nargs="?", help="CSV, JSON, JSONL or Parquet with a column text")
    parser.add_argument("--output", type=Path, help="CSV to write: label,probability of positive, a row a review")
    parser.add_argument("--text", help="label this one review, and print the result")
    options = parser.parse_args(arguments)
    if (options.text is None) == (options.reviews is None):
        parser.error("give either a file of reviews or --text")
    if options.reviews is not None and options.output is None:
        parser.error("a file of reviews needs --output FILE.csv")
    if options.text is not None:
        return run_command(lambda: _write(sys.stdout, predict(options.run_dir, [options.text])))
    return run_command(lambda: _label_file(options.run_dir, options.reviews, options.output))


def predict(run_dir: str | Path, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
    """The probability of each text being positive, computed on a GPU where there is one.

    Args:
        run_dir: a run's folder, or a folder of `models.save_model`.
        texts: reviews as people write them; cleaned as in training.
        batch_size: reviews at a time.

    Returns:
        (n,) float64, in the order of the texts.

    Raises:
        InputError: the folder holds no model.
    """
    model = TrainedModel(run_dir)
    return model.probabilities([clean(text) for text in texts], batch_size)


def predicted_labels(probabilities: np.ndarray) -> np.ndarray:
    """(n,) 0/1 from the probabilities of positive: positive from one half on."""
    return (probabilities >= 0.5).astype(np.int64)


class TrainedModel:
    """The classifier that a run has kept, with its tokenizer, ready to predict.

    Args:
        run_dir: a run's folder, or a folder of `models.save_model`.

    Raises:
        InputError: the folder holds no model.
    """

    def __init__(self, run_dir: str | Path):
        run_dir = Path(run_dir)
        best = run_dir / "best" if (run_dir / "best").is_dir() or not run_dir.is_dir() else run_dir
        model, self.tokenizer, self.max_length = load_model(best)
        self.device = pick_device("auto")
        self.model = model.to(self.device)

    def probabilities(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """The probability of positive of each cleaned text, (n,) float64, in their order."""
        return self.probabilities_of_ids(self.token_ids(texts), batch_size)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, cut to `max_length` tokens; [CLS] and [SEP] alone for an empty text."""
        texts = list(texts)
        return self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"] if texts else []

    def probabilities_of_ids(self, ids: Sequence[Sequence[int]], batch_size: int = 64) -> np.ndarray:
        """`probabilities` of texts that are tokenised already."""
        logits = predict_logits(self.model, TokenizedTexts(ids), batch_size, self.device)
        return logits.softmax(dim=1)[:, 1].numpy()


def _label_file(run_dir: Path, reviews: Path, output: Path) -> None:
    # Before the work rather than after it.
    if output.is_dir() or not output.parent.is_dir():
        raise InputError(f"--output {output}: expected a file in a folder that exists")
    probabilities = predict(run_dir, read_texts(reviews))
    with output.open("w", newline="") as file:
        _write(file, probabilities)


def _write(file, probabilities: np.ndarray) -> None:
    """`label,probability` of each review as CSV."""
    writer = csv.writer(file, lineterminator="\n" if file is sys.stdout else "\r\n")
    writer.writerow(["label", "probability"])
    for label, probability in zip(predicted_labels(probabilities), probabilities, strict=True):
        writer.writerow([label, f"{probability:.6f}"])


if __name__ == "__main__":
    sys.exit(main())
