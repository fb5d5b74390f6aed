"""A run may be killed anywhere: what it ends with is the same, bit for bit, or there is an error that says why."""

import errno
import json
import logging
import os
import random
import shutil
import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import kill
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

import train
from config import InputError, RunError
from data import load_reviews
from train import main, run
from training import checkpoint, run_folder
from training.checkpoint import (
    DamagedError,
    InterruptedRun,
    RunLock,
    checkpoint_path,
    checkpoints_of,
    load_checkpoint,
    optimizer_state,
    random_states,
    save_checkpoint,
    set_optimizer_state,
    set_random_states,
    verify_folder,
    write_folder,
)

# Dropout, an evaluation inside the epoch, for each backbone; 8 thaws a layer after its first epoch.
KINDS = ["2_lstm_dropout", "5_transformer_prenorm", "8_minilm"]
SAVING = ("train.epochs=2", "train.save_steps=2")
UNINTERRUPTED: dict[str, dict] = {}


@pytest.fixture(autouse=True)
def keep_checkpoints(monkeypatch):
    """A complete run keeps its checkpoints here, so that its last state can be compared."""
    monkeypatch.setattr(shutil, "rmtree", kill.keep_checkpoints(shutil.rmtree))


@pytest.fixture
def stop_at(monkeypatch):
    """`stop_at(3, 5)`: SIGTERM in the middle of steps 3 and 5, counted over all runs from here on."""
    steps, made = [], []

    def step(*arguments, **keywords):
        made.append(None)
        if len(made) in steps:
            os.kill(os.getpid(), steps_signal[0])
        return original(*arguments, **keywords)

    original, steps_signal = train.training_step, [signal.SIGTERM]
    monkeypatch.setattr(train, "training_step", step)

    def set_steps(*numbers: int, signum: int = signal.SIGTERM) -> None:
        made.clear()
        steps[:], steps_signal[0] = numbers, signum

    return set_steps


def uninterrupted(config) -> dict:
    """The result of a run of these settings that nothing stops, computed once."""
    key = f"{config.experiment} {config.train}"
    if key not in UNINTERRUPTED:
        run(replace(config, run_dir=config.run_dir + "-uninterrupted"))
        UNINTERRUPTED[key] = kill.result_of(Path(config.run_dir + "-uninterrupted"))
    return UNINTERRUPTED[key]


def run_to_the_end(config) -> int:
    """Start a run again until it is complete; returns how often it was stopped."""
    for stops in range(10):
        try:
            run(config)
            return stops
        except InterruptedRun:
            continue
    pytest.fail("the run never ended")


def interrupted(config, stop_at, *steps: int) -> Path:
    """A run folder of a run stopped there."""
    stop_at(*steps)
    with pytest.raises(InterruptedRun):
        run(config)
    stop_at()
    return Path(config.run_dir)


# ---------------------------------------------------------------- exactness


@pytest.mark.parametrize("experiment", KINDS)
@pytest.mark.parametrize("steps", [(1,), (3,), (6,), (7,), (12,), (2, 4)], ids=str)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(make_config, stop_at, experiment, steps):
    """Epochs have 6 steps: the first, one amid, the epoch's last, the next one's first, the run's last, two in one."""
    config = make_config(experiment, *SAVING)
    expected = uninterrupted(config)
    stop_at(*steps)
    assert run_to_the_end(config) == len(steps)
    assert kill.result_of(Path(config.run_dir)) == expected


def test_a_difference_would_be_seen(make_config):
    """The comparison of these tests, on a run of another seed."""
    config = make_config("2_lstm_dropout", *SAVING)
    expected = uninterrupted(config)
    run(replace(config, seed=1))
    assert kill.result_of(Path(config.run_dir)) != expected


def test_kept_outputs_of_frozen_layers_are_resumed_too(make_config, stop_at, tmp_path):
    config = make_config(
        "8_minilm", *SAVING, "train.cache_frozen_features=fp32", f"data.cache_dir={tmp_path / 'cache'}"
    )
    expected = uninterrupted(config)
    stop_at(7)
    assert run_to_the_end(config) == 1
    assert kill.result_of(Path(config.run_dir)) == expected


