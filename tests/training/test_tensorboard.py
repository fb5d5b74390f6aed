"""training/tensorboard.py: the scalars against metrics.jsonl, through a stop and a resumption; the package missing."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from config import InputError
from data import load_reviews
from helpers import read_metrics
from train import run
from training.interrupts import InterruptedRun
from training.tensorboard import EVENTS
from training.trainer import TrainingStep

event_accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="the extra tensorboard is not installed"
)


def read_scalars(run_dir: str) -> dict[str, dict[int, float]]:
    """By name: step -> value."""
    events = event_accumulator.EventAccumulator(str(Path(run_dir) / EVENTS)).Reload()
    scalars = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    for name, points in scalars.items():
        assert len({point.step for point in points}) == len(points), name
    return {name: {point.step: point.value for point in points} for name, points in scalars.items()}


def assert_scalars_are_the_metrics(run_dir: str) -> None:
    lines, scalars = read_metrics(run_dir), read_scalars(run_dir)
    numbers = [line | {f"memory/{name}": value for name, value in line["memory"].items()} for line in lines]
    expected = {name for line in numbers for name, value in line.items() if isinstance(value, int | float)}
    assert set(scalars) == expected
    assert {"learning_rate", "gradient_norm", "tokens_per_second", "validation_accuracy"} <= expected
    for name, points in scalars.items():
        assert list(points) == [line["step"] for line in numbers]
        np.testing.assert_allclose(list(points.values()), [line[name] for line in numbers], rtol=1e-6, err_msg=name)


def test_scalars_are_the_numbers_of_the_metrics(make_config):
    config = make_config("5_transformer_prenorm", "train.tensorboard=true", "train.epochs=2", "train.train_sample=10")
    run(config)
    assert_scalars_are_the_metrics(config.run_dir)
    # A run that is trained again leaves nothing of the first.
    run(replace(config, overwrite=True, train=replace(config.train, eval_steps=5)))
    assert_scalars_are_the_metrics(config.run_dir)


def test_a_resumed_run_has_each_step_once(make_config, stop_at):
    config = make_config("5_transformer_prenorm", "train.tensorboard=true", "train.epochs=3", "train.eval_steps=2")
    stop_at(7)
    with pytest.raises(InterruptedRun):
        run(config)
    stop_at(None)
    run(config)
    assert_scalars_are_the_metrics(config.run_dir)


def test_gradient_norm_is_the_mean_before_clipping(make_config, monkeypatch):
    norms, clip = [], TrainingStep._clip
    monkeypatch.setattr(TrainingStep, "_clip", lambda self: norms.append(clip(self)) or norms[-1])
    config = make_config("1_lstm", "train.epochs=1", "train.batch_size=7", "train.eval_steps=5")
    run(config)
    first, last = read_metrics(config.run_dir)
    assert first["gradient_norm"] == pytest.approx(np.mean(norms[:5]), rel=1e-6)
    assert last["gradient_norm"] == pytest.approx(np.mean(norms[5:]), rel=1e-6)


def test_tokens_a_second_are_those_of_the_training_time(make_config):
    """One evaluation an epoch, in which each training review is read once."""
    config = make_config("1_lstm", "train.epochs=3", "train.eval_steps=1000")
    run(config)
    num_tokens = load_reviews(config.data).train.lengths.sum()
    seconds = np.diff([0, *(line["train_seconds"] for line in read_metrics(config.run_dir))])
    rates = [line["tokens_per_second"] for line in read_metrics(config.run_dir)]
    assert rates == pytest.approx(num_tokens / seconds, rel=0.05)


def test_missing_package_is_refused_with_what_to_install(make_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="needs the package tensorboard: pip install tensorboard"):
        run(make_config("1_lstm", "train.tensorboard=true"))
