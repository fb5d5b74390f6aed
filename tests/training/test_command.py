"""What every command does with an error: an exit status and one line on stderr."""

import errno
import os
import signal
from pathlib import Path

import pytest

from config import InputError, RunError
from helpers import write_file
from training.command import check_folder, check_output, run_command
from training.interrupts import InterruptedRun

STOPPED = "logs/run: stopped after step 3, whose state is saved; run the same command again to resume"


def raises(error: BaseException):
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("a.csv: no such file"), 2, "error: a.csv: no such file"),
        (RunError("no memory for step 1"), 1, "error: no memory for step 1"),
        (FloatingPointError("non-finite loss"), 1, "error: non-finite loss"),
        (InterruptedRun(signal.SIGINT, STOPPED), 130, STOPPED),
        (InterruptedRun(signal.SIGTERM, STOPPED), 143, STOPPED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_error_gives_its_exit_status_and_one_line(capsys, error, status, message):
    assert run_command(raises(error)) == status
    assert capsys.readouterr() == ("", message + "\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("filename", ["logs/run/metrics.jsonl", None])
def test_disk_full_from_anywhere_gives_status_1_and_one_line(capsys, number, filename):
    assert run_command(raises(OSError(number, "no space", filename))) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {filename or 'output'}: no space left on the disk: ")
    assert error.endswith(
        " MB are free; what was saved before is untouched: free some space and run the same command again\n"
    )
    assert error.count("\n") == 1


def test_ctrl_c_outside_training_gives_status_130_in_silence(capsys):
    assert run_command(raises(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "")


def test_success_gives_status_0_in_silence(capsys):
    calls = []
    assert run_command(lambda: calls.append(1)) == 0
    assert calls == [1]
    assert capsys.readouterr() == ("", "")


def test_unexpected_error_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="a bug"):
        run_command(raises(RuntimeError("a bug")))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "a.csv"),
            "a.csv: Permission denied; give another",
        ),
        (FileExistsError(errno.EEXIST, "File exists", "logs/run"), "logs/run: File exists; give another path, or"),
        (
            OSError("Failed to open local file 'a.parquet'.\nDetail: no"),
            "Failed to open local file 'a.parquet'. Detail",
        ),
        (OSError(), "OSError"),
    ],
    ids=["permission", "exists", "without a name", "without a message"],
)
def test_error_of_the_system_gives_status_2_and_one_line(capsys, error, message):
    assert run_command(raises(error)) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {message}")
    assert line.count("\n") == 1


# ---------------------------------------------------------------- outputs, before the work


def refuse_writing(monkeypatch, folder: Path) -> None:
    """`folder` counts as read-only, which the system would not tell an administrator."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and access(path, mode))


def test_output_that_can_be_written_is_accepted(tmp_path):
    write_file(tmp_path, "old.csv", "x")
    write_file(tmp_path, "input.csv", "x")
    for name in ("new.csv", "old.csv"):
        check_output(tmp_path / name, tmp_path / "input.csv", tmp_path / "nothing.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input.csv", "old.csv"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "folder: a folder; expected a file to write"),
        ("none/a.csv", "there is no folder .*none; make it, or give another path"),
        ("locked/a.csv", "not writable; give another path"),
        ("input.csv", "is an input as well, which would be lost; give another path"),
        ("link.csv", "is an input as well"),
        ("pipe", "a device or pipe, which would be replaced; expected a file to write"),
    ],
)
def test_output_that_cannot_be_written_is_refused(tmp_path, monkeypatch, name, message):
    for folder in ("folder", "locked"):
        (tmp_path / folder).mkdir()
    source = write_file(tmp_path, "input.csv", "x")
    (tmp_path / "link.csv").symlink_to(source)
    os.mkfifo(tmp_path / "pipe")
    refuse_writing(monkeypatch, tmp_path / "locked")
    with pytest.raises(InputError, match=message):
        check_output(tmp_path / name, tmp_path / "other.csv", source)


def test_folder_that_can_be_made_is_accepted_and_not_made(tmp_path):
    for name in ("", "new", "new/in/new"):
        check_folder(tmp_path / name, "run_dir")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", "file is a file; expected a folder; give another run_dir"),
        ("file/in/it", "file is a file; expected a folder"),
        ("link", "link is a link to .*nothing, which does not exist; give another run_dir"),
        ("link/in/it", "link is a link to .*nothing, which does not exist"),
        ("locked/new", "locked is not writable; give another run_dir"),
        ("x" * 300, "File name too long; give another run_dir"),
        ("a\0b", "null (byte|character).*; give another run_dir"),
    ],
    ids=lambda value: value[:12].replace("\0", "0"),
)
def test_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch, name, message):
    write_file(tmp_path, "file", "x")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "locked").mkdir()
    refuse_writing(monkeypatch, tmp_path / "locked")
    with pytest.raises(InputError, match=f"^run_dir=.*{message}"):
        check_folder(tmp_path / name, "run_dir")
