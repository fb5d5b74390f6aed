"""Train and evaluate experiments: data -> model -> optimiser -> fit -> evaluate, with evidence in a run folder.

    python train.py configs/4_lstm_attention.yaml [more.yaml ...] [key=value ...]

A run folder holds `config.yaml` (resolved), `metrics.jsonl` (a line an evaluation), `best/` (the model that is
kept), `validation_predictions.csv` and `test_predictions.csv` of that model, and `summary.json`.
"""

import argparse
import csv
import gc
import json
import logging
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import torch
import yaml
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm
from transformers import get_scheduler

from config import Config, InputError, describe_settings, load_config, to_yaml
from data import (
    Reviews,
    TokenizedReviews,
    batch_loader,
    evaluation_batches,
    load_reviews,
    training_batches,
)
from features import FrozenFeatures
from models import ReviewClassifier, build_model, count_parameters, load_model, save_model

log = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RUN_FILES = ("config.yaml", "metrics.jsonl", "summary.json", "validation_predictions.csv", "test_predictions.csv")
# Steps whose memory is not averaged: allocators and optimiser states still grow in them.
WARMUP_STEPS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0 done, 1 a loss that is no number, 2 input that can't be used."""
    parser = argparse.ArgumentParser(
        description="Train one or more experiments, one after another.",
        epilog="settings (given as key=value, or in the YAML file):\n" + describe_settings(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("given", nargs="+", metavar="FILE|KEY=VALUE", help="experiment files and settings")
    given = parser.parse_args(arguments).given
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    files = [text for text in given if "=" not in text]
    try:
        configs = [load_config(path, [text for text in given if "=" in text]) for path in files]
        check_run_dirs(configs)
        for config in configs:
            run(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def check_run_dirs(configs: list[Config]) -> None:
    """Refuse (`InputError`) no experiment at all, or two in one folder."""
    if not configs:
        raise InputError("no experiment file given; the experiments are configs/1_*.yaml to configs/8_*.yaml")
    folders = [config.run_dir for config in configs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise InputError(
                f"run_dir={folder!r} is the folder of {folders.count(folder)} experiments; give each its own, "
                "such as run_dir='logs/try/${name}'"
            )


def run(config: Config) -> dict:
    """Train and evaluate one experiment, and write its run folder.

    Returns:
        The summary. Where the folder holds this run complete already, that one's, and nothing is done.

    Raises:
        InputError: the folder holds another run, or the data or a pretrained model can't be had.
    """
    run_dir = Path(config.run_dir)
    finished = finished_run(config, run_dir)
    if finished is not None:
        log.info("%s: already complete, kept as it is (overwrite=true trains it again)", run_dir)
        return finished
    log.info("%s: experiment %d, %s", run_dir, config.experiment, config.architecture)
    device = pick_device(config.device)
    reviews = load_reviews(config.data)
    prepare(config, device)
    torch.manual_seed(config.seed)
    model = build_model(config.model, len(reviews.tokenizer), config.data.max_length).to(device)
    if config.train.compile:
        model.compile(dynamic=True)
    started = now(device)
    if config.train.keep_frozen and config.model.backbone == "bert":
        with autocast(config, device):
            reviews = keep_frozen(config, model, reviews)
    clear_run(run_dir)
    (run_dir / "config.yaml").write_text(to_yaml(config))
    record = fit(config, model, reviews, device, run_dir, spent=now(device) - started)
    del model
    gc.collect()
    model = load_model(run_dir / "best")[0].to(device)
    started = time.perf_counter()
    test = evaluate(model, reviews.test, config, device)
    write_predictions(run_dir / "test_predictions.csv", reviews.test, test.probabilities)
    summary = summarize(config, model, reviews, record, test, time.perf_counter() - started, device)
    write_json(run_dir / "summary.json", summary)
    log.info(
        "%s: best validation accuracy %.1f%% (step %d), test accuracy %.1f%%, %.0f s of training",
        run_dir,
        100 * summary["best_validation_accuracy"],
        summary["best_validation_step"],
        100 * test.accuracy,
        summary["train_seconds"],
    )
    return summary


def keep_frozen(config: Config, model: ReviewClassifier, reviews: Reviews) -> Reviews:
    """The splits with the outputs of the frozen layers in their batches; the test split, read once, without."""
    folder, precision = Path(config.data.cache_dir), config.train.keep_frozen
    kept = {
        name: FrozenFeatures(getattr(reviews, name), model.backbone, folder, precision, config.train.eval_batch_size)
        for name in ("train", "validation")
    }
    return replace(reviews, **kept)


# ---------------------------------------------------------------- the run folder


def finished_run(config: Config, run_dir: Path) -> dict | None:
    """The summary of this very run if the folder holds it complete; None where there is none or to be replaced.

    Raises:
        InputError: the folder holds a complete run of other settings.
    """
    path = run_dir / "summary.json"
    if config.overwrite or not path.is_file():
        return None
    before = yaml.safe_load((run_dir / "config.yaml").read_text())
    differences = differing_keys(before, asdict(config))
    if differences:
        raise InputError(
            f"{run_dir} holds a complete run with other settings ({', '.join(differences)}); it is kept: give "
            "another run_dir, or overwrite=true"
        )
    return json.loads(path.read_text())


def differing_keys(before: dict, now: dict, prefix: str = "") -> list[str]:
    """`key: before -> now` of each setting that differs, `overwrite` aside."""
    found = []
    for key in now:
        old, new = before.get(key), now[key]
        if isinstance(new, dict) and isinstance(old, dict):
            found += differing_keys(old, new, f"{prefix}{key}.")
        elif old != new and prefix + key != "overwrite":
            found.append(f"{prefix}{key}: {old!r} -> {new!r}")
    return found


def clear_run(run_dir: Path) -> None:
    """An empty run folder: what a run writes is removed, anything else there is left alone."""
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in RUN_FILES:
        (run_dir / name).unlink(missing_ok=True)
    shutil.rmtree(run_dir / "best", ignore_errors=True)


def write_json(path: Path, content: dict) -> None:
    """Strict JSON, replaced in one step."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    partial.replace(path)


def write_predictions(path: Path, reviews: TokenizedReviews, probabilities: np.ndarray) -> None:
    """`row,label,probability` of each review: its row in the source, its label, the probability of positive."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "label", "probability"])
        for row, label, probability in zip(reviews.rows, reviews.labels, probabilities, strict=True):
            writer.writerow([row, label, f"{probability:.6f}"])


# ---------------------------------------------------------------- fitting


@dataclass
class Record:
    """What a fit has seen so far; seconds are wall-clock."""

    step: int = 0
    epoch: int = 0
    reviews_seen: int = 0
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    best: dict | None = None
    last: dict = field(default_factory=dict)
    memory: dict = field(default_factory=dict)
    trainable_parameters: int = 0


def fit(
    config: Config,
    model: ReviewClassifier,
    reviews: Reviews,
    device: torch.device,
    run_dir: Path,
    spent: float = 0.0,
) -> Record:
    """Train `model`, evaluating as it goes; the best model by validation is kept in `run_dir/best`.

    Args:
        config: the run's settings.
        model: on `device`.
        reviews: the splits; the test split is not read.
        device: where to train.
        run_dir: gets a line of metrics.jsonl an evaluation.
        spent: seconds that count as training already, such as those for the frozen layers' outputs.

    Raises:
        FloatingPointError: the training loss became infinite or nan.
    """
    settings = config.train
    epoch_steps = -(-len(reviews.train) // settings.batch_size)
    optimizer, schedule = build_optimizer(config, model, settings.epochs * epoch_steps)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    memory = MemoryMeter(device)
    record = Record(train_seconds=spent)
    interval = Interval(device)
    progress = tqdm(total=settings.epochs * epoch_steps, unit="step", disable=None, leave=False)
    started = now(device)
    for epoch in range(1, settings.epochs + 1):
        model.start_epoch(epoch)
        record.epoch = epoch
        batches = training_batches(
            reviews.train.lengths, settings.batch_size, config.seed, epoch, config.data.group_by_length
        )
        model.train()
        for batch in batch_loader(reviews.train, batches, device):
            loss, logits = training_step(model, batch, optimizer, schedule, scaler, config)
            interval.add(loss, logits, batch["labels"])
            record.step += 1
            record.reviews_seen += len(batch["labels"])
            memory.sample()
            progress.update()
            if record.step % settings.eval_steps == 0 or record.step == epoch * epoch_steps:
                record.train_seconds += now(device) - started
                validate(config, model, reviews, device, run_dir, record, interval, memory, schedule)
                interval = Interval(device)
                model.train()
                started = now(device)
    progress.close()
    record.memory = memory.result()
    record.trainable_parameters = count_parameters(model, trainable=True)
    return record


def build_optimizer(config: Config, model: ReviewClassifier, steps: int) -> tuple[AdamW, LRScheduler]:
    """AdamW over all parameters (frozen ones have no gradient and stay) and its learning-rate schedule.

    Args:
        config: the run's settings.
        model: whose parameters to train.
        steps: of the whole run, over which the schedule stretches.
    """
    settings = config.train
    optimizer = AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    warmup = round(settings.warmup_fraction * steps)
    return optimizer, get_scheduler(settings.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=steps)


def training_step(
    model: ReviewClassifier,
    batch: dict[str, Tensor],
    optimizer: AdamW,
    schedule: LRScheduler,
    scaler: torch.amp.GradScaler,
    config: Config,
) -> tuple[Tensor, Tensor]:
    """One step of the optimiser; returns the loss (a scalar) and the logits (B, 2), detached, on the device."""
    with autocast(config, batch["labels"].device):
        output = model(**batch)
    scaler.scale(output.loss).backward()
    if config.train.max_grad_norm is not None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.max_grad_norm)
    scaler.step(optimizer)
    scaler.update()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return output.loss.detach(), output.logits.detach()


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """The context of the forward pass: half precision where the settings ask for it."""
    dtype = PRECISIONS[config.train.precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


class Interval:
    """Loss and accuracy of the training reviews since the last evaluation, summed on the device."""

    def __init__(self, device: torch.device):
        self.loss = torch.zeros((), device=device)
        self.correct = torch.zeros((), device=device)
        self.reviews = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.loss += loss * len(labels)
        self.correct += (logits.argmax(dim=1) == labels).sum()
        self.reviews += len(labels)

    def result(self) -> dict[str, float]:
        """Means by review; the dropout was on."""
        return {
            "train_loss": self.loss.item() / self.reviews,
            "train_accuracy": self.correct.item() / self.reviews,
        }


def validate(
    config: Config,
    model: ReviewClassifier,
    reviews: Reviews,
    device: torch.device,
    run_dir: Path,
    record: Record,
    interval: Interval,
    memory: "MemoryMeter",
    schedule: LRScheduler,
) -> None:
    """Evaluate on the validation split, log a line, and keep the model if it is the best so far."""
    train = interval.result()
    if not np.isfinite(train["train_loss"]):
        raise FloatingPointError(
            f"{run_dir}: the training loss is {train['train_loss']} before step {record.step}, at learning rate "
            f"{schedule.get_last_lr()[0]:g}; lower train.learning_rate"
        )
    started = now(device)
    result = evaluate(model, reviews.validation, config, device)
    record.evaluation_seconds += now(device) - started
    line = {
        "step": record.step,
        "epoch": record.epoch,
        "reviews_seen": record.reviews_seen,
        **train,
        "validation_loss": result.loss,
        "validation_accuracy": result.accuracy,
        "validation_f1": result.f1,
        "train_seconds": round(record.train_seconds, 3),
        "evaluation_seconds": round(record.evaluation_seconds, 3),
        "learning_rate": schedule.get_last_lr()[0],
        "memory": memory.result(),
    }
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")
    record.last = line
    log.info(
        "  step %4d  epoch %d  train loss %.4f  validation loss %.4f  accuracy %.4f",
        *(line[key] for key in ("step", "epoch", "train_loss", "validation_loss", "validation_accuracy")),
    )
    if record.best is None or is_better(line, record.best, config.train.best_metric):
        record.best = line
        save_model(run_dir / "best", model, config.model, config.data.max_length, reviews.tokenizer)
        write_predictions(run_dir / "validation_predictions.csv", reviews.validation, result.probabilities)


def is_better(line: dict, best: dict, metric: str) -> bool:
    """Whether an evaluation beats the best by `metric`: higher accuracy (at a tie, lower loss), or lower loss."""
    if metric == "loss":
        return line["validation_loss"] < best["validation_loss"]
    key = (line["validation_accuracy"], -line["validation_loss"])
    return key > (best["validation_accuracy"], -best["validation_loss"])


# ---------------------------------------------------------------- evaluating


@dataclass(frozen=True)
class Evaluation:
    """Figures of a split: mean cross-entropy (nats), accuracy and F1 of the positive class, all by review, and
    the probability of positive of each review, (n,)."""

    loss: float
    accuracy: float
    f1: float
    probabilities: np.ndarray


def evaluate(model: ReviewClassifier, reviews: TokenizedReviews, config: Config, device: torch.device) -> Evaluation:
    """Figures of `model` on a split; the model is left in evaluation mode."""
    model.eval()
    logits = predict_logits(model, reviews, config.train.eval_batch_size, device, config)
    labels = torch.from_numpy(reviews.labels)
    predicted = logits.argmax(dim=1)
    hits = int((predicted * labels).sum())
    return Evaluation(
        loss=torch.nn.functional.cross_entropy(logits, labels).item(),
        accuracy=(predicted == labels).double().mean().item(),
        f1=2 * hits / max(1, int(predicted.sum() + labels.sum())),
        probabilities=logits.softmax(dim=1)[:, 1].numpy(),
    )


@torch.inference_mode()
def predict_logits(
    model: ReviewClassifier, reviews: TokenizedReviews, batch_size: int, device: torch.device, config: Config
) -> Tensor:
    """Logits of each review in order, (n, 2), float64, on the CPU; batched by length."""
    batches = evaluation_batches(reviews.lengths, batch_size)
    found = []
    for batch in batch_loader(reviews, batches, device):
        with autocast(config, device):
            found.append(model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits)
    logits = torch.empty(len(reviews), 2, dtype=torch.float64)
    logits[torch.from_numpy(np.concatenate(batches))] = torch.cat(found).double().cpu()
    return logits


# ---------------------------------------------------------------- measuring


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one.

    Raises:
        InputError: CUDA is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("device=cuda: torch sees no CUDA device; use device=cpu or device=auto")
    return torch.device("cuda" if name != "cpu" and available else "cpu")


def prepare(config: Config, device: torch.device) -> None:
    """TF32 for float32 products on CUDA; a warning where the precision asked for is only emulated."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        if config.train.precision == "bf16" and not native:
            log.warning("%s emulates bf16: train.precision=fp16 or fp32 is faster", device_name(device))


def now(device: torch.device) -> float:
    """Wall-clock seconds, after the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class MemoryMeter:
    """Memory over training steps, in bytes.

    On CUDA what torch has allocated, and reserved; on a CPU the resident memory of the process, which also
    holds the interpreter, the libraries and what earlier runs in the process left.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.samples: list[tuple[int, int]] = []
        self.process = psutil.Process()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def sample(self) -> None:
        """Note the memory after a step."""
        if self.device.type == "cuda":
            used = (torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device))
        else:
            used = (self.process.memory_info().rss, 0)
        self.samples.append(used)

    def result(self) -> dict:
        """`kind`, steady (mean after the first `WARMUP_STEPS` steps) and peak."""
        steady = np.array(self.samples[WARMUP_STEPS:] or self.samples).mean(axis=0)
        if self.device.type == "cuda":
            return {
                "kind": "cuda_allocated",
                "steady_bytes": int(steady[0]),
                "peak_bytes": torch.cuda.max_memory_allocated(self.device),
                "steady_reserved_bytes": int(steady[1]),
                "peak_reserved_bytes": torch.cuda.max_memory_reserved(self.device),
            }
        peak = max(used for used, _ in self.samples)
        return {"kind": "process_resident", "steady_bytes": int(steady[0]), "peak_bytes": peak}


def device_name(device: torch.device) -> str:
    """The card's name, or the processor's with the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return f"{name}, {torch.get_num_threads()} threads"


def summarize(
    config: Config,
    model: ReviewClassifier,
    reviews: Reviews,
    record: Record,
    test: Evaluation,
    test_seconds: float,
    device: torch.device,
) -> dict:
    """The run in one JSON object; accuracies are shares, times seconds, memory bytes."""
    packages = ("torch", "transformers", "datasets", "numpy")
    return {
        "experiment": config.experiment,
        "name": config.name,
        "architecture": config.architecture,
        "profile": config.profile,
        "parameters": count_parameters(model),
        "trainable_parameters": record.trainable_parameters,
        "epochs": record.epoch,
        "steps": record.step,
        "train_loss": record.last["train_loss"],
        "train_accuracy": record.last["train_accuracy"],
        "best_validation_accuracy": record.best["validation_accuracy"],
        "best_validation_loss": record.best["validation_loss"],
        "best_validation_f1": record.best["validation_f1"],
        "best_validation_step": record.best["step"],
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "test_f1": test.f1,
        "train_seconds": round(record.train_seconds, 3),
        "evaluation_seconds": round(record.evaluation_seconds, 3),
        "test_seconds": round(test_seconds, 3),
        "steady_memory_bytes": record.memory["steady_bytes"],
        "peak_memory_bytes": record.memory["peak_bytes"],
        "memory": record.memory,
        "device": device_name(device),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "seed": config.seed,
        "data": {
            "source": config.data.source,
            "train": len(reviews.train),
            "validation": len(reviews.validation),
            "test": len(reviews.test),
            "fingerprint": reviews.fingerprint,
        },
        "completed": True,
    }


if __name__ == "__main__":
    sys.exit(main())
