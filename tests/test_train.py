"""Training: evidence left in the run folder, exactness of what is logged, and the command line."""

import csv
import errno
import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EXPERIMENTS
from kill import TIMINGS

import train
from config import InputError, RunError, load_config
from data import load_reviews, training_batches
from models import build_model, load_model
from predict import predict
from train import evaluate, fit, is_better, main, run
from training.frozen_features import FrozenFeatures


def read_metrics(run_dir) -> list[dict]:
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


def without_timings(lines: list[dict]) -> list[dict]:
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_experiment_runs_and_leaves_its_evidence(make_config, experiment):
    config = make_config(experiment, "train.epochs=2")
    summary = run(config)
    folder = Path(config.run_dir)
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert load_config(folder / "config.yaml") == config
    lines = read_metrics(folder)
    # 48 reviews in batches of 8: an epoch ends every 6 steps, an evaluation is due every 4.
    assert [line["step"] for line in lines] == [4, 6, 8, 12]
    assert [line["epoch"] for line in lines] == [1, 1, 2, 2]
    assert [line["reviews_seen"] for line in lines] == [32, 48, 64, 96]
    timings = {"train_seconds", "evaluation_seconds", "memory"}
    wanted = {"train_loss", "validation_loss", "validation_accuracy", "validation_f1", "learning_rate"} | timings
    for line in lines:
        assert wanted <= line.keys()
        assert line["validation_accuracy"] * 20 == pytest.approx(round(line["validation_accuracy"] * 20))
    best = max(lines, key=lambda line: (line["validation_accuracy"], -line["validation_loss"]))
    assert summary["best_validation_accuracy"] == best["validation_accuracy"]
    assert summary["best_validation_step"] == best["step"]
    assert summary["experiment"] == int(experiment[0])
    assert summary["architecture"] == config.architecture
    assert summary["completed"] is True
    assert summary["data"]["source"] == "files"
    assert [summary["data"][name] for name in ("train", "validation", "test")] == [48, 20, 22]
    assert summary["memory"]["kind"] == "process_resident"
    assert 0 < summary["steady_memory_bytes"] <= summary["peak_memory_bytes"]
    assert summary["train_seconds"] > 0
    assert summary["evaluation_seconds"] > 0
    assert summary["versions"]["torch"] == torch.__version__
    assert summary["seed"] == 0
    assert summary["device"]
    model = load_model(folder / "best")[0]
    assert summary["parameters"] == sum(p.numel() for p in model.parameters())
    assert (summary["trainable_parameters"] < summary["parameters"]) == (experiment == "8_minilm")


def test_the_kept_model_has_the_logged_figures_and_predictions(make_config):
    config = make_config("4_lstm_attention", "train.epochs=3", "train.learning_rate=0.01")
    summary = run(config)
    folder = Path(config.run_dir)
    model, reviews = load_model(folder / "best")[0], load_reviews(config.data)
    for name, accuracy, loss in (
        ("validation", summary["best_validation_accuracy"], summary["best_validation_loss"]),
        ("test", summary["test_accuracy"], summary["test_loss"]),
    ):
        split = getattr(reviews, name)
        result = evaluate(model, split, config, torch.device("cpu"))
        assert (result.accuracy, result.loss) == (accuracy, pytest.approx(loss, abs=1e-9))
        rows = list(csv.DictReader((folder / f"{name}_predictions.csv").read_text().splitlines()))
        assert [int(row["row"]) for row in rows] == list(range(len(split)))
        assert [int(row["label"]) for row in rows] == split.labels.tolist()
        written = np.array([float(row["probability"]) for row in rows])
        np.testing.assert_allclose(written, result.probabilities, atol=1e-6)
        np.testing.assert_allclose(written, predict(folder, split.texts), atol=1e-6)
        assert ((written >= 0.5) == split.labels).mean() == accuracy


def test_evaluation_weighs_every_review_the_same(make_config):
    """Against one batch of all: with batches of 7, the last of 20 reviews has 6."""
    config = make_config("5_transformer_prenorm", "train.eval_batch_size=7")
    reviews = load_reviews(config.data).validation
    torch.manual_seed(0)
    model = build_model(config.model, 30522, 24)
    result = evaluate(model, reviews, config, torch.device("cpu"))
    batch = reviews[np.arange(len(reviews))]
    output = model(**batch)
    predicted = output.logits.argmax(1)
    hits = (predicted & batch["labels"]).sum().item()
    assert result.loss == pytest.approx(output.loss.item(), abs=1e-6)
    assert result.accuracy == (predicted == batch["labels"]).double().mean().item()
    precision, recall = hits / max(1, predicted.sum().item()), hits / batch["labels"].sum().item()
    assert result.f1 == pytest.approx(2 * precision * recall / max(precision + recall, 1e-9))
    np.testing.assert_allclose(result.probabilities, output.logits.softmax(1)[:, 1].detach(), atol=1e-6)


