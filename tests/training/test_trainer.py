"""The trainer: batches, logged losses, optimiser, non-finite steps, memory, and when it saves."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from config import RunError, TrainConfig
from data import load_reviews, training_batches
from helpers import assert_same_tensors, losses_of, read_metrics, without_timings, write_config
from models import build_model, load_model
from train import main, run
from training import trainer
from training.checkpoint import checkpoints_of, load_checkpoint
from training.run_folder import STATE_FILES
from training.trainer import Trainer, TrainingStep, build_optimizer, is_better, is_out_of_memory

CPU = torch.device("cpu")


@pytest.fixture
def patch_step(monkeypatch):
    """`patch_step(lambda make, self, batch, *rest: ...)`: a stand-in for every training step, which `make` makes."""
    original = TrainingStep.__call__

    def patch(step) -> None:
        monkeypatch.setattr(TrainingStep, "__call__", lambda *arguments: step(original, *arguments))

    return patch


# ---------------------------------------------------------------- batches, losses


def test_logged_train_loss_is_the_mean_since_the_last_line(make_config, patch_step):
    losses = []

    def noted(make, step, batch, *arguments):
        loss, logits = make(step, batch, *arguments)
        losses.extend([loss.item()] * len(batch["labels"]))
        return loss, logits

    patch_step(noted)
    config = make_config("1_lstm", "train.epochs=1", "train.batch_size=7", "train.eval_steps=5")
    run(config)
    first, last = read_metrics(config.run_dir)
    assert first["train_loss"] == pytest.approx(np.mean(losses[: first["reviews_seen"]]), abs=1e-6)
    assert last["train_loss"] == pytest.approx(np.mean(losses[first["reviews_seen"] :]), abs=1e-6)
    assert len(losses) == 48


def test_train_sample_is_evaluated_without_dropout_and_moves_nothing_else(make_config):
    """The training accuracy in the line of the best model against that model, computed here."""
    plain = make_config("5_transformer_prenorm", "train.epochs=2", "train.learning_rate=0.003")
    run(plain)
    config = replace(plain, run_dir=f"{plain.run_dir}_sample", train=replace(plain.train, train_sample=30))
    summary = run(config)
    lines, expected = read_metrics(config.run_dir), read_metrics(plain.run_dir)
    assert [line["train_loss"] for line in lines] == [line["train_loss"] for line in expected]
    assert {line["train_sample_accuracy"] for line in expected} == {None}
    best = next(line for line in lines if line["step"] == summary["best_validation_step"])
    assert summary["train_sample_accuracy"] == lines[-1]["train_sample_accuracy"]
    model, reviews = load_model(Path(config.run_dir) / "best")[0], load_reviews(config.data).train
    sample = Trainer(config, model, load_reviews(config.data), CPU, Path(config.run_dir)).train_sample
    assert len(set(sample.tolist())) == 30
    output = model.eval()(**reviews[sample])
    assert best["train_sample_loss"] == pytest.approx(output.loss.item(), abs=1e-6)
    accuracy = (output.logits.argmax(1).numpy() == reviews.labels[sample]).mean()
    assert best["train_sample_accuracy"] == pytest.approx(accuracy)


def test_a_sample_larger_than_the_training_reviews_is_all_of_them(make_config):
    config = make_config("1_lstm", "train.epochs=1", "train.train_sample=1000")
    reviews = load_reviews(config.data)
    trainer_ = Trainer(config, build_model(config.model, 30522, 24), reviews, CPU, Path(config.run_dir))
    assert sorted(trainer_.train_sample) == list(range(len(reviews.train)))


def test_training_uses_the_batches_of_seed_and_epoch(make_config, patch_step):
    batches = []

    def noted(make, step, batch, *arguments):
        batches.append(batch["input_ids"])
        return make(step, batch, *arguments)

    patch_step(noted)
    config = make_config("1_lstm", "train.epochs=2", "seed=3")
    run(config)
    reviews = load_reviews(config.data).train
    expected = [
        reviews[indices]["input_ids"]
        for epoch in (1, 2)
        for indices in training_batches(reviews.lengths, config.train.batch_size, 3, epoch)
    ]
    assert_same_tensors(dict(enumerate(batches, start=1)), dict(enumerate(expected, start=1)))


def test_evaluating_more_often_changes_no_training(make_config):
    config = make_config("5_transformer_prenorm", "train.epochs=2", "train.eval_steps=1")
    run(config)
    often = {line["step"]: line for line in without_timings(read_metrics(config.run_dir))}
    run(replace(config, overwrite=True, train=replace(config.train, eval_steps=100)))
    for line in read_metrics(config.run_dir):
        for key in ("validation_loss", "validation_accuracy", "learning_rate"):
            assert often[line["step"]][key] == line[key], f"step {line['step']}: {key}"


def test_trainer_does_not_read_the_test_split(make_config, tmp_path):
    config = make_config("1_lstm", "train.epochs=1")
    reviews = replace(load_reviews(config.data), test=None)
    record = Trainer(config, build_model(config.model, 30522, 24), reviews, CPU, tmp_path).fit()
    assert record.step == 6


@pytest.mark.parametrize(
    ("metric", "better", "worse"),
    [
        ("accuracy", (0.9, 0.5), (0.8, 0.1)),
        ("accuracy", (0.9, 0.4), (0.9, 0.5)),
        ("loss", (0.8, 0.1), (0.9, 0.5)),
    ],
)
def test_best_model_is_selected_by_best_metric(metric, better, worse):
    lines = [dict(zip(("validation_accuracy", "validation_loss"), values, strict=True)) for values in (better, worse)]
    assert is_better(lines[0], lines[1], metric)
    assert not is_better(lines[1], lines[0], metric)
    assert not is_better(lines[0], lines[0], metric)


def test_checkpoints_are_saved_by_steps_minutes_and_epochs(make_config, monkeypatch):
    saved = []
    monkeypatch.setattr(trainer, "save_checkpoint", lambda folder, *_: saved.append(int(folder.name[5:])))
    monkeypatch.setattr(trainer, "prune", lambda *_: None)
    run(make_config("1_lstm", "train.epochs=2"))
    assert saved == [6, 12]
    saved.clear()
    run(make_config("1_lstm", "train.epochs=2", "train.save_steps=4", "overwrite=true"))
    assert saved == [4, 6, 8, 12]
    saved.clear()
    run(make_config("1_lstm", "train.epochs=1", "train.save_minutes=1e-9", "overwrite=true"))
    assert saved == [1, 2, 3, 4, 5, 6]


# ---------------------------------------------------------------- optimiser


def test_optimizer_gets_every_setting(make_config):
    config = make_config("1_lstm", "train.learning_rate=0.125", "train.adam_eps=0.5", "train.weight_decay=0.25")
    optimizer, _ = build_optimizer(config.train, build_model(config.model, 31, 24), 10)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["eps"], group["weight_decay"]) == (0.125, 0.5, 0.25)


@pytest.mark.parametrize(
    ("lr_scheduler", "expected"),
    [
        ("constant_with_warmup", [0, 0.5, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0, 0.5, *(1 - i / 8 for i in range(8))]),
        ("cosine", [0, 0.5, *((1 + math.cos(math.pi * i / 8)) / 2 for i in range(8))]),
    ],
)
def test_learning_rate_follows_lr_scheduler(make_config, lr_scheduler, expected):
    settings = TrainConfig(lr_scheduler=lr_scheduler, warmup_ratio=0.2, learning_rate=1.0)
    step = TrainingStep(build_model(make_config("1_lstm").model, 31, 24), settings, 10, CPU)
    rates = []
    for number in range(1, 11):
        assert step.learning_rate_at(number) == pytest.approx(step.learning_rate), f"step {number}"
        rates.append(step.learning_rate)
        step.optimizer.step()
        step.lr_scheduler.step()
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(("limit", "clipped"), [("0.001", True), ("1e6", False), ("null", False)])
def test_gradients_are_clipped_to_max_grad_norm(make_config, monkeypatch, limit, clipped):
    norms = []

    class Recorder(torch.optim.AdamW):
        def step(self, *arguments, **keywords):
            gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(gradients).item())
            return super().step(*arguments, **keywords)

    monkeypatch.setattr(trainer, "AdamW", Recorder)
    run(make_config("1_lstm", f"train.max_grad_norm={limit}", "train.epochs=1"))
    assert len(norms) == 6
    assert all((norm <= 0.001 * 1.001) == clipped for norm in norms), norms


# ---------------------------------------------------------------- non-finite losses


def test_nan_loss_stops_before_the_step(make_config, capsys):
    config = make_config("1_lstm", "train.learning_rate=1e20", "train.save_steps=1", "train.eval_steps=99")
    assert main([str(write_config(config))]) == 1
    error = capsys.readouterr().err
    folder = Path(config.run_dir)
    newest = checkpoints_of(folder)[0]
    step = int(newest.name[5:]) + 1
    reviews = load_reviews(config.data).train
    batch = training_batches(reviews.lengths, 8, 0, 1)[step - 1]
    assert f"non-finite (NaN/Inf) loss or gradient at step {step}, at learning rate 1e+20" in error
    assert "lower train.learning_rate" in error
    assert f"{newest.name} is the last checkpoint" in error
    assert f"rows {reviews.rows[batch].tolist()} of the training data" in error
    tensors, _ = load_checkpoint(newest, STATE_FILES)
    assert [name for name, tensor in tensors["model"].items() if not torch.isfinite(tensor).all()] == []
    assert not (folder / "summary.json").exists()


@pytest.mark.parametrize(
    ("sample", "name", "evaluation"), [("null", "validation loss", 2), ("9", "loss on train.train_sample", 4)]
)
def test_nan_validation_loss_stops_the_run(make_config, monkeypatch, sample, name, evaluation):
    """With a stand-in for the evaluation: which loss overflows first depends on the processor."""

    def overflowing(*arguments):
        losses.append(0.5 if len(losses) < evaluation - 1 else float("nan"))
        return replace(evaluate(*arguments), loss=losses[-1])

    losses = []
    evaluate = trainer.evaluate
    monkeypatch.setattr(trainer, "evaluate", overflowing)
    config = make_config("1_lstm", "train.save_steps=1", "train.eval_steps=1", f"train.train_sample={sample}")
    with pytest.raises(FloatingPointError, match=rf"{name} is nan after step 2, at learning rate 0\.001; lower"):
        run(config)
    (line,) = (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))["step"] == 1
    assert [path.name for path in checkpoints_of(Path(config.run_dir))] == ["step-00000001"]


@pytest.mark.parametrize("limit", ["1.0", "null"])
def test_weights_stay_from_a_nan_gradient_on(make_config, monkeypatch, limit):
    """As on a GPU, where the host looks only when it logs: the optimiser itself must refuse."""
    config = make_config("5_transformer_prenorm", f"train.max_grad_norm={limit}", "model.dropout=0")
    monkeypatch.setattr(Trainer, "check_finite", lambda self: None)
    model = build_model(config.model, 30522, 24)
    reviews = load_reviews(config.data)
    trained = Trainer(config, model, reviews, CPU, Path(config.run_dir))
    weights = []
    for number in range(4):
        if number == 2:
            # The gradient alone is NaN: the loss stays finite.
            handle = model.classifier.weight.register_hook(lambda gradient: gradient * float("nan"))
        trained.train_step(np.arange(8), reviews.train[np.arange(number, number + 8)])
        if number == 2:
            handle.remove()
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    name = "classifier.weight"
    assert not torch.equal(weights[0][name], weights[1][name])
    assert_same_tensors(weights[3], weights[1])
    assert trained.step.guard.first_bad_step() == 3


# ---------------------------------------------------------------- memory


def test_micro_batches_give_the_losses_of_the_whole_batch(make_config):
    """Without dropout and within rounding, for parts that don't divide the batch."""
    config = make_config("7_transformer_postnorm", "model.dropout=0", "train.epochs=2")
    run(config)
    whole = losses_of(config.run_dir)
    run(replace(config, overwrite=True, train=replace(config.train, micro_batch_size=3)))
    parts = losses_of(config.run_dir)
    assert parts == pytest.approx(whole, abs=1e-5)
    assert parts != whole


