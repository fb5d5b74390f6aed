"""How soon other ways to train a sentiment classifier on a CPU reach an accuracy, beside this project's.

    python benchmarks/peers.py [--target 0.85] [--most 900] [--only hf ours_8 ...] [--output FILE]

All train on the same IMDB reviews (`profile=imdb`) on the same cores, one after another, and are evaluated on the same
validation reviews every 250 steps; the time of evaluations does not count, that of tokenising does. Each stops at the
target, after its epochs, or at the first evaluation after `--most` seconds. The peers, as people write them:

    hf      transformers' Trainer on MiniLM with a new classifier, all but the last encoder layer frozen
    bilstm  a bidirectional LSTM of a tutorial: reviews tokenised in the collate function, padded to 256 tokens, the
            last states of both directions under a linear layer
    linear  TF-IDF and logistic regression of scikit-learn, in one go

and of this project the experiments 1, 4 and 8 by `train.py`'s own steps.
"""

import project

# isort: split
import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    TrainerCallback,
    TrainingArguments,
)
from transformers import Trainer as HuggingFaceTrainer

from config import CONFIGS, TrainConfig, load_config
from data import Reviews, batch_loader, load_reviews, packaged_encoder, training_batches
from models import build_model
from train import cache_frozen_features
from training.device import device_name, prepare_process
from training.evaluation import evaluate
from training.trainer import TrainingStep

CPU = torch.device("cpu")
EVAL_STEPS, BATCH_SIZE, EPOCHS, MAX_LENGTH = 250, 32, 4, 256
# Seconds of training, reviews seen, and validation accuracy at each evaluation.
Evaluations = Iterator[tuple[float, int, float]]


class Stopwatch:
    """Seconds since it was made, those inside of `paused` aside."""

    def __init__(self):
        self.started, self.excluded = time.perf_counter(), 0.0

    def seconds(self) -> float:
        return time.perf_counter() - self.started - self.excluded

    def __enter__(self) -> None:
        self.paused_at = time.perf_counter()

    def __exit__(self, *_) -> None:
        self.excluded += time.perf_counter() - self.paused_at


def ours(experiment: str, reviews: Reviews, precision: str) -> Evaluations:
    """An experiment's own steps at the settings of `profile=imdb`."""
    watch = Stopwatch()
    overrides = ["profile=imdb", f"train.precision={precision}"]
    if experiment == "8_minilm":
        overrides.append(f"train.cache_frozen_features={precision}")
    config = load_config(CONFIGS / f"{experiment}.yaml", overrides)
    torch.manual_seed(0)
    model = build_model(config.model, len(reviews.tokenizer), config.data.max_length)
    settings = config.train
    if settings.cache_frozen_features:
        with tempfile.TemporaryDirectory(dir=project.ROOT) as folder:
            config = replace(config, data=replace(config.data, cache_dir=folder))
            reviews = cache_frozen_features(config, model, reviews, CPU)
            yield from our_steps(watch, model, settings, reviews)
    else:
        yield from our_steps(watch, model, settings, reviews)