def test_the_logged_training_loss_is_the_mean_over_the_reviews_since_the_last_line(make_config, monkeypatch):
    losses = []

    def noted(model, batch, *arguments):
        loss, logits = train_step(model, batch, *arguments)
        losses.extend([loss.item()] * len(batch["labels"]))
        return loss, logits

    train_step = train.training_step
    monkeypatch.setattr(train, "training_step", noted)
    config = make_config("1_lstm", "train.epochs=1", "train.batch_size=7", "train.eval_steps=5")
    run(config)
    first, last = read_metrics(config.run_dir)
    assert first["train_loss"] == pytest.approx(np.mean(losses[: first["reviews_seen"]]), abs=1e-6)
    assert last["train_loss"] == pytest.approx(np.mean(losses[first["reviews_seen"] :]), abs=1e-6)
    assert len(losses) == 48


def test_the_test_split_is_read_once_and_only_at_the_end(make_config, monkeypatch):
    read = []

    def noted(model, reviews, *arguments):
        read.append(len(reviews))
        return evaluation(model, reviews, *arguments)

    evaluation = train.evaluate
    monkeypatch.setattr(train, "evaluate", noted)
    run(make_config("1_lstm", "train.epochs=1"))
    assert read == [20, 20, 22]


@pytest.mark.parametrize("experiment", ["2_lstm_dropout", "7_transformer_postnorm", "8_minilm"])
def test_a_run_is_a_function_of_its_settings(make_config, experiment):
    config = make_config(experiment, "train.epochs=2")
    run(config)
    first = without_timings(read_metrics(config.run_dir))
    run(replace(config, overwrite=True))
    assert without_timings(read_metrics(config.run_dir)) == first
    run(replace(config, overwrite=True, seed=1))
    assert without_timings(read_metrics(config.run_dir)) != first


def test_evaluating_more_often_changes_no_training(make_config):
    config = make_config("5_transformer_prenorm", "train.epochs=2", "train.eval_steps=1")
    run(config)
    often = {line["step"]: line for line in without_timings(read_metrics(config.run_dir))}
    run(replace(config, overwrite=True, train=replace(config.train, eval_steps=100)))
    for line in read_metrics(config.run_dir):
        for key in ("validation_loss", "validation_accuracy", "learning_rate"):
            assert often[line["step"]][key] == line[key]


def test_training_goes_through_the_batches_of_seed_and_epoch(make_config, monkeypatch):
    seen = []

    def noted(model, batch, *arguments):
        seen.append(batch["input_ids"])
        return step(model, batch, *arguments)

    step = train.training_step
    monkeypatch.setattr(train, "training_step", noted)
    config = make_config("1_lstm", "train.epochs=2", "seed=3")
    run(config)
    reviews = load_reviews(config.data).train
    expected = [reviews[i] for epoch in (1, 2) for i in training_batches(reviews.lengths, 8, 3, epoch)]
    assert len(seen) == len(expected)
    assert all(torch.equal(a, b["input_ids"]) for a, b in zip(seen, expected, strict=True))


# ---------------------------------------------------------------- settings


def optimizer_of(config, steps=10):
    model = build_model(config.model, 31, 24)
    return train.build_optimizer(config, model, steps)


def test_every_setting_of_the_optimiser_reaches_it(make_config):
    config = make_config("1_lstm", "train.learning_rate=0.125", "train.adam_eps=0.5", "train.weight_decay=0.25")
    optimizer, _ = optimizer_of(config)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["eps"], group["weight_decay"]) == (0.125, 0.5, 0.25)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant_with_warmup", [0, 0.5, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0, 0.5, *(1 - i / 8 for i in range(8))]),
        ("cosine", [0, 0.5, *((1 + math.cos(math.pi * i / 8)) / 2 for i in range(8))]),
    ],
)
def test_the_learning_rate_follows_the_schedule(make_config, schedule, expected):
    config = make_config("1_lstm", f"train.lr_scheduler={schedule}", "train.warmup_ratio=0.2", "train.learning_rate=1")
    optimizer, scheduler = optimizer_of(config)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(("limit", "changed"), [("0.001", True), ("1e6", False), ("null", False)])
def test_gradients_are_clipped_to_the_norm_asked_for(make_config, monkeypatch, limit, changed):
    config = make_config("1_lstm", f"train.max_grad_norm={limit}", "train.epochs=1")
    norms = []

    class Recorder(torch.optim.AdamW):
        def step(self, *arguments, **keywords):
            gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(gradients).item())
            return super().step(*arguments, **keywords)

    monkeypatch.setattr(train, "AdamW", Recorder)
    run(config)
    assert all((norm <= 0.001 * 1.001) == changed for norm in norms)


