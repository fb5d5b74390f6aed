"""A run may be killed anywhere: it resumes to the same result, bit for bit, or is refused with the reason."""

import errno
import itertools
import json
import logging
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import data
import kill
from config import InputError, RunError
from helpers import assert_same_tensors, warnings_of
from kill import assert_same_result, interrupted, result_of, run_until_complete, uninterrupted
from train import run
from training import checkpoint, trainer
from training.checkpoint import (
    best_step_of,
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
from training.run_folder import RUN_FILES, STATE_FILES

SAVING = ("train.epochs=2", "train.save_steps=2")
DAMAGES = ["removed", "truncated", "flipped"]
# Every file of a checkpoint, and every damage to what lists them.
DAMAGED = [
    *((name, "flipped") for name in ("model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json")),
    *(("manifest.json", how) for how in DAMAGES),
    ("model.safetensors", "truncated"),
    ("random.safetensors", "removed"),
]


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    ("steps", "experiment"),
    [
        *itertools.product([(1,), (3,), (6,), (7,), (12,), (2, 4)], ["2_lstm_dropout", "5_transformer_prenorm"]),
        # At the end of the first epoch, before the last layer is unfrozen, and after it.
        *itertools.product([(6,), (2, 7)], ["8_minilm"]),
    ],
    ids=str,
)
def test_resumed_run_equals_uninterrupted_run(make_config, stop_at, experiment, steps):
    """Epochs have 6 steps: the first, one amid, the epoch's last, the next one's first, the run's last, two in one."""
    config = make_config(experiment, *SAVING)
    expected = uninterrupted(config)
    stop_at(*steps)
    assert run_until_complete(config) == len(steps)
    assert_same_result(result_of(Path(config.run_dir)), expected)


def test_comparison_sees_the_run_of_another_seed(make_config):
    """The comparison of these tests can fail, in every part."""
    config = make_config("2_lstm_dropout", *SAVING)
    expected = uninterrupted(config)
    run(replace(config, seed=1))
    same = set(expected) - set(kill.different_parts(result_of(Path(config.run_dir)), expected))
    # The same number of steps, and their schedule.
    assert same <= {"last checkpoint", "state.json: record"}


def test_run_on_cached_frozen_features_resumes(make_config, stop_at, tmp_path):
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    config = make_config("8_minilm", *SAVING, "train.cache_frozen_features=fp32", cache)
    expected = uninterrupted(config)
    stop_at(7)
    assert run_until_complete(config) == 1
    assert_same_result(result_of(Path(config.run_dir)), expected)


def test_resuming_skips_batches_without_loading_reviews(make_config, stop_at, monkeypatch):
    config = make_config("1_lstm", *SAVING)
    interrupted(config, stop_at, 4)
    num_batches = []
    loader = trainer.batch_loader

    def counted(reviews, batches, device):
        num_batches.append(len(batches))
        return loader(reviews, batches, device)

    monkeypatch.setattr(trainer, "batch_loader", counted)
    run(config)
    # The rest of the first epoch, then the second.
    assert num_batches == [2, 6]


def test_run_killed_at_random_moments_equals_uninterrupted_run(tmp_path, review_files):
    kill.kill_and_resume(kill.killable_config(tmp_path / "run", review_files), moments=3, seed=0)


def test_resuming_drops_torn_log_lines_and_those_after_the_checkpoint(make_config, stop_at):
    config = make_config("1_lstm", *SAVING)
    folder = interrupted(config, stop_at, 7)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "train_loss": 99}\n{"step": 12, "tr')
    run(config)
    assert_same_result(result_of(folder), uninterrupted(config))


# ---------------------------------------------------------------- what is kept


def test_two_newest_checkpoints_and_their_best_models_are_kept(make_config, stop_at):
    config = make_config("1_lstm", "train.epochs=3", "train.save_steps=1", "train.eval_steps=1")
    folder = interrupted(config, stop_at, 15)
    kept = [path.name for path in checkpoints_of(folder)]
    assert kept == ["step-00000015", "step-00000014"]
    best = {f"best-{best_step_of(path):08d}" for path in checkpoints_of(folder)}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == best | set(kept)


def test_checkpoint_holds_safetensors_and_json_only(make_config, stop_at):
    folder = interrupted(make_config("1_lstm", *SAVING), stop_at, 3)
    for path in checkpoints_of(folder)[0].iterdir():
        if path.suffix == ".safetensors":
            assert load_file(path), path
        else:
            assert path.suffix == ".json", path
            json.loads(path.read_text())


def test_complete_run_keeps_its_last_checkpoint_and_no_lock(make_config):
    config = make_config("1_lstm", "train.epochs=2", "train.save_steps=1", "train.eval_steps=1")
    folder = Path(config.run_dir)
    run(config)
    assert {path.name for path in folder.iterdir()} == {*RUN_FILES, "best", "checkpoints"}
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000012"]


# ---------------------------------------------------------------- damaged checkpoints


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


@pytest.mark.parametrize(("name", "how"), DAMAGED)
def test_damaged_checkpoint_is_skipped_with_a_warning(make_config, stop_at, caplog, name, how):
    config = make_config("5_transformer_prenorm", *SAVING)
    folder = interrupted(config, stop_at, 4)
    newest, before = checkpoints_of(folder)
    damage(newest / name, how)
    with caplog.at_level(logging.INFO):
        run(config)
    warnings = warnings_of(caplog, "training.run_folder")
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{newest} is damaged and not used (")
    # A changed manifest is seen by the entry that no longer fits.
    assert name in warnings[0] or (name, how) == ("manifest.json", "flipped")
    assert f"{folder}: resuming after step {int(before.name[5:])}" in caplog.messages
    assert_same_result(result_of(folder), uninterrupted(config))


def test_damaged_checkpoint_is_removed_once_an_older_one_is_used(make_config, stop_at):
    """The run stops again before it has come as far: its new checkpoints must not count beside the damaged one."""
    config = make_config("1_lstm", *SAVING)
    folder = interrupted(config, stop_at, 4)
    damage(checkpoints_of(folder)[0] / "state.json", "removed")
    interrupted(config, stop_at, 1)
    assert [path.name for path in checkpoints_of(folder)] == ["step-00000003", "step-00000002"]
    run(config)
    assert_same_result(result_of(folder), uninterrupted(config))


@pytest.mark.parametrize("how", DAMAGES)
def test_run_without_a_whole_checkpoint_is_refused(make_config, stop_at, how):
    config = make_config("1_lstm", *SAVING)
    folder = interrupted(config, stop_at, 4)
    for path in checkpoints_of(folder):
        damage(path / "optimizer.safetensors", how)
    with pytest.raises(InputError, match="no checkpoint is whole .*optimizer.safetensors.*overwrite=true"):
        run(config)
    assert (folder / "metrics.jsonl").exists()
    run(replace(config, overwrite=True))
    assert_same_result(result_of(folder), uninterrupted(config))


def test_checkpoint_with_a_damaged_best_model_is_not_used(make_config, stop_at):
    config = make_config("1_lstm", *SAVING)
    folder = interrupted(config, stop_at, 5)
    for path in (folder / "checkpoints").glob("best-*"):
        damage(path / "model.safetensors", "flipped")
    shutil.rmtree(checkpoints_of(folder)[1])
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
        (lambda state: state.pop("world_size"), "no checkpoint is whole .*world_size"),
        (lambda state: state.update(settings="none"), "no checkpoint is whole .*no settings"),
        (lambda state: state.update(lr_scheduler=[]), "not the state of this run"),
        (lambda state: state.update(random={"numpy": [], "python": []}), "not the state of this run"),
        (lambda state: state["record"]["best"].update(step="../../x"), "no checkpoint is whole .*record.best"),
    ],
)
def test_foreign_state_is_refused_though_its_manifest_fits(make_config, stop_at, change, message):
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


