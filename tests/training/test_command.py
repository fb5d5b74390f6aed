"""What every command does with an error: an exit status and one line on stderr."""

import errno
import signal

import pytest

from config import InputError, RunError
from training.command import run_command
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


@pytest.mark.parametrize("error", [RuntimeError("a bug"), PermissionError(errno.EACCES, "denied", "a.csv")])
def test_unexpected_error_keeps_its_traceback(error):
    with pytest.raises(type(error), match=str(error.args[-1])):
        run_command(raises(error))