def test_half_precision_changes_the_forward_pass_only(make_config):
    config = make_config("5_transformer_prenorm", "train.precision=bf16", "train.epochs=1")
    run(config)
    model = load_model(Path(config.run_dir) / "best")[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with train.autocast(config, torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu")
        assert model.backbone.model.transformer[0].linear(torch.zeros(1, 8)).dtype == torch.bfloat16
    with train.autocast(make_config("1_lstm"), torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("wanted", [True, False])
def test_the_model_is_compiled_where_asked_for(make_config, monkeypatch, wanted):
    """With a stand-in for the compiler, which takes longer than all tests; saved names must stay the same."""
    calls = []

    def compiler(function, **options):
        return lambda *arguments, **keywords: calls.append(options) or function(*arguments, **keywords)

    monkeypatch.setattr(torch, "compile", compiler)
    config = make_config("1_lstm", f"train.compile={wanted}", "train.epochs=1")
    run(config)
    assert bool(calls) == wanted
    assert load_model(Path(config.run_dir) / "best")


@pytest.mark.parametrize(
    ("metric", "better", "worse"),
    [
        ("accuracy", (0.9, 0.5), (0.8, 0.1)),
        ("accuracy", (0.9, 0.4), (0.9, 0.5)),
        ("loss", (0.8, 0.1), (0.9, 0.5)),
    ],
)
def test_the_best_model_is_the_one_by_the_metric_asked_for(metric, better, worse):
    lines = [dict(zip(("validation_accuracy", "validation_loss"), figures, strict=True)) for figures in (better, worse)]
    assert is_better(lines[0], lines[1], metric)
    assert not is_better(lines[1], lines[0], metric)
    assert not is_better(lines[0], lines[0], metric)


def test_the_frozen_encoder_of_experiment_eight_stays_as_it_was(make_config):
    config = make_config("8_minilm", "train.epochs=1")
    before = build_model(config.model, 30522, 24).state_dict()
    run(config)
    after = load_model(Path(config.run_dir) / "best")[0].state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "classifier.weight",
        "classifier.bias",
    }


def test_kept_outputs_of_frozen_layers_change_no_figure(make_config, monkeypatch, tmp_path):
    """But for rounding: padding, and so the order of sums, differs. A second run reads the file."""
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    config = make_config("8_minilm", cache, "model.dropout=0", "train.learning_rate=0.0003")
    run(config)
    computed = without_timings(read_metrics(config.run_dir))
    kept = replace(config, overwrite=True, train=replace(config.train, cache_frozen_features="fp32"))
    run(kept)
    for line, expected in zip(without_timings(read_metrics(config.run_dir)), computed, strict=True):
        assert line == pytest.approx(expected, abs=1e-4)
    assert len(list((tmp_path / "cache").glob("*.frozen"))) == 2
    monkeypatch.setattr(FrozenFeatures, "make", lambda *arguments: pytest.fail("made again"))
    run(kept)


def test_the_time_for_the_outputs_of_frozen_layers_counts_as_training(make_config, monkeypatch, tmp_path):
    def slowly(*arguments):
        time.sleep(1.5)
        return make(*arguments)

    make = FrozenFeatures.make
    monkeypatch.setattr(FrozenFeatures, "make", slowly)
    config = make_config("8_minilm", f"data.cache_dir={tmp_path}", "train.cache_frozen_features=fp32", "train.epochs=1")
    assert run(config)["train_seconds"] > 3
    assert read_metrics(config.run_dir)[0]["train_seconds"] > 3


def test_a_disk_too_small_for_the_outputs_of_frozen_layers_is_an_error_that_says_so(make_config, monkeypatch, tmp_path):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    config = make_config("8_minilm", f"data.cache_dir={tmp_path / 'cache'}", "train.cache_frozen_features=fp32")
    tokens = load_reviews(config.data).train.lengths.sum()
    with pytest.raises(RunError, match=rf"need {tokens * 384 * 4 / 1e6:.1f} MB.*train.cache_frozen_features=bf16"):
        run(config)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith("partial")]


def test_a_model_without_frozen_layers_trains_with_the_setting_too(make_config):
    """A profile sets it for all eight."""
    assert run(make_config("1_lstm", "train.cache_frozen_features=fp32", "train.epochs=1"))["completed"]


def test_kept_outputs_in_half_precision_are_near(make_config, tmp_path):
    config = make_config("8_minilm", f"data.cache_dir={tmp_path}", "train.epochs=1")
    model = build_model(config.model, 30522, 24).eval()
    reviews = load_reviews(config.data).validation
    batch = reviews[np.array([3, 0, 7])]
    exact = (
        model.backbone.frozen_states(batch["input_ids"], batch["attention_mask"]) * batch["attention_mask"][..., None]
    )
    sizes = {}
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 0.02)):
        features = FrozenFeatures(reviews, model.backbone, tmp_path, precision, batch_size=6)
        found = features[np.array([3, 0, 7])]
        torch.testing.assert_close(found["hidden_states"].float(), exact, rtol=tolerance, atol=tolerance)
        assert torch.equal(found["labels"], batch["labels"])
        sizes[precision] = features.path.stat().st_size
    assert sizes["fp32"] == 2 * sizes["bf16"] == reviews.lengths.sum() * 384 * 4


