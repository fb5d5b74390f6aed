"""A run's folder: its lock, complete runs that are kept, and unfinished ones that resume."""

import errno
import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import train
from config import Config, InputError, load_config
from helpers import read_metrics, warnings_of, write_config
from kill import CONTEXT, assert_same_result, interrupted, result_of, run_until_complete, uninterrupted
from train import main, run
from training import checkpoint, trainer
from training.checkpoint import checkpoints_of
from training.device import device_name
from training.interrupts import InterruptedRun
from training.run_folder import Record, run_lock

SAVING = ("train.epochs=2", "train.save_steps=2")

# ---------------------------------------------------------------- complete runs


def test_complete_run_is_kept(make_config, monkeypatch):
    config = make_config("1_lstm", "train.epochs=1")
    summary = run(config)
    path = Path(config.run_dir) / "summary.json"
    written = path.stat().st_mtime_ns
    monkeypatch.setattr(trainer.Trainer, "fit", lambda *arguments: pytest.fail("trained again"))
    assert run(config) == summary
    assert path.stat().st_mtime_ns == written


def test_complete_run_with_other_settings_is_refused(make_config):
    config = make_config("1_lstm", "train.epochs=1")
    run(config)
    other = replace(config, train=replace(config.train, learning_rate=0.5))
    with pytest.raises(InputError, match=r"train.learning_rate: 0.001 -> 0.5\); it is kept.*overwrite=true"):
        run(other)


@pytest.mark.parametrize("name", ["summary.json", "config.yaml"])
def test_unreadable_complete_run_is_refused(make_config, name):
    config = make_config("1_lstm", "train.epochs=1")
    run(config)
    (Path(config.run_dir) / name).write_text("[")
    with pytest.raises(InputError, match=f"{name}: .*; overwrite=true trains the run again"):
        run(config)


def copied_reviews(config: Config, folder: Path) -> Config:
    """The settings with the same reviews in other files."""
    names = ("train", "validation", "test")
    paths = {name: shutil.copy(getattr(config.data, name), folder / f"{name}-copy.csv") for name in names}
    return replace(config, data=replace(config.data, **{name: str(path) for name, path in paths.items()}))


def test_complete_run_is_kept_for_the_same_reviews_in_other_files(make_config, tmp_path, monkeypatch):
    config = make_config("1_lstm", "train.epochs=1")
    summary = run(config)
    copied = copied_reviews(config, tmp_path)
    monkeypatch.setattr(trainer.Trainer, "fit", lambda *arguments: pytest.fail("trained again"))
    assert run(copied) == summary
    path = Path(copied.data.train)
    path.write_text(path.read_text().replace("monday", "sunday"))
    with pytest.raises(InputError, match=r"complete run with other settings \(the reviews: \w+ -> \w+\); it is kept"):
        run(copied)


def test_complete_run_is_kept_once_its_reviews_are_gone_but_not_when_they_changed(make_config, tmp_path):
    config = copied_reviews(make_config("1_lstm", "train.epochs=1"), tmp_path)
    summary = run(config)
    path = Path(config.data.validation)
    text = path.read_text()
    path.write_text(text.replace("monday", "sunday"))
    with pytest.raises(InputError, match=r"\(the reviews: \w+ -> \w+\)"):
        run(config)
    path.unlink()
    assert run(config) == summary


def test_run_that_another_process_completes_meanwhile_is_not_trained_again(make_config, monkeypatch):
    config = make_config("1_lstm", "train.epochs=1")
    summary = run(config)
    # What this process saw before the other was done.
    monkeypatch.setattr(train, "check_run", lambda config: None)
    monkeypatch.setattr(trainer.Trainer, "fit", lambda *arguments: pytest.fail("trained again"))
    assert run(config) == summary


def test_overwrite_replaces_only_what_a_run_wrote(make_config):
    config = make_config("1_lstm", "train.epochs=1")
    run(config)
    (Path(config.run_dir) / "notes.txt").write_text("mine")
    assert run(replace(config, seed=5, overwrite=True))["seed"] == 5
    assert (Path(config.run_dir) / "notes.txt").read_text() == "mine"
    assert not load_config(Path(config.run_dir) / "config.yaml").overwrite
    assert len(read_metrics(config.run_dir)) == 2