OUT_OF_MEMORY = {
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cudnn": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "python": MemoryError(),
}


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_out_of_memory_halves_the_micro_batch_if_asked(make_config, patch_step, error):
    def small_machine(make, step, batch, num_reviews, size):
        if (size or len(batch["labels"])) > 3:
            # Half of a step has happened: what it drew and summed must not stay.
            torch.rand(5)
            step.model.classifier.weight.grad = torch.ones_like(step.model.classifier.weight)
            raise error
        return make(step, batch, num_reviews, size)

    config = make_config("2_lstm_dropout", "train.epochs=1", "train.micro_batch_size=2")
    run(config)
    expected = losses_of(config.run_dir)
    patch_step(small_machine)
    run(make_config("2_lstm_dropout", "train.epochs=1", "overwrite=true", "train.auto_find_micro_batch_size=true"))
    assert losses_of(config.run_dir) == expected
    assert [line["micro_batch_size"] for line in read_metrics(config.run_dir)] == [2, 2]
    with pytest.raises(RunError, match=r"no memory for step 1 .*train.batch_size.*train.micro_batch_size=4"):
        run(make_config("2_lstm_dropout", "train.epochs=1", "overwrite=true"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("parts", [None, 2])
def test_step_can_be_repeated_after_the_optimizer_ran_out_of_memory(make_config, monkeypatch, precision, parts):
    """Also when that left a parameter with a count of steps and without moments, and gradients already unscaled."""
    weights, num_steps = [], []
    for fails in (False, True):
        torch.manual_seed(0)
        config = make_config("5_transformer_prenorm", "model.dropout=0")
        model = build_model(config.model, 30522, 24)
        step = TrainingStep(model, replace(config.train, precision=precision), 10, CPU)
        batch = load_reviews(config.data).train[np.arange(6)]
        if fails:
            monkeypatch.setattr(torch, "zeros_like", fail_at(7, torch.zeros_like))
            with pytest.raises(torch.OutOfMemoryError):
                step(batch, micro_batch_size=parts)
            monkeypatch.undo()
            step.undo()
        for _ in range(2):
            step(batch, micro_batch_size=parts)
        weights.append(model.state_dict())
        num_steps.append(step.guard.num_steps)
        assert step.scaler.get_scale() == (1 if precision == "fp32" else 2**16)
    assert_same_tensors(*weights)
    assert num_steps == [2, 2]


def fail_at(call: int, function):
    """The function; its call of that number, from 1, finds no memory."""
    numbers = itertools.count(1)

    def fail(*arguments, **settings):
        if next(numbers) == call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return function(*arguments, **settings)

    return fail


def test_other_errors_do_not_count_as_out_of_memory(make_config, patch_step):
    def broken(*arguments):
        raise RuntimeError("shapes can't be multiplied")

    patch_step(broken)
    with pytest.raises(RuntimeError, match="shapes can't be multiplied"):
        run(make_config("1_lstm", "train.auto_find_micro_batch_size=true"))
    assert not is_out_of_memory(RuntimeError("shapes can't be multiplied"))
