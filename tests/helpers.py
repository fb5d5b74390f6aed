"""Helpers of several test files: comparisons that name the tensor, small reviews and experiments, run folders."""

import importlib.util
import json
import logging
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from config import CONFIGS, Config, load_config, to_yaml


def random_tensor(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal values that require a gradient."""
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9, name: str = "tensor") -> None:
    """Fail, with `name` in the message, unless shapes are equal and values differ by at most `tolerance`.

    The tolerance is both absolute and relative.
    """
    torch.testing.assert_close(
        actual, expected, rtol=tolerance, atol=tolerance, msg=lambda message: f"{name}: {message}"
    )


def assert_all_close(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-9, where: str = ""
) -> None:
    """`assert_close` of every tensor by name; both mappings must have the same names."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(actual[name], tensor, tolerance, f"{where}{name}")


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the gradient of every parameter by name; fails if a parameter has none."""
    missing = [name for name, parameter in module.named_parameters() if parameter.grad is None]
    assert not missing, f"no gradient: {missing}"
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def backpropagate_random_sum(outputs: Mapping[str, Tensor], seed: int = 1) -> None:
    """Backpropagate a random weighted sum of the outputs, so that no output can stand in for another."""
    generator = torch.Generator().manual_seed(seed)
    loss = 0.0
    for tensor in outputs.values():
        weights = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        loss = loss + (tensor * weights.to(tensor)).sum()
    loss.backward()


def randomize(module: nn.Module, std: float = 0.5) -> nn.Module:
    """Draw every parameter anew: biases and norms at their initial 0 and 1 would hide mistakes."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module


def ragged_mask(lengths: list[int], width: int) -> Tensor:
    """(B, T) booleans, true on tokens, of sequences with these numbers of tokens."""
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def write_file(folder: Path, name: str, content: str | bytes) -> Path:
    """The path of a new file with these bytes, or this text in UTF-8."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def assert_same_tensors(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Equal names, shapes and values; the failure names the tensors that differ."""
    assert actual.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(actual[name], expected[name])]
    assert not different, f"different tensors: {different}"


# ---------------------------------------------------------------- reviews and experiments

# File names of the eight experiments, without their ending.
EXPERIMENTS = [path.stem for path in sorted(CONFIGS.glob("[1-8]_*.yaml"))]
GOOD = ["great", "lovely", "tasty", "friendly", "perfect", "wonderful"]
BAD = ["awful", "rude", "dirty", "cold", "terrible", "bland"]
FILLER = ["the", "food", "and", "service", "at", "this", "place", "were", "so", "on", "a", "monday", "with", "family"]
# Sizes that train in a moment.
SMALL = {
    "lstm": ["model.embedding_size=8", "model.hidden_size=8"],
    "transformer": ["model.embedding_size=8", "model.hidden_size=8", "model.num_heads=2"],
}
ENCODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
# What a log holds beside the result: it differs from one run to the next.
TIMINGS = (
    "tokens_per_second",
    "frozen_features_seconds",
    "train_seconds",
    "evaluation_seconds",
    "checkpoint_seconds",
    "test_seconds",
    "memory",
    "steady_memory_bytes",
    "peak_memory_bytes",
)


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


def write_csv(path: Path, texts: list[str], labels: list[int]) -> Path:
    """A file in the Yelp Polarity form."""
    path.write_text("".join(f'"{label + 1}","{text}"\n' for text, label in zip(texts, labels, strict=True)))
    return path


def write_review_files(folder: Path) -> Path:
    """train.csv (48 reviews), validation.csv (20) and test.csv (22) in `folder`; a small encoder for 8 in encoder/."""
    for seed, (name, count) in enumerate([("train", 48), ("validation", 20), ("test", 22)]):
        write_csv(folder / f"{name}.csv", *make_texts(count, seed))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(BertConfig(**ENCODER)).save_pretrained(folder / "encoder")
    return folder