def test_a_loss_that_is_no_number_stops_the_run(make_config, monkeypatch):
    config = make_config("1_lstm", "train.learning_rate=1e20")
    with pytest.raises(FloatingPointError, match="learning rate 1e\\+20; lower train.learning_rate"):
        run(config)
    assert not (Path(config.run_dir) / "summary.json").exists()


# ---------------------------------------------------------------- run folders


def test_a_complete_run_is_kept(make_config, monkeypatch):
    config = make_config("1_lstm", "train.epochs=1")
    summary = run(config)
    written = (Path(config.run_dir) / "summary.json").stat().st_mtime_ns
    monkeypatch.setattr(train, "fit", lambda *arguments: pytest.fail("trained again"))
    assert run(config) == summary
    assert (Path(config.run_dir) / "summary.json").stat().st_mtime_ns == written
    other = replace(config, train=replace(config.train, learning_rate=0.5))
    with pytest.raises(InputError, match=r"train.learning_rate: 0.001 -> 0.5\); it is kept.*overwrite=true"):
        run(other)


def test_overwrite_replaces_what_a_run_wrote_and_nothing_else(make_config):
    config = make_config("1_lstm", "train.epochs=1")
    run(config)
    (Path(config.run_dir) / "notes.txt").write_text("mine")
    other = replace(config, seed=5, overwrite=True)
    assert run(other)["seed"] == 5
    assert (Path(config.run_dir) / "notes.txt").read_text() == "mine"
    assert len(read_metrics(config.run_dir)) == 2


def test_an_unfinished_run_is_started_again(make_config, monkeypatch):
    config = make_config("1_lstm", "train.epochs=1")

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "is_better", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert read_metrics(config.run_dir)
    run(config)
    assert [line["step"] for line in read_metrics(config.run_dir)] == [4, 6]


# ---------------------------------------------------------------- command line


def test_several_experiments_run_one_after_another(make_config, capsys, tmp_path):
    config = make_config("1_lstm")
    common = [
        *(f"data.{key}={getattr(config.data, key)}" for key in ("source", "train", "validation", "test", "cache_dir")),
        *("data.max_length=24", "model.embedding_size=8", "model.hidden_size=8", "model.num_heads=2"),
        *("train.epochs=1", "train.batch_size=8", "device=cpu", f"run_dir={tmp_path}/logs/${{name}}"),
    ]
    assert main(["configs/1_lstm.yaml", "configs/5_transformer_prenorm.yaml", *common]) == 0
    assert sorted(path.parent.name for path in tmp_path.glob("logs/*/summary.json")) == ["lstm", "transformer_prenorm"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["configs/9_nothing.yaml"], "error: configs/9_nothing.yaml: no such file"),
        (["train.epochs=3"], "error: no experiment file given"),
        (["configs/1_lstm.yaml", "train.epoch=3"], "did you mean 'train.epochs'"),
        (["configs/1_lstm.yaml", "configs/2_lstm_dropout.yaml", "run_dir=x"], "run_dir='x' is the folder of 2"),
        (["configs/1_lstm.yaml", "data.source=files", "data.train=nothing.csv"], "nothing.csv: no such file"),
    ],
)
def test_input_that_can_not_be_used_ends_in_one_line_and_status_two(arguments, message, capsys, tmp_path):
    if not any(text.startswith("run_dir") for text in arguments):
        arguments = [*arguments, f"run_dir={tmp_path}/run"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "train.learning_rate (float, above 0; default 0.001)" in text
    assert "model.block (one of prenorm, postnorm; default prenorm)" in text


def test_no_bar_is_drawn_without_a_terminal(make_config, capfd):
    run(make_config("1_lstm", "train.epochs=1"))
    assert "step/s" not in capfd.readouterr().err


def test_asking_for_a_gpu_that_is_not_there_is_refused(make_config):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(InputError, match="device=cuda: torch sees no CUDA device"):
        run(replace(make_config("1_lstm"), device="cuda"))


def test_fit_leaves_the_test_split_alone(make_config, tmp_path):
    config = make_config("1_lstm", "train.epochs=1")
    reviews = replace(load_reviews(config.data), test=None)
    record = fit(config, build_model(config.model, 30522, 24), reviews, torch.device("cpu"), tmp_path)
    assert record.step == 6