def test_run_without_a_checkpoint_starts_from_the_beginning(make_config, monkeypatch):
    config = make_config("1_lstm", "train.epochs=1")

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "is_better", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert read_metrics(config.run_dir)
    run(config)
    assert [line["step"] for line in read_metrics(config.run_dir)] == [4, 6]


# ---------------------------------------------------------------- unfinished runs


def test_stopped_run_with_overwrite_resumes(make_config, stop_at):
    config = replace(make_config("1_lstm", *SAVING), overwrite=True)
    expected = uninterrupted(config)
    run(replace(config, seed=5))
    steps = stop_at(3, 7)
    assert run_until_complete(config) == 2
    assert len(steps) == 12
    assert_same_result(result_of(Path(config.run_dir)), expected)
    # It is complete: the same command trains it again.
    stop_at(1)
    with pytest.raises(InterruptedRun, match="stopped after step 1"):
        run(config)


@pytest.mark.parametrize("change", [{"overwrite": False}, {"seed": 5}], ids=str)
def test_overwrite_does_not_resume_the_run_of_another_command(make_config, stop_at, change):
    config = replace(make_config("1_lstm", *SAVING), overwrite=True)
    interrupted(replace(config, **change), stop_at, 3)
    steps = stop_at()
    run(config)
    assert len(steps) == 12


def test_stopped_run_resumes_with_the_same_reviews_in_other_files(make_config, stop_at, tmp_path):
    config = make_config("1_lstm", *SAVING)
    folder = interrupted(config, stop_at, 3)
    copied = copied_reviews(config, tmp_path)
    steps = stop_at()
    run(copied)
    assert len(steps) == 9
    assert load_config(folder / "config.yaml") == copied
    assert_same_result(result_of(folder), uninterrupted(config))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 3}, "seed: 0 -> 3"),
        ({"train": {"learning_rate": 0.5}}, "train.learning_rate: 0.001 -> 0.5"),
        ({"train": {"epochs": 3}}, "train.epochs: 2 -> 3"),
    ],
)
def test_resuming_with_other_settings_is_refused(make_config, stop_at, change, difference):
    config = make_config("1_lstm", *SAVING)
    interrupted(config, stop_at, 3)
    train_settings = replace(config.train, **change.pop("train", {}))
    with pytest.raises(InputError, match=f"holds an unfinished run with other settings.*{difference}.*it is kept"):
        run(replace(config, train=train_settings, **change))


def test_resuming_with_other_reviews_is_refused(make_config, stop_at, review_files, tmp_path):
    text = (review_files / "train.csv").read_text()
    (tmp_path / "mine.csv").write_text(text)
    config = make_config("1_lstm", *SAVING, f"data.train={tmp_path / 'mine.csv'}")
    interrupted(config, stop_at, 3)
    (tmp_path / "mine.csv").write_text(text.replace("monday", "sunday"))
    with pytest.raises(InputError, match="the reviews: "):
        run(config)


def change_states(run_dir: Path, **changes) -> None:
    """Change the state of every checkpoint, each still whole."""
    for folder in checkpoints_of(run_dir):
        state = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps(state | changes))
        (folder / "manifest.json").unlink()
        checkpoint.write_manifest(folder)


def test_resuming_with_other_processes_is_refused(make_config, stop_at):
    config = make_config("1_lstm", *SAVING)
    change_states(interrupted(config, stop_at, 3), world_size=2)
    with pytest.raises(InputError, match="number of processes: 2 -> 1"):
        run(config)


def test_resuming_on_another_device_is_warned_about(make_config, stop_at, caplog):
    config = make_config("1_lstm", *SAVING)
    folder = interrupted(config, stop_at, 3)
    change_states(folder, device="Tesla T4")
    run(config)
    here = device_name(torch.device("cpu"))
    message = f"{folder}: resuming on {here} a run started on Tesla T4: results are equal only up to rounding"
    assert warnings_of(caplog, "training.run_folder") == [message]
    assert_same_result(result_of(folder), uninterrupted(config))