def test_skipping_to_the_position_loads_no_review(make_config, stop_at, monkeypatch):
    config = make_config("1_lstm", *SAVING)
    interrupted(config, stop_at, 4)
    loaded = []
    loader = train.batch_loader
    monkeypatch.setattr(
        train,
        "batch_loader",
        lambda reviews, batches, device: loaded.append(len(batches)) or loader(reviews, batches, device),
    )
    run(config)
    # What is left of the first epoch, the validation at its end, the second epoch with its two, and the test.
    assert loaded == [2, 1, 6, 1, 1, 1]


def test_a_run_killed_at_any_moment_ends_the_same(tmp_path, review_files):
    kill.kill_and_resume(kill.small_config(tmp_path, review_files), moments=30, seed=0)


# ---------------------------------------------------------------- what is kept


def test_two_checkpoints_and_the_best_models_they_refer_to_are_kept(make_config, stop_at):
    config = make_config("1_lstm", "train.epochs=3", "train.save_steps=1", "train.eval_steps=1")
    folder = interrupted(config, stop_at, 15)
    kept = [path.name for path in checkpoints_of(folder)]
    assert kept == ["step-00000015", "step-00000014"]
    best = {f"best-{run_folder.best_step_of(path):08d}" for path in checkpoints_of(folder)}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == best | set(kept)


def test_a_checkpoint_holds_tensors_and_json_only(make_config, stop_at):
    folder = interrupted(make_config("1_lstm", *SAVING), stop_at, 3)
    for path in checkpoints_of(folder)[0].iterdir():
        if path.suffix == ".safetensors":
            assert load_file(path)
        else:
            assert path.suffix == ".json"
            json.loads(path.read_text())


def test_a_complete_run_leaves_no_checkpoint_and_no_lock(make_config, monkeypatch):
    monkeypatch.undo()
    config = make_config("1_lstm", "train.epochs=1")
    run(config)
    names = {path.name for path in Path(config.run_dir).iterdir()}
    assert names == {*run_folder.RUN_FILES, "best"}


def test_checkpoints_fall_where_steps_and_minutes_say(make_config, monkeypatch):
    saved = []
    monkeypatch.setattr(train, "save_checkpoint", lambda folder, *_: saved.append(int(folder.name[5:])))
    monkeypatch.setattr(train, "prune", lambda *_: None)
    run(make_config("1_lstm", "train.epochs=2"))
    assert saved == [6, 12]
    saved.clear()
    run(make_config("1_lstm", "train.epochs=2", "train.save_steps=4", "overwrite=true"))
    assert saved == [4, 6, 8, 12]
    saved.clear()
    run(make_config("1_lstm", "train.epochs=1", "train.save_minutes=1e-9", "overwrite=true"))
    assert saved == [1, 2, 3, 4, 5, 6]


