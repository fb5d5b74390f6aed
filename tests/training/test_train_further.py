"""More epochs for a complete run, and runs that start from the weights of another."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import train
from config import Config, InputError
from data import load_reviews, load_tokenizer
from helpers import assert_same_tensors, read_metrics
from kill import different_parts, interrupted, result_of, run_until_complete
from models import build_model, load_model, save_model
from train import run
from training.checkpoint import checkpoints_of


def with_epochs(config: Config, epochs: int, **others) -> Config:
    return replace(config, train=replace(config.train, epochs=epochs, **others))


def assert_extended(run_dir: Path, longer: Path, from_epochs: list[int]) -> None:
    """The result of a run of as many epochs from the start, but for the record of how it came about."""
    assert json.loads((run_dir / "summary.json").read_text())["extended_from_epochs"] == from_epochs
    results = [result_of(folder) for folder in (run_dir, longer)]
    for result in results:
        for part in ("summary.json", "state.json: record"):
            result[part].pop("extended_from_epochs")
    assert different_parts(*results) == []


# ---------------------------------------------------------------- more epochs


@pytest.mark.parametrize(("experiment", "epochs"), [("2_lstm_dropout", [1, 3, 5]), ("8_minilm", [1, 2])])
def test_run_trained_further_equals_a_longer_run(make_config, tmp_path, experiment, epochs):
    """Bit for bit: weights, optimiser, evaluations, best model; 8 unfreezes its last layer in the second epoch."""
    config = make_config(experiment)
    longer = run(with_epochs(replace(config, run_dir=str(tmp_path / "longer")), epochs[-1]))
    assert longer["extended_from_epochs"] == []
    for number in epochs:
        assert run(with_epochs(config, number))["epochs"] == number
    assert_extended(tmp_path / "run", tmp_path / "longer", epochs[:-1])
    assert run(with_epochs(config, epochs[-1]))["extended_from_epochs"] == epochs[:-1]


def test_run_stopped_while_trained_further_resumes(make_config, tmp_path, stop_at):
    config = make_config("2_lstm_dropout", "train.epochs=1")
    run(with_epochs(replace(config, run_dir=str(tmp_path / "longer")), 3))
    run(config)
    # In the first new step, the last of the second epoch, and the first of the third.
    stop_at(1, 6, 7)
    assert run_until_complete(with_epochs(config, 3)) == 3
    assert_extended(tmp_path / "run", tmp_path / "longer", [1])


@pytest.mark.parametrize("place", ["restore_best", "start_run", "Trainer"])
def test_run_killed_before_it_is_trained_further_can_be_given_either_number(make_config, monkeypatch, place):
    """Right after each thing that is done before the first new step."""
    config = make_config("1_lstm", "train.epochs=1")
    summary = run(config)

    def killed(*arguments, **keywords):
        original(*arguments, **keywords)
        raise KeyboardInterrupt

    original = getattr(train, place)
    with monkeypatch.context() as patch:
        patch.setattr(train, place, killed)
        with pytest.raises(KeyboardInterrupt):
            run(with_epochs(config, 2))
    assert run(config)["test_loss"] == summary["test_loss"]
    assert run(with_epochs(config, 2))["extended_from_epochs"] == [1]


def test_learning_rate_of_a_run_trained_further_follows_the_longer_schedule(make_config, tmp_path):
    config = make_config("1_lstm", "train.epochs=1", "train.lr_scheduler=linear", "train.eval_steps=1")
    run(with_epochs(replace(config, run_dir=str(tmp_path / "longer")), 2))
    run(config)
    steps = []
    step = train.Trainer.train_step

    def noted(self, *arguments):
        steps.append(self.step.learning_rate)
        step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Trainer, "train_step", noted)
        run(with_epochs(config, 2))
    rates = [[line["learning_rate"] for line in read_metrics(tmp_path / name)] for name in ("run", "longer")]
    assert rates[0][6:] == rates[1][6:]
    assert rates[0][5] == 0 < rates[1][5]
    # The rate of a step is logged after the step before.
    assert steps == rates[1][5:11]


@pytest.mark.parametrize(
    ("epochs", "others", "difference"),
    [(1, {}, "train.epochs: 2 -> 1"), (3, {"learning_rate": 0.5}, "train.learning_rate: 0.001 -> 0.5")],
)
def test_complete_run_is_not_shortened_or_changed(make_config, epochs, others, difference):
    config = make_config("1_lstm", "train.epochs=2")
    summary = run(config)
    with pytest.raises(InputError, match=rf"complete run with other settings \({difference}\); it is kept"):
        run(with_epochs(config, epochs, **others))
    assert run(config) == summary


def test_run_without_its_last_state_is_not_trained_further(make_config):
    config = make_config("1_lstm", "train.epochs=1")
    summary = run(config)
    shutil.rmtree(Path(config.run_dir) / "checkpoints")
    with pytest.raises(InputError, match="a complete run of 1 epochs without its last state .*model.init_from="):
        run(with_epochs(config, 2))
    assert run(config) == summary


@pytest.mark.parametrize("name", ["best/model.safetensors", "checkpoints/*/model.safetensors"])
def test_damaged_run_is_not_trained_further(make_config, name):
    config = make_config("1_lstm", "train.epochs=1")
    summary = run(config)
    (path,) = Path(config.run_dir).glob(name)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="model.safetensors: .*overwrite=true"):
        run(with_epochs(config, 2))
    assert run(config) == summary


# ---------------------------------------------------------------- weights of another run


def initial_weights(config: Config) -> dict[str, torch.Tensor]:
    model, _ = train._build(config, load_reviews(config.data), torch.device("cpu"), is_new=True)
    return model.state_dict()


@pytest.mark.parametrize("experiment", ["4_lstm_attention", "8_minilm"])
def test_run_starts_from_the_weights_of_another(make_config, tmp_path, experiment):
    source = make_config(experiment, "train.epochs=2", f"run_dir={tmp_path / 'source'}")
    assert run(source)["init_from"] is None
    best = load_model(tmp_path / "source" / "best")[0].state_dict()
    assert not all(torch.equal(tensor, best[name]) for name, tensor in initial_weights(source).items())
    weights = tmp_path / "source" / "best" / "model.safetensors"
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    # What does not change the weights' meaning may differ, and so may the data.
    changes = ["model.dropout=0.1", "data.max_length=20", "model.unfreeze_epoch=1", "seed=3", "train.epochs=1"]
    for folder in (tmp_path / "source", tmp_path / "source" / "best"):
        config = make_config(experiment, *changes, f"model.init_from={folder}")
        assert_same_tensors(initial_weights(config), best)
    assert run(config)["init_from"] == {"path": str(weights), "sha256": sha256}
    trained = load_model(tmp_path / "run" / "best")[0].state_dict()
    changed = {name for name in best if not torch.equal(trained[name], best[name])}
    last_layer = {name for name in best if ".layer.1." in name}
    assert changed >= last_layer if experiment == "8_minilm" else changed
    assert last_layer or experiment != "8_minilm"


def test_stopped_run_resumes_without_the_run_that_it_started_from(make_config, tmp_path, stop_at):
    run(make_config("1_lstm", "train.epochs=1", f"run_dir={tmp_path / 'source'}"))
    config = make_config("1_lstm", "train.epochs=1", f"model.init_from={tmp_path / 'source'}")
    interrupted(config, stop_at, 3)
    shutil.rmtree(tmp_path / "source")
    assert run(config)["init_from"]["path"] == str(tmp_path / "source" / "best" / "model.safetensors")


@pytest.mark.parametrize(
    ("source", "experiment", "change", "difference"),
    [
        ("1_lstm", "3_lstm_decoder", "seed=0", "model.decoder: False -> True"),
        ("1_lstm", "1_lstm", "model.hidden_size=6", "model.hidden_size: 8 -> 6"),
        ("1_lstm", "5_transformer_prenorm", "seed=0", "model.backbone: 'lstm' -> 'transformer'"),
        ("5_transformer_prenorm", "5_transformer_prenorm", "model.num_heads=4", "model.num_heads: 2 -> 4"),
        ("5_transformer_prenorm", "7_transformer_postnorm", "seed=0", "model.block: 'prenorm' -> 'postnorm'"),
    ],
)
def test_weights_of_another_architecture_are_refused(make_config, tmp_path, source, experiment, change, difference):
    model_settings = make_config(source).model
    tokenizer = load_tokenizer("packaged")
    model = build_model(model_settings, len(tokenizer), 24)
    save_model(tmp_path / "saved", model, tokenizer)
    config = make_config(experiment, change, f"model.init_from={tmp_path / 'saved'}")
    with pytest.raises(InputError, match=f"init_from=.*saved: its weights don't fit the new model, by {difference}"):
        run(config)


def test_weights_of_another_tokenizer_are_refused(make_config, tmp_path):
    vocabulary = {"[UNK]": 0, "food": 1, "great": 2}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    settings = make_config("1_lstm").model
    save_model(tmp_path / "saved", build_model(settings, 3, 24), tokenizer)
    difference = r"the vocabulary's size: 3 -> 30522, the tokenizer \(vocabularies of 3 and 30522 entries"
    with pytest.raises(InputError, match=difference):
        run(make_config("1_lstm", f"model.init_from={tmp_path / 'saved'}"))


def test_encoder_of_another_size_is_refused(make_config, tmp_path):
    config = make_config("8_minilm")
    tokenizer = load_tokenizer("packaged")
    model = build_model(config.model, len(tokenizer), 24)
    model.backbone.model.encoder.layer = model.backbone.model.encoder.layer[:1]
    model.backbone.model.config.num_hidden_layers = model.config.encoder["num_hidden_layers"] = 1
    save_model(tmp_path / "saved", model, tokenizer)
    with pytest.raises(InputError, match="by the encoder's num_hidden_layers: 1 -> 2; give both the same"):
        run(make_config("8_minilm", f"model.init_from={tmp_path / 'saved'}"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", "nothing: no such folder; expected that of a run or of a saved model"),
        ("run/best", "model.init_from=.*run/best is in run_dir=.*run, which changes; give another run_dir"),
    ],
)
def test_unusable_source_is_refused_before_the_reviews_are_read(make_config, tmp_path, monkeypatch, source, message):
    monkeypatch.setattr(train, "load_reviews", lambda config: pytest.fail("read"))
    with pytest.raises(InputError, match=message):
        run(make_config("1_lstm", f"model.init_from={tmp_path / source}"))
    assert not checkpoints_of(tmp_path / "run")