def test_manifest_reads_no_file_outside_its_folder(tmp_path):
    (tmp_path / "secret").write_text("s")
    write_folder(tmp_path / "folder", lambda folder: (folder / "a").write_text("a"), 1)
    verify_folder(tmp_path / "folder", ("a",))
    manifest = tmp_path / "folder" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"]["../secret"] = checkpoint.describe_file(tmp_path / "secret")
    manifest.write_text(json.dumps(content))
    with pytest.raises(InputError, match="secret: missing"):
        verify_folder(tmp_path / "folder", ("a",))


# ---------------------------------------------------------------- writing


def test_disk_full_during_a_checkpoint_leaves_the_one_before(make_config, monkeypatch):
    config = make_config("5_transformer_prenorm", *SAVING)
    expected = uninterrupted(config)
    save, paths = checkpoint.save_file, []

    def full(tensors, path):
        save(tensors, path)
        paths.append(path)
        if len(paths) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    message = (
        r"step-00000004: no space left on the disk: \d+\.\d MB are needed and [\d.]+ MB are free; what was saved "
        "before is untouched: free some space and run the same command again"
    )
    with pytest.raises(RunError, match=message):
        run(config)
    folder = Path(config.run_dir)
    assert [path.name for path in checkpoints_of(folder)] == ["step-00000002"]
    assert not list((folder / "checkpoints").glob("partial-*"))
    load_checkpoint(checkpoint_path(folder, 2), STATE_FILES)
    monkeypatch.setattr(checkpoint, "save_file", save)
    run(config)
    assert_same_result(result_of(folder), expected)


@pytest.mark.parametrize("when", ["write", "manifest", "sync", "rename"])
def test_failed_write_leaves_the_folder_as_it_was(tmp_path, monkeypatch, when):
    target = tmp_path / "folder"
    write_folder(target, lambda folder: (folder / "a").write_text("old"), 3)

    def fail(*arguments):
        raise RuntimeError("in the middle")

    places = {"manifest": (checkpoint, "describe_file"), "sync": (data, "_sync"), "rename": (data, "_move")}
    if when in places:
        monkeypatch.setattr(*places[when], fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        write_folder(target, fail if when == "write" else lambda folder: (folder / "a").write_text("new"), 3)
    monkeypatch.undo()
    verify_folder(target, ("a",))
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_states_are_equal_after_saving_and_loading(tmp_path):
    """Tensors, groups and generators, bit for bit."""
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, betas=(0.8, 0.9), fused=True)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    draw_from_all_generators()
    tensors, groups = optimizer_state(optimizer)
    generators, other_generators = random_states()
    state = {"groups": groups, "random": other_generators}
    save_checkpoint(tmp_path / "step-1", {"optimizer": tensors, "random": generators}, state)
    expected = draw_from_all_generators()
    loaded, state = load_checkpoint(tmp_path / "step-1", ("optimizer", "random"))
    set_random_states(loaded["random"], state["random"])
    assert draw_from_all_generators() == expected
    restored = torch.optim.AdamW(layer.parameters(), lr=0.5, fused=True)
    set_optimizer_state(restored, loaded["optimizer"], state["groups"])
    assert restored.param_groups == optimizer.param_groups
    for parameter in layer.parameters():
        assert_same_tensors(restored.state[parameter], optimizer.state[parameter])


def draw_from_all_generators() -> list[float]:
    """An odd number of normal values: half a pair stays in the generators."""
    return [random.gauss(0, 1), random.random(), *np.random.normal(size=3), *torch.rand(3).tolist()]