def test_log_lines_past_the_checkpoint_and_a_torn_one_are_dropped(make_config, stop_at):
    config = make_config("1_lstm", *SAVING)
    folder = interrupted(config, stop_at, 7)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "train_loss": 99}\n{"step": 12, "tr')
    run(config)
    assert kill.result_of(folder) == uninterrupted(config)


# ---------------------------------------------------------------- damage


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "removed":
        path.unlink()
        return
    if how == "truncated":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


FILES = ["model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["removed", "truncated", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(make_config, stop_at, caplog, name, how):
    config = make_config("5_transformer_prenorm", *SAVING)
    folder = interrupted(config, stop_at, 4)
    newest, before = checkpoints_of(folder)
    damage(newest / name, how)
    with caplog.at_level(logging.INFO):
        run(config)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert str(newest) in warnings[0]
    assert "damaged" in warnings[0]
    assert any(f"going on after step {int(before.name[5:])}" in record.getMessage() for record in caplog.records)
    assert kill.result_of(folder) == uninterrupted(config)


def test_a_damaged_checkpoint_is_gone_once_the_one_before_is_used(make_config, stop_at):
    """The run stops again before it has come as far: what it saves then must not be counted beside the damaged one."""
    config = make_config("1_lstm", *SAVING)
    folder = interrupted(config, stop_at, 4)
    damage(checkpoints_of(folder)[0] / "state.json", "removed")
    interrupted(config, stop_at, 1)
    assert [path.name for path in checkpoints_of(folder)] == ["step-00000003", "step-00000002"]
    run(config)
    assert kill.result_of(folder) == uninterrupted(config)


@pytest.mark.parametrize("how", ["removed", "truncated", "flipped"])
def test_without_a_whole_checkpoint_the_run_is_refused(make_config, stop_at, how):
    config = make_config("1_lstm", *SAVING)
    folder = interrupted(config, stop_at, 4)
    for path in checkpoints_of(folder):
        damage(path / "optimizer.safetensors", how)
    with pytest.raises(InputError, match="no checkpoint is whole .*optimizer.safetensors.*overwrite=true"):
        run(config)
    assert (folder / "metrics.jsonl").exists()
    run(replace(config, overwrite=True))
    assert kill.result_of(folder) == uninterrupted(config)


def test_a_checkpoint_whose_best_model_is_damaged_is_not_used(make_config, stop_at):
    config = make_config("1_lstm", *SAVING)
    folder = interrupted(config, stop_at, 5)
    for path in (folder / "checkpoints").glob("best-*"):
        damage(path / "model.safetensors", "flipped")
    found = checkpoints_of(folder)[1]
    shutil.rmtree(found)
    with pytest.raises(InputError, match="no checkpoint is whole .*best-.*model.safetensors"):
        run(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["record"].update(step=3), "step 3 is not epoch 2, step 1 of it"),
        (lambda state: state["record"].update(epoch=-(10**9)), "is outside the run"),
        (lambda state: state["record"].update(history="none"), "no checkpoint is whole .*record.history"),
        (lambda state: state["record"].pop("epoch"), "no checkpoint is whole .*expected"),
        (lambda state: state.pop("optimizer"), "not the state of this run: 'optimizer'"),
        (lambda state: state.update(settings="none"), "no checkpoint is whole .*no settings"),
        (lambda state: state.update(schedule=[]), "not the state of this run"),
        (lambda state: state.update(random={"numpy": [], "python": []}), "not the state of this run"),
        (lambda state: state["record"]["best"].update(step="../../x"), "no checkpoint is whole .*record.best"),
    ],
)
def test_a_state_from_elsewhere_is_refused_even_if_its_manifest_fits(make_config, stop_at, change, message):
    config = make_config("1_lstm", *SAVING)
    folder = interrupted(config, stop_at, 7)
    for path in checkpoints_of(folder):
        state = json.loads((path / "state.json").read_text())
        change(state)
        (path / "state.json").write_text(json.dumps(state))
        (path / "manifest.json").unlink()
        checkpoint.write_manifest(path)
    with pytest.raises(InputError, match=message):
        run(config)


def test_a_manifest_reaches_no_file_outside_its_folder(tmp_path):
    (tmp_path / "secret").write_text("s")
    write_folder(tmp_path / "folder", lambda folder: (folder / "a").write_text("a"), 1)
    verify_folder(tmp_path / "folder", ("a",))
    manifest = tmp_path / "folder" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"]["../secret"] = checkpoint.describe_file(tmp_path / "secret")
    manifest.write_text(json.dumps(content))
    with pytest.raises(DamagedError, match="secret: missing"):
        verify_folder(tmp_path / "folder", ("a",))


# ---------------------------------------------------------------- writing


def test_a_write_that_fails_half_way_leaves_the_checkpoint_before(make_config, stop_at, monkeypatch):
    config = make_config("5_transformer_prenorm", *SAVING)
    expected = uninterrupted(config)
    save, calls = checkpoint.save_file, []

    def full(tensors, path):
        save(tensors, path)
        calls.append(path)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(
        match=r"step-00000004: no space left: it needs \d+\.\d MB, [\d.]+ MB are free.*start the same command again",
    ):
        run(config)
    folder = Path(config.run_dir)
    assert [path.name for path in checkpoints_of(folder)] == ["step-00000002"]
    assert not list((folder / "checkpoints").glob("partial-*"))
    load_checkpoint(checkpoint_path(folder, 2), run_folder.STATE_FILES)
    monkeypatch.setattr(checkpoint, "save_file", save)
    run(config)
    assert kill.result_of(folder) == expected


