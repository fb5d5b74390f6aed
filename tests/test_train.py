"""A run from settings to summary: the files it leaves, its determinism, and the command line."""

import csv
import errno
import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from config import CONFIGS, InputError, load_config, to_yaml
from data import load_reviews
from helpers import EXPERIMENTS, read_metrics, without_timings, write_config, write_file
from models import build_model, load_model
from predict import predict, predicted_labels
from train import main, run
from training import trainer
from training.evaluation import evaluate

LSTM, DROPOUT, PRENORM = (str(CONFIGS / f"{EXPERIMENTS[i]}.yaml") for i in (0, 1, 4))


def test_path_with_an_equals_sign_is_a_path(make_config, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "lr=0.001"
    folder.mkdir()
    path = write_config(make_config("1_lstm", f"run_dir={folder / 'run'}"))
    monkeypatch.setattr(train, "run", lambda config: print(config.run_dir, config.seed))
    assert main([str(path), "seed=3"]) == 0
    assert capsys.readouterr().out == f"{folder / 'run'} 3\n"
    monkeypatch.chdir(folder)
    path.rename("seed=4.yaml")
    assert main(["seed=4.yaml", "seed=5"]) == 0
    assert capsys.readouterr().out == f"{folder / 'run'} 5\n"


def test_missing_path_with_an_equals_sign_is_named(capsys):
    assert main(["logs/lr=0.001/config.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: logs/lr=0.001/config.yaml: no such file")


@pytest.mark.parametrize("word", ["seed=3", "run_dir=logs/a=b", "data.train=~/reviews.csv", "=3", "data={train: a/b}"])
def test_setting_with_a_path_is_a_setting(word):
    assert train.is_override(word)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_runs_and_leaves_its_files(make_config, experiment):
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
    keys = {"train_loss", "validation_loss", "validation_accuracy", "validation_f1", "learning_rate"}
    for line in lines:
        assert {*keys, "train_seconds", "evaluation_seconds", "memory"} <= line.keys()
        assert line["validation_accuracy"] * 20 == pytest.approx(round(line["validation_accuracy"] * 20))
    best = max(lines, key=lambda line: (line["validation_accuracy"], -line["validation_loss"]))
    assert summary["best_validation_accuracy"] == best["validation_accuracy"]
    assert summary["best_validation_step"] == best["step"]
    assert (summary["experiment"], summary["key"]) == (int(experiment[0]), experiment[0])
    assert summary["architecture"] == config.architecture
    assert summary["completed"] is True
    assert summary["data"]["source"] == "files"
    assert [summary["data"][name] for name in ("train", "validation", "test")] == [48, 20, 22]
    assert summary["memory"]["kind"] == "process_resident"
    assert 0 < summary["steady_memory_bytes"] <= summary["peak_memory_bytes"]
    assert summary["train_seconds"] > 0
    assert summary["evaluation_seconds"] > 0
    assert summary["versions"]["torch"] == version("torch")
    assert summary["seed"] == 0
    assert summary["device"]
    model = load_model(folder / "best")[0]
    assert summary["parameters"] == sum(p.numel() for p in model.parameters())
    assert (summary["trainable_parameters"] < summary["parameters"]) == (experiment == "8_minilm")


def test_saved_model_has_the_logged_metrics_and_predictions(make_config):
    config = make_config("4_lstm_attention", "train.epochs=3", "train.learning_rate=0.01")
    summary = run(config)
    folder = Path(config.run_dir)
    model, reviews = load_model(folder / "best")[0], load_reviews(config.data)
    for name, accuracy, loss in (
        ("validation", summary["best_validation_accuracy"], summary["best_validation_loss"]),
        ("test", summary["test_accuracy"], summary["test_loss"]),
    ):
        split = getattr(reviews, name)
        result = evaluate(model, split, config.train.eval_batch_size, torch.device("cpu"))
        assert (result.accuracy, result.loss) == (accuracy, pytest.approx(loss, abs=1e-9)), name
        rows = list(csv.DictReader((folder / f"{name}_predictions.csv").read_text().splitlines()))
        assert [int(row["row"]) for row in rows] == list(range(len(split)))
        assert [int(row["label"]) for row in rows] == split.labels.tolist()
        written = np.array([float(row["probability"]) for row in rows])
        np.testing.assert_allclose(written, result.probabilities, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(written, predict(folder, split.texts), atol=1e-6, err_msg=name)
        assert (predicted_labels(written) == split.labels).mean() == accuracy


def test_test_split_is_evaluated_once_at_the_end(make_config, monkeypatch):
    sizes = []

    def noted(model, reviews, *arguments):
        sizes.append(len(reviews))
        return evaluate(model, reviews, *arguments)

    monkeypatch.setattr(trainer, "evaluate", noted)
    monkeypatch.setattr(train, "evaluate", noted)
    run(make_config("1_lstm", "train.epochs=1"))
    assert sizes == [20, 20, 22]


@pytest.mark.parametrize("experiment", ["2_lstm_dropout", "7_transformer_postnorm", "8_minilm"])
def test_equal_seeds_give_equal_runs(make_config, experiment):
    config = make_config(experiment, "train.epochs=2")
    run(config)
    first = without_timings(read_metrics(config.run_dir))
    run(replace(config, overwrite=True))
    assert without_timings(read_metrics(config.run_dir)) == first
    run(replace(config, overwrite=True, seed=1))
    assert without_timings(read_metrics(config.run_dir)) != first


def test_bf16_leaves_the_weights_in_float32(make_config):
    config = make_config("5_transformer_prenorm", "train.precision=bf16", "train.epochs=1")
    run(config)
    model = load_model(Path(config.run_dir) / "best")[0]
    assert {name: p.dtype for name, p in model.named_parameters() if p.dtype != torch.float32} == {}


@pytest.mark.parametrize("compiled", [True, False])
def test_compile_setting_compiles_the_model(make_config, monkeypatch, compiled):
    """With a stand-in for the compiler, which takes longer than all tests; saved names must stay the same."""
    calls = []

    def compiler(function, **options):
        return lambda *arguments, **keywords: calls.append(options) or function(*arguments, **keywords)

    monkeypatch.setattr(torch, "compile", compiler)
    config = make_config("1_lstm", f"train.compile={compiled}", "train.epochs=1")
    run(config)
    assert bool(calls) == compiled
    assert load_model(Path(config.run_dir) / "best")


def test_first_epoch_of_minilm_trains_only_the_classifier(make_config):
    config = make_config("8_minilm", "train.epochs=1")
    before = build_model(config.model, 30522, 24).state_dict()
    run(config)
    after = load_model(Path(config.run_dir) / "best")[0].state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


# ---------------------------------------------------------------- command line


def test_command_trains_several_experiments(make_config, tmp_path):
    config = make_config("1_lstm")
    common = [
        *(f"data.{key}={getattr(config.data, key)}" for key in ("source", "train", "validation", "test", "cache_dir")),
        *("data.max_length=24", "model.embedding_size=8", "model.hidden_size=8", "model.num_heads=2"),
        *("train.epochs=1", "train.batch_size=8", "device=cpu", f"run_dir={tmp_path}/logs/${{key}}_${{name}}"),
    ]
    assert main([LSTM, PRENORM, *common, "jobs=1"]) == 0
    folders = sorted(path.parent.name for path in tmp_path.glob("logs/*/summary.json"))
    assert folders == ["1_lstm", "5_transformer_prenorm"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["configs/9_nothing.yaml"], "error: configs/9_nothing.yaml: no such file"),
        (["train.epochs=3"], "error: no experiment file given"),
        ([LSTM, "train.epoch=3"], "did you mean 'train.epochs'"),
        ([LSTM, DROPOUT, "run_dir=x"], "run_dir='x' is the folder of 2"),
        ([LSTM, "data.source=files", "data.train=nothing.csv"], "nothing.csv: no such file"),
    ],
)
def test_invalid_input_ends_in_one_line_and_status_2(arguments, message, capsys, tmp_path):
    if not any(text.startswith("run_dir") for text in arguments):
        arguments = [*arguments, f"run_dir={tmp_path}/run"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["run_dir", "data.cache_dir"])
def test_folder_that_cannot_be_made_is_refused_before_any_experiment_starts(make_config, tmp_path, capsys, key):
    file = write_file(tmp_path, "file", "x")
    configs = [make_config("1_lstm"), make_config("2_lstm_dropout", f"run_dir={tmp_path}/2", f"{key}={file}/2")]
    paths = [write_file(tmp_path, f"{number}.yaml", to_yaml(config)) for number, config in enumerate(configs)]
    assert main([str(path) for path in paths]) == 2
    assert capsys.readouterr().err == (
        f"error: {key}={file}/2: {file} is a file; expected a folder; give another {key}\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.yaml", "1.yaml", "file"]


@pytest.mark.parametrize("name", ["best", "checkpoints"])
def test_file_in_place_of_a_runs_folder_is_refused_before_the_start(make_config, tmp_path, monkeypatch, name):
    monkeypatch.setattr(train, "load_reviews", lambda config: pytest.fail("read"))
    (tmp_path / "run").mkdir()
    write_file(tmp_path / "run", name, "mine")
    with pytest.raises(InputError, match=f"{name} is a file; expected a folder; give another run_dir"):
        run(make_config("1_lstm"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


def test_name_that_is_too_long_ends_in_one_line(tmp_path, capsys):
    """The word is looked up as a file first, since the path of one may hold `=` too."""
    assert main([LSTM, f"run_dir={tmp_path}/${{name}}", f"name={'x' * 300}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: run_dir={tmp_path}/xxx")
    assert error.endswith("xxx: File name too long; give another run_dir\n")


def test_path_with_an_equals_sign_is_no_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_file(tmp_path, "rate=1.yaml", "")
    words = ["rate=1.yaml", "logs/rate=1/config.yaml", "train.epochs=3", "run_dir=logs/rate=1", "configs/1_lstm.yaml"]
    assert [word for word in words if train.is_override(word)] == ["train.epochs=3", "run_dir=logs/rate=1"]


def test_disk_full_ends_in_one_line_and_status_1(make_config, monkeypatch, capsys):
    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr(trainer.Trainer, "validate", full)
    assert main([str(write_config(make_config("1_lstm", "train.epochs=1")))]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: metrics.jsonl: no space left on the disk: ")
    assert "what was saved before is untouched" in error
    assert error.count("\n") == 1


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "train.learning_rate (float, above 0; default 0.001)" in text
    assert "model.block (one of prenorm, postnorm; default prenorm)" in text


def test_no_progress_bar_without_a_terminal(make_config, capfd):
    run(make_config("1_lstm", "train.epochs=1"))
    assert "step/s" not in capfd.readouterr().err


def test_missing_gpu_is_refused(make_config):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(InputError, match="device=cuda: torch sees no CUDA device"):
        run(replace(make_config("1_lstm"), device="cuda"))