def test_settings_without_influence_may_differ(make_config, stop_at):
    config = make_config("1_lstm", *SAVING)
    folder = interrupted(config, stop_at, 3)
    run(replace(config, train=replace(config.train, save_minutes=9.0, auto_find_micro_batch_size=True)))
    assert_same_result(result_of(folder), uninterrupted(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "3"}, "record.step is '3'; expected int"),
        ({"interval_loss": None}, "record.interval_loss is None; expected float"),
        ({"best": {"validation_loss": 0.1}}, "record.best has no step"),
        ({"unknown": 1}, "the record has .*'unknown'.*; expected"),
    ],
)
def test_record_of_other_types_is_refused(change, message):
    content = {**vars(Record()), **change}
    with pytest.raises(ValueError, match=message):
        Record.from_json(content)


# ---------------------------------------------------------------- lock


def hold_lock(folder: Path, held) -> None:
    """In a child process: takes the lock, says so, and waits to be killed."""
    with run_lock(folder):
        held.set()
        time.sleep(60)


@pytest.fixture
def lock_holder(tmp_path):
    """A process that holds the lock of `tmp_path / "run"`."""
    held = CONTEXT.Event()
    process = CONTEXT.Process(target=hold_lock, args=(tmp_path / "run", held))
    process.start()
    assert held.wait(60)
    yield process
    process.kill()
    process.join()
    process.close()


def test_lock_refuses_a_second_process_and_is_free_once_it_is_killed(make_config, lock_holder, capsys):
    config = make_config("1_lstm", "train.epochs=1")
    folder = Path(config.run_dir)
    assert main([str(write_config(config))]) == 2
    assert capsys.readouterr().err == (
        f"error: {folder / 'run.lock'}: another process works in this folder; wait for it, stop it, or give another "
        "run_dir\n"
    )
    assert [path.name for path in folder.iterdir()] == ["run.lock"]
    lock_holder.kill()
    lock_holder.join()
    with run_lock(folder):
        pass
    assert run(config)["completed"]
    assert not (folder / "run.lock").exists()


def test_lock_refuses_a_second_thread(tmp_path):
    errors = []

    def enter() -> None:
        try:
            with run_lock(tmp_path):
                errors.append(None)
        except InputError as error:
            errors.append(str(error))

    with run_lock(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert "another process works in this folder" in errors[0]


def test_lock_refuses_a_second_run_of_the_same_thread(make_config):
    config = make_config("1_lstm", "train.epochs=1")
    with (
        run_lock(Path(config.run_dir)),
        pytest.raises(InputError, match="another process works in this folder"),
    ):
        run(config)
    assert not list(Path(config.run_dir).parent.iterdir())


def test_lock_leaves_a_former_folder_and_no_new_one(tmp_path):
    (tmp_path / "former").mkdir()
    for name in ("former", "new"):
        with run_lock(tmp_path / name):
            assert (tmp_path / name / "run.lock").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["former"]


def test_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="in the middle"), run_lock(tmp_path):
        raise RuntimeError("in the middle")
    assert not list(tmp_path.iterdir())
    with run_lock(tmp_path):
        pass


@pytest.mark.parametrize(
    "error",
    [NotImplementedError(), OSError(errno.ENOLCK, "No locks available"), OSError(errno.EOPNOTSUPP, "Not supported")],
    ids=str,
)
def test_file_system_without_locks_gives_a_warning(make_config, monkeypatch, caplog, error):
    def acquire(lock, *arguments, **keywords):
        raise error

    monkeypatch.setattr(FileLock, "acquire", acquire)
    config = make_config("1_lstm", "train.epochs=1")
    assert run(config)["completed"]
    warning = "this file system has no locks: see that no second process works in the folder"
    assert f"{config.run_dir}: {warning}" in caplog.messages
    assert not (Path(config.run_dir) / "run.lock").exists()


def test_lock_in_a_folder_without_permission_is_an_error(tmp_path, monkeypatch):
    """Not taken for a file system without locks."""

    def acquire(lock, *arguments, **keywords):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(PermissionError), run_lock(tmp_path):
        pass