def test_a_disk_too_full_for_a_line_of_the_log_ends_in_one_line(make_config, monkeypatch, capsys):
    def full(trainer):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr(train.Trainer, "validate", full)
    config = make_config("1_lstm", "train.epochs=1")
    path = Path(config.run_dir).parent / "settings.yaml"
    path.write_text(train.to_yaml(config))
    assert main([str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: metrics.jsonl: no space left on the disk; what was saved before is untouched")
    assert error.count("\n") == 1


@pytest.mark.parametrize("when", ["write", "flush", "rename"])
def test_a_folder_is_whole_or_as_it_was(tmp_path, monkeypatch, when):
    target = tmp_path / "folder"
    write_folder(target, lambda folder: (folder / "a").write_text("old"), 3)

    def fail(*arguments):
        raise RuntimeError("in the middle")

    if when == "flush":
        monkeypatch.setattr(checkpoint, "describe_file", fail)
    if when == "rename":
        monkeypatch.setattr(checkpoint, "replace_folder", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        write_folder(target, fail if when == "write" else lambda folder: (folder / "a").write_text("new"), 3)
    monkeypatch.undo()
    verify_folder(target, ("a",))
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_states_survive_the_way_to_disk_and_back(tmp_path):
    """Tensors, groups and generators, bit for bit."""
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, betas=(0.8, 0.9), fused=True)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(7)
    np.random.normal()
    random.gauss(0, 1)
    tensors, groups = optimizer_state(optimizer)
    generators, other = random_states()
    save_checkpoint(
        tmp_path / "step-1", {"optimizer": tensors, "random": generators}, {"groups": groups, "random": other}
    )
    expected = [random.gauss(0, 1), random.random(), *np.random.normal(size=3), *torch.rand(3).tolist()]
    loaded, state = load_checkpoint(tmp_path / "step-1", ("optimizer", "random"))
    set_random_states(loaded["random"], state["random"])
    assert [random.gauss(0, 1), random.random(), *np.random.normal(size=3), *torch.rand(3).tolist()] == expected
    other = torch.optim.AdamW(layer.parameters(), lr=0.5, fused=True)
    set_optimizer_state(other, loaded["optimizer"], state["groups"])
    assert other.param_groups == optimizer.param_groups
    for parameter in layer.parameters():
        assert other.state[parameter].keys() == optimizer.state[parameter].keys()
        assert all(torch.equal(other.state[parameter][key], value) for key, value in optimizer.state[parameter].items())


# ---------------------------------------------------------------- other settings


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 3}, "seed: 0 -> 3"),
        ({"train": {"learning_rate": 0.5}}, "train.learning_rate: 0.001 -> 0.5"),
        ({"train": {"epochs": 3}}, "train.epochs: 2 -> 3"),
    ],
)
def test_other_settings_than_the_unfinished_run_are_refused(make_config, stop_at, change, difference):
    config = make_config("1_lstm", *SAVING)
    interrupted(config, stop_at, 3)
    train_settings = replace(config.train, **change.pop("train", {}))
    with pytest.raises(InputError, match=f"holds an unfinished run with other settings.*{difference}.*it is kept"):
        run(replace(config, train=train_settings, **change))


def test_settings_of_which_no_result_depends_may_differ(make_config, stop_at):
    config = make_config("1_lstm", *SAVING)
    interrupted(config, stop_at, 3)
    run(replace(config, train=replace(config.train, save_minutes=9.0, auto_find_micro_batch_size=True)))
    assert kill.result_of(Path(config.run_dir)) == uninterrupted(config)


