"""Ctrl-C and SIGTERM: the step ends, its state is saved, the command exits with the signal's status."""

import signal
import threading
from pathlib import Path

import pytest

from helpers import write_config
from kill import interrupted
from train import main, run
from training.checkpoint import checkpoints_of
from training.interrupts import StopRequest, stop_requests

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_the_step_and_sets_the_exit_status(make_config, stop_at, capsys, signum, status):
    config = make_config("1_lstm", "train.epochs=2", "train.save_steps=2")
    handlers = [signal.getsignal(number) for number in SIGNALS]
    path = write_config(config)
    stop_at(3, signum=signum)
    assert main([str(path)]) == status
    message = "stopped after step 3, whose state is saved; run the same command again to resume\n"
    assert capsys.readouterr().err == f"{config.run_dir}: {message}"
    assert checkpoints_of(Path(config.run_dir))[0].name == "step-00000003"
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    stop_at()
    assert main([str(path)]) == 0


def test_signal_handlers_are_restored_after_an_error():
    handlers = [signal.getsignal(number) for number in SIGNALS]

    def block() -> None:
        with stop_requests() as stop:
            assert [signal.getsignal(number) for number in SIGNALS] == [stop.note, stop.note]
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        block()
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_second_ctrl_c_does_not_wait_for_the_step():
    request = StopRequest()
    request.note(signal.SIGTERM, None)
    request.note(signal.SIGTERM, None)
    assert request.signum == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        request.note(signal.SIGINT, None)


def test_run_in_another_thread_leaves_the_signal_handlers(make_config):
    config = make_config("1_lstm", "train.epochs=1")
    handlers = [signal.getsignal(number) for number in SIGNALS]
    summaries = []
    thread = threading.Thread(target=lambda: summaries.append(run(config)))
    thread.start()
    thread.join()
    assert summaries[0]["completed"]
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_interrupted_run_says_where_it_resumes(make_config, stop_at, caplog):
    config = make_config("1_lstm", "train.epochs=1", "train.save_steps=2")
    interrupted(config, stop_at, 3)
    caplog.set_level("INFO")
    run(config)
    assert f"{config.run_dir}: resuming after step 3" in caplog.messages