def our_steps(watch: Stopwatch, model: nn.Module, settings: TrainConfig, reviews: Reviews) -> Evaluations:
    """`ours`, once the model is built and the frozen features are cached."""
    per_epoch = -(-len(reviews.train) // settings.batch_size)
    step = TrainingStep(model, settings, settings.epochs * per_epoch, CPU)
    count = seen = 0
    for epoch in range(1, settings.epochs + 1):
        model.start_epoch(epoch)
        model.train()
        batches = training_batches(reviews.train.lengths, settings.batch_size, 0, epoch)
        for batch in batch_loader(reviews.train, batches, CPU):
            step(batch)
            count, seen = count + 1, seen + len(batch["labels"])
            if count % EVAL_STEPS == 0:
                with watch:
                    result = evaluate(model, reviews.validation, settings.eval_batch_size, CPU, settings.precision)
                yield watch.seconds(), seen, result.accuracy
                model.train()


class TutorialBiLSTM(nn.Module):
    """Embedding, bidirectional LSTM, the last states of both directions, dropout, linear layer."""

    def __init__(self, vocabulary_size: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, 256, padding_idx=0)
        self.lstm = nn.LSTM(256, 256, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.3)
        self.linear = nn.Linear(512, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        _, (h, _) = self.lstm(self.embedding(input_ids))
        return self.linear(self.dropout(torch.cat([h[0], h[1]], dim=1)))


def bilstm(reviews: Reviews, precision: str) -> Evaluations:
    """A tutorial's loop: padded on the right to 256 tokens, Adam at 1e-3."""

    def collate(items: list[tuple[str, int]]) -> tuple[Tensor, Tensor]:
        texts, labels = zip(*items, strict=True)
        tokens = reviews.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
        )
        return tokens["input_ids"], torch.tensor(labels)

    def loader(split, shuffle: bool) -> DataLoader:
        pairs = list(zip(split.texts, split.labels.tolist(), strict=True))
        return DataLoader(pairs, batch_size=BATCH_SIZE, shuffle=shuffle, collate_fn=collate)

    def accuracy() -> float:
        model.eval()
        with torch.no_grad():
            correct = sum((model(ids).argmax(dim=1) == labels).sum().item() for ids, labels in validation)
        model.train()
        return correct / len(reviews.validation)

    watch = Stopwatch()
    torch.manual_seed(0)
    model = TutorialBiLSTM(len(reviews.tokenizer))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train, validation = loader(reviews.train, True), loader(reviews.validation, False)
    count = seen = 0
    for _ in range(EPOCHS):
        for ids, labels in train:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                loss = nn.functional.cross_entropy(model(ids), labels)
            loss.backward()
            optimizer.step()
            count, seen = count + 1, seen + len(labels)
            if count % EVAL_STEPS == 0:
                with watch:
                    reached = accuracy()
                yield watch.seconds(), seen, reached


class _EvaluationTimes(TrainerCallback):
    """Notes training seconds and accuracy at each evaluation, and stops at the target."""

    def __init__(self, watch: Stopwatch, target: float, most: float):
        self.watch, self.target, self.most, self.rows = watch, target, most, []

    def on_step_end(self, args, state, control, **_):
        if state.global_step % EVAL_STEPS == 0:
            self.watch.__enter__()

    def on_evaluate(self, args, state, control, metrics, **_):
        self.watch.__exit__()
        self.rows.append((self.watch.seconds(), state.global_step * BATCH_SIZE, metrics["eval_accuracy"]))
        is_over = metrics["eval_accuracy"] >= self.target or self.rows[-1][0] > self.most
        control.should_training_stop = is_over


def hugging_face(reviews: Reviews, precision: str, target: float, most: float) -> Evaluations:
    """transformers' Trainer, batches padded to their longest review and grouped by length."""
    watch = Stopwatch()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(str(packaged_encoder()), num_labels=2)
    model.base_model.requires_grad_(False)
    model.base_model.encoder.layer[-1].requires_grad_(True)

    def encode(split) -> list[dict]:
        tokens = reviews.tokenizer(list(split.texts), truncation=True, max_length=MAX_LENGTH)["input_ids"]
        return [{"input_ids": ids, "labels": label} for ids, label in zip(tokens, split.labels.tolist(), strict=True)]

    times = _EvaluationTimes(watch, target, most)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=2,
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=128,
            learning_rate=1e-3,
            warmup_steps=126,  # a tenth
            eval_strategy="steps",
            eval_steps=EVAL_STEPS,
            save_strategy="no",
            report_to="none",
            train_sampling_strategy="group_by_length",
            bf16=precision == "bf16",
            use_cpu=True,
            disable_tqdm=True,
        )
        HuggingFaceTrainer(
            model,
            arguments,
            train_dataset=encode(reviews.train),
            eval_dataset=encode(reviews.validation),
            data_collator=DataCollatorWithPadding(reviews.tokenizer),
            compute_metrics=lambda output: {"accuracy": float((output[0].argmax(-1) == output[1]).mean())},
            callbacks=[times],
        ).train()
    yield from times.rows


def linear(reviews: Reviews) -> Evaluations:
    """Word and word-pair TF-IDF, logistic regression."""
    watch = Stopwatch()
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True)
    model = LogisticRegression(C=10, max_iter=1000)
    model.fit(vectorizer.fit_transform(reviews.train.texts), reviews.train.labels)
    with watch:
        accuracy = model.score(vectorizer.transform(reviews.validation.texts), np.asarray(reviews.validation.labels))
    yield watch.seconds(), len(reviews.train), float(accuracy)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["linear", "ours_8", "ours_4", "ours_1", "hf", "bilstm"]
    parser.add_argument("--target", type=float, default=0.85)
    parser.add_argument("--most", type=float, default=3600, help="seconds of training after which one is given up")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"), help="of all but the linear model")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--output", type=Path, help="JSON list of rows")
    options = parser.parse_args()
    prepare_process()
    reviews = load_reviews(load_config(CONFIGS / "1_lstm.yaml", ["profile=imdb"]).data)
    precision = options.precision
    runs = {
        "linear": lambda: linear(reviews),
        "ours_8": lambda: ours("8_minilm", reviews, precision),
        "ours_4": lambda: ours("4_lstm_attention", reviews, precision),
        "ours_1": lambda: ours("1_lstm", reviews, precision),
        "hf": lambda: hugging_face(reviews, precision, options.target, options.most),
        "bilstm": lambda: bilstm(reviews, precision),
    }
    print(f"{device_name(CPU)}, torch {torch.__version__}, {precision}; to {options.target:.0%} of validation reviews")
    rows = []
    for name in options.only:
        rows.append(measure(name, runs[name](), options.target, options.most))
        rows[-1] |= {"precision": precision, "device": device_name(CPU), "torch": torch.__version__}
        if options.output:
            options.output.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def measure(name: str, evaluations: Evaluations, target: float, most: float) -> dict:
    """Follow a run to the target, or for `most` seconds, and print its row."""
    curve, reached = [], None
    for seconds, seen, accuracy in evaluations:
        curve.append({"seconds": seconds, "reviews": seen, "accuracy": accuracy})
        if accuracy >= target:
            reached = seconds
        if accuracy >= target or seconds > most:
            break
    last = curve[-1]
    rate = last["reviews"] / last["seconds"]
    best = max(row["accuracy"] for row in curve)
    when = f"{reached:.0f} s" if reached is not None else f"not after {last['seconds']:.0f} s (best {best:.1%})"
    print(f"{name:<10}{rate:8.0f} reviews/s  {when}", flush=True)
    return {"name": name, "reviews_per_second": rate, "seconds_to_target": reached, "target": target, "curve": curve}


if __name__ == "__main__":
    sys.exit(main())