def test_other_reviews_than_those_of_the_unfinished_run_are_refused(make_config, stop_at, review_files, tmp_path):
    text = (review_files / "train.csv").read_text()
    (tmp_path / "mine.csv").write_text(text)
    config = make_config("1_lstm", *SAVING, f"data.train={tmp_path / 'mine.csv'}")
    interrupted(config, stop_at, 3)
    (tmp_path / "mine.csv").write_text(text.replace("monday", "sunday"))
    with pytest.raises(InputError, match="the reviews: "):
        run(config)


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_command_with_its_status_after_saving(make_config, stop_at, capsys, signum, status):
    config = make_config("1_lstm", *SAVING)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    path = Path(config.run_dir).parent / "settings.yaml"
    path.write_text(train.to_yaml(config))
    stop_at(3, signum=signum)
    assert main([str(path)]) == status
    assert "stopped after step 3, which is saved; the same command goes on" in capsys.readouterr().err
    assert [path.name for path in checkpoints_of(Path(config.run_dir))][0] == "step-00000003"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    stop_at()
    assert main([str(path)]) == 0


def test_a_second_interrupt_does_not_wait():
    request = checkpoint.StopRequest()
    request.note(signal.SIGTERM, None)
    request.note(signal.SIGTERM, None)
    assert request.signum == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        request.note(signal.SIGINT, None)


def test_a_run_in_another_thread_leaves_the_handlers_alone(make_config):
    config = make_config("1_lstm", "train.epochs=1")
    found = []
    thread = threading.Thread(target=lambda: found.append(run(config)))
    thread.start()
    thread.join()
    assert found[0]["completed"]


# ---------------------------------------------------------------- numbers, memory


def test_a_loss_that_is_no_number_stops_the_run_before_its_step(make_config, capsys):
    config = make_config("1_lstm", "train.learning_rate=1e20", "train.save_steps=1", "train.eval_steps=99")
    path = Path(config.run_dir).parent / "settings.yaml"
    path.write_text(train.to_yaml(config))
    assert main([str(path)]) == 1
    error = capsys.readouterr().err
    folder = Path(config.run_dir)
    newest = checkpoints_of(folder)[0]
    step = int(newest.name[5:]) + 1
    reviews = load_reviews(config.data).train
    batch = train.training_batches(reviews.lengths, 8, 0, 1)[step - 1]
    assert f"infinite or nan at step {step}, at learning rate 1e+20" in error
    assert f"{newest.name} is the last checkpoint" in error
    assert f"rows {reviews.rows[batch].tolist()} of the training data" in error
    tensors, _ = load_checkpoint(newest, run_folder.STATE_FILES)
    assert all(torch.isfinite(tensor).all() for tensor in tensors["model"].values())
    assert not (folder / "summary.json").exists()


def test_a_validation_loss_that_is_no_number_stops_the_run_too(make_config):
    config = make_config("1_lstm", "train.learning_rate=1e20", "train.save_steps=1", "train.eval_steps=1")
    with pytest.raises(FloatingPointError, match=r"validation loss is (inf|nan) after step 2, at learning rate 1e\+20"):
        run(config)
    (line,) = (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))["step"] == 1
    assert [path.name for path in checkpoints_of(Path(config.run_dir))] == ["step-00000001"]


@pytest.mark.parametrize("limit", ["1.0", "null"])
def test_no_weight_changes_from_a_bad_step_on(make_config, monkeypatch, limit):
    """As on a GPU, where the host looks only when it logs: the optimiser itself must refuse."""
    config = make_config("5_transformer_prenorm", f"train.max_grad_norm={limit}", "model.dropout=0")
    monkeypatch.setattr(train.Trainer, "check_finite", lambda trainer: None)
    monkeypatch.setattr(train.Trainer, "validate", lambda trainer: None)
    model = train.build_model(config.model, 30522, 24)
    trainer = train.Trainer(config, model, load_reviews(config.data), torch.device("cpu"), Path(config.run_dir))
    batches = [trainer.reviews.train[np.arange(i, i + 8)] for i in range(4)]
    weights = []
    for number, batch in enumerate(batches):
        if number == 2:
            # A gradient alone that is no number: the loss stays finite.
            handle = model.classifier.weight.register_hook(lambda gradient: gradient * float("nan"))
        trainer.step(np.arange(8), batch)
        if number == 2:
            handle.remove()
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    name = "classifier.weight"
    assert not torch.equal(weights[0][name], weights[1][name])
    assert all(torch.equal(weights[1][key], weights[3][key]) for key in weights[1])
    assert trainer.finite.first_bad_step() == 3