def small_config(experiment: str, reviews: Path, run_dir: Path, *overrides: str) -> Config:
    """An experiment, made small, on the files of `write_review_files` in the folder `reviews`."""
    path = CONFIGS / f"{experiment}.yaml"
    common = [
        "data.source=files",
        *(f"data.{name}={reviews / name}.csv" for name in ("train", "validation", "test")),
        f"data.cache_dir={reviews / 'cache'}",
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
        "train.train_sample=null",
    ]
    small = SMALL.get(load_config(path).model.backbone, [f"model.pretrained={reviews / 'encoder'}"])
    return load_config(path, [*common, *small, *overrides])


def write_config(config: Config) -> Path:
    """The settings as a file for the command line, beside the run's folder."""
    path = Path(config.run_dir).with_suffix(".yaml")
    path.write_text(to_yaml(config))
    return path


# ---------------------------------------------------------------- a run's folder


def read_metrics(run_dir: str | Path) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


def without_timings(lines: list[dict]) -> list[dict]:
    """Lines without what differs from one run to the next."""
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def losses_of(run_dir: str | Path) -> list[float]:
    """Training and validation loss of every line."""
    return [line[key] for line in read_metrics(run_dir) for key in ("train_loss", "validation_loss")]


def write_run_folder(
    run_dir: Path, key: str, seed: int = 0, wrong: Iterable[int] = (), num_reviews: int = 40, **summary
) -> Path:
    """A complete run without a model, as `train.py` leaves it, with made-up metrics.

    Args:
        run_dir: the folder to make.
        key: of the run; its first digit is the experiment.
        seed: of the run.
        wrong: numbers of the test reviews that the run predicts wrongly; the labels alternate.
        num_reviews: how many test reviews.
        summary: further or other entries of summary.json.
    """
    run_dir.mkdir(parents=True)
    content = {
        "experiment": int(key[0]),
        "key": key,
        "architecture": f"architecture {key}",
        "epochs": 3,
        "parameters": 8_867_330,
        "train_accuracy": 0.91,
        "best_validation_accuracy": 0.8,
        "best_validation_step": 10,
        "test_seconds": 1.2,
        "test_accuracy": 0.5 + int(key[0]) / 100,
        "train_seconds": 12.6,
        "evaluation_seconds": 3.4,
        "steady_memory_bytes": 3 * 2**29,
        "memory": {"kind": "process_resident"},
        "device": "a test",
        "seed": seed,
        "data": {"source": "files", "train": 2000, "validation": 20, "test": num_reviews},
        **summary,
    }
    (run_dir / "summary.json").write_text(json.dumps(content))
    accuracies, losses = (0.7, 0.8, 0.75), (0.5, 0.4, 0.45)
    lines = [
        {"step": 5 * number, "train_loss": 0.7 - number / 20, "train_accuracy": 0.6 + number / 10}
        | {"validation_loss": loss, "validation_accuracy": accuracy, "train_seconds": 4.2 * number}
        for number, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), start=1)
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run_dir / "config.yaml").write_text(f"experiment: {max(1, int(key[0]))}\nkey: {key}\nmodel: {{dropout: 0.3}}\n")
    write_test_predictions(run_dir, wrong, num_reviews)
    return run_dir


def write_test_predictions(run_dir: Path, wrong: Iterable[int], num_reviews: int = 40) -> None:
    """`test_predictions.csv` on alternating labels, wrong on the reviews of those numbers."""
    wrong = set(wrong)
    rows = [f"{i},{i % 2},{0.8 if (i % 2) ^ (i in wrong) else 0.2}\n" for i in range(num_reviews)]
    (run_dir / "test_predictions.csv").write_text("row,label,probability\n" + "".join(rows))


# ---------------------------------------------------------------- logs


def warnings_of(caplog: pytest.LogCaptureFixture, logger: str) -> list[str]:
    """The warnings of one module."""
    return [
        record.getMessage() for record in caplog.records if (record.levelno, record.name) == (logging.WARNING, logger)
    ]


# ---------------------------------------------------------------- benchmarks


def load_benchmark(name: str) -> ModuleType:
    """The module benchmarks/NAME.py, which is a script and in no package."""
    path = Path(__file__).resolve().parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    # Where pickle, and dataclasses, look for it.
    sys.modules[spec.name] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        spec.loader.exec_module(module)
    return module
