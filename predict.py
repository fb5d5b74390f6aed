"""Labels and probabilities for reviews, by a trained model.

python predict.py RUN_DIR reviews.csv --output predictions.csv
python predict.py RUN_DIR --text "The food was great."
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from config import InputError
from data import clean, evaluation_batches, pad, read_texts
from models import ReviewClassifier, load_model
from training.device import pick_device


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
    run_dir = Path(run_dir)
    device = pick_device("auto")
    model, tokenizer, max_length = load_model(run_dir / "best" if (run_dir / "best").is_dir() else run_dir)
    model.to(device)
    cleaned = [clean(text) for text in texts]
    tokens = tokenizer(cleaned, truncation=True, max_length=max_length)["input_ids"] if cleaned else []
    return predict_tokens(model, tokens, device, batch_size)


@torch.inference_mode()
def predict_tokens(
    model: ReviewClassifier, tokens: Sequence[Sequence[int]], device: torch.device, batch_size: int = 64
) -> np.ndarray:
    """The probability of each tokenised text being positive, (n,) float64, in their order; batched by length."""
    probabilities = np.empty(len(tokens))
    for indices in evaluation_batches(np.array([len(ids) for ids in tokens]), batch_size):
        chosen = [tokens[i] for i in indices]
        offsets = np.cumsum([0] + [len(ids) for ids in chosen])
        batch = {name: tensor.to(device) for name, tensor in pad(offsets, np.concatenate(chosen)).items()}
        probabilities[indices] = model(**batch).logits.double().softmax(dim=1)[:, 1].cpu().numpy()
    return probabilities


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0 done, 2 for input that can't be used."""
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
    try:
        texts = [options.text] if options.reviews is None else read_texts(options.reviews)
        probabilities = predict(options.run_dir, texts)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [(int(probability >= 0.5), f"{probability:.6f}") for probability in probabilities]
    if options.reviews is None:
        print("label,probability", ",".join(map(str, rows[0])), sep="\n")
        return 0
    with options.output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "probability"])
        writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