def test_parts_of_a_batch_give_the_gradients_of_the_whole(make_config):
    """Without dropout; the loss curve within rounding, for parts that don't divide the batch."""
    config = make_config("7_transformer_postnorm", "model.dropout=0", "train.epochs=2")
    whole = train_curve(config)
    parts = train_curve(replace(config, overwrite=True, train=replace(config.train, micro_batch_size=3)))
    assert parts == pytest.approx(whole, abs=1e-5)
    assert parts != whole


def train_curve(config) -> list[float]:
    run(config)
    lines = (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)[key] for line in lines for key in ("train_loss", "validation_loss")]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
    ],
    ids=["cpu", "cuda", "python"],
)
def test_without_memory_the_batch_is_halved_where_that_is_wanted(make_config, monkeypatch, error, capsys):
    def small_machine(model, batch, *arguments):
        if (arguments[-1] or len(batch["labels"])) > 3:
            # Half of a step has happened: what it drew and summed must not stay.
            torch.rand(5)
            model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
            raise error
        return step(model, batch, *arguments)

    step = train.training_step
    config = make_config("2_lstm_dropout", "train.epochs=1", "train.micro_batch_size=2")
    expected = train_curve(config)
    monkeypatch.setattr(train, "training_step", small_machine)
    config = make_config("2_lstm_dropout", "train.epochs=1", "overwrite=true", "train.auto_find_micro_batch_size=true")
    assert train_curve(config) == expected
    lines = (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["micro_batch_size"] for line in lines] == [2, 2]
    config = make_config("2_lstm_dropout", "train.epochs=1", "overwrite=true")
    with pytest.raises(RunError, match=r"no memory for step 1 .*train.batch_size.*train.micro_batch_size=4"):
        run(config)


def test_other_errors_are_not_taken_for_a_lack_of_memory(make_config, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("shapes can't be multiplied")

    monkeypatch.setattr(train, "training_step", broken)
    with pytest.raises(RuntimeError, match="shapes can't be multiplied"):
        run(make_config("1_lstm", "train.auto_find_micro_batch_size=true"))


# ---------------------------------------------------------------- one process a folder


def test_a_second_process_in_the_folder_is_refused(make_config):
    config = make_config("1_lstm", "train.epochs=1")
    with (
        RunLock(Path(config.run_dir)),
        pytest.raises(InputError, match=rf"another process works in this folder \(process {os.getpid()} on"),
    ):
        run(config)
    assert not (Path(config.run_dir) / "run.lock").exists()
    assert run(config)["completed"]


def held_by(folder: Path, age: float = 0.0, **owner) -> Path:
    path = folder / "run.lock"
    path.write_text(json.dumps(owner))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    held_by(tmp_path, **{**me, "started": me["started"] - 100})
    with RunLock(tmp_path):
        pass
    gone = kill.CONTEXT.Process(target=int)
    gone.start()
    gone.join()
    held_by(tmp_path, **{**me, "pid": gone.pid})
    with RunLock(tmp_path) as lock:
        assert lock.holder() == lock.owner
    assert not list(tmp_path.iterdir())


def test_the_lock_of_another_machine_holds_while_it_is_touched(tmp_path):
    held_by(tmp_path, age=100, host="elsewhere", pid=1, started=0.0)
    with pytest.raises(InputError, match=r"process 1 on elsewhere\).*try again in \d+ s"), RunLock(tmp_path):
        pass
    held_by(tmp_path, age=130, host="elsewhere", pid=1, started=0.0)
    with RunLock(tmp_path):
        pass


def test_a_lock_that_was_never_written_holds_for_a_moment_only(tmp_path):
    path = held_by(tmp_path)
    path.write_text("")
    with pytest.raises(InputError, match="another process"), RunLock(tmp_path):
        pass
    os.utime(path, (time.time() - 5,) * 2)
    with RunLock(tmp_path):
        pass


def test_a_living_process_touches_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "BEAT_SECONDS", 0.01)
    with RunLock(tmp_path) as lock:
        os.utime(lock.path, (0, 0))
        deadline = time.monotonic() + 5
        while lock.path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock.path.stat().st_mtime > 0
