"""Several runs at a time: what they leave, and how they stop."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from config import InputError, RunError
from helpers import read_metrics, small_config, write_config
from train import main, run
from training import jobs
from training.interrupts import InterruptedRun
from training.jobs import default_jobs, run_missing, take_jobs

ROOT = Path(__file__).resolve().parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# Lines of metrics.jsonl that no clock decides.
DECIDED = ("step", "train_loss", "validation_loss", "validation_accuracy")
PAIR = ("1_lstm", "5_transformer_prenorm")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def make_files(review_files, tmp_path):
    """`make_files("together", "train.epochs=9")`: experiment files of `PAIR` with run folders under that name."""

    def make(name: str, *overrides: str) -> list[str]:
        folder = tmp_path / name
        folder.mkdir()
        return [str(write_config(small_config(key, review_files, folder / key, *overrides))) for key in PAIR]

    return make


def start(*words: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "train.py", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_jobs_is_taken_from_the_settings():
    assert take_jobs(["seed=1", "jobs=3", "train.epochs=2"]) == (["seed=1", "train.epochs=2"], 3)
    assert take_jobs(["seed=1"]) == (["seed=1"], None)


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5", ""])
def test_jobs_that_is_no_whole_number_is_refused(number):
    with pytest.raises(InputError, match=f"^jobs={number}: expected a whole number from 1"):
        take_jobs([f"jobs={number}"])


@pytest.mark.parametrize(
    ("runs", "device", "cores", "threads", "gibibytes", "expected"),
    [
        (8, CPU, 2, None, 24, 2),
        (1, CPU, 2, None, 24, 1),
        (8, CUDA, 2, None, 24, 1),
        (8, CPU, 16, "4", 64, 4),
        (8, CPU, 2, "4", 24, 1),
        (8, CPU, 16, None, 12, 2),
        (8, CPU, 16, None, 1, 1),
    ],
)
def test_default_number_at_a_time(monkeypatch, runs, device, cores, threads, gibibytes, expected):
    monkeypatch.setattr(jobs, "_available_cores", lambda: cores)
    monkeypatch.setattr(jobs.psutil, "virtual_memory", lambda: SimpleNamespace(available=gibibytes * 2**30))
    monkeypatch.delenv("OMP_NUM_THREADS")
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert default_jobs(runs, [device] * runs) == expected


def test_one_at_a_time_in_a_group_of_processes(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert default_jobs(8, [CPU] * 8) == 1


def test_runs_at_a_time_are_those_one_after_another_and_an_error_ends_its_run_alone(
    review_files, tmp_path, caplog, capsys
):
    caplog.set_level("INFO")
    good = small_config("1_lstm", review_files, tmp_path / "together")
    bad = small_config("7_transformer_postnorm", review_files, tmp_path / "bad", "train.learning_rate=1.0e+30")
    assert main([str(write_config(good)), str(write_config(bad)), "jobs=2"]) == 1
    assert "error: 1 of 2 runs ended with an error, printed above: 7\n" in capsys.readouterr().err
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("7") and "non-finite (NaN/Inf)" in line for line in lines)
    alone = small_config("1_lstm", review_files, tmp_path / "alone")
    summary = run(alone)
    for ours, theirs in zip(read_metrics(good.run_dir), read_metrics(alone.run_dir), strict=True):
        # This process may have more threads, whose sums round differently.
        assert [ours[key] for key in DECIDED] == pytest.approx([theirs[key] for key in DECIDED], abs=1e-5)
    assert any(line.startswith("1") and "best validation accuracy" in line for line in lines)
    # The table's rows come last.
    complete, failed = lines[-2:]
    assert complete.startswith("1")
    assert f"{100 * summary['test_accuracy']:.1f}%" in complete
    assert failed.startswith("7")
    assert failed.endswith("not complete")


def test_stopped_batch_saves_every_state_and_resumes(make_files, tmp_path, caplog):
    caplog.set_level("INFO")
    files = make_files("runs", "train.epochs=15")
    folders = [tmp_path / "runs" / key for key in PAIR]

    def interrupt() -> None:
        wait_for(lambda: all((folder / "metrics.jsonl").is_file() for folder in folders))
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(interrupt)
        assert main([*files, "jobs=2"]) == 128 + signal.SIGINT
    assert not any((folder / "summary.json").exists() for folder in folders)
    assert caplog.text.count("stopped after step") == 2
    assert main([*files, "jobs=1"]) == 0
    assert caplog.text.count("resuming after step") == 2
    assert all((folder / "summary.json").is_file() for folder in folders)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_killed_batch_leaves_no_process_and_a_state(make_files, tmp_path):
    process = start(*make_files("runs", "train.epochs=500"), "jobs=2")
    folders = [tmp_path / "runs" / key for key in PAIR]
    wait_for(lambda: all((folder / "metrics.jsonl").is_file() for folder in folders))
    children = [child.pid for child in psutil.Process(process.pid).children()]
    assert len(children) == 2
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not any(_runs(pid) for pid in children))
    assert all(list((folder / "checkpoints").iterdir()) for folder in folders)


def _runs(pid: int) -> bool:
    """A process that has ended, and that nobody has asked about, still has its number."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("error", "is_kept"), [(None, False), (RunError("one failed"), False), ("stopped", True)])
def test_only_logs_are_kept_unless_it_was_interrupted(make_config, monkeypatch, error, is_kept):
    """After an interruption nothing more is computed or removed: the next call does that."""
    config = make_config("1_lstm", "train.epochs=1")
    words, seen = [[str(write_config(config))]], []

    def run_here(words, configs, num_jobs):
        run(configs[0])
        if error is not None:
            raise InterruptedRun(signal.SIGTERM, error) if error == "stopped" else error

    monkeypatch.setattr(jobs, "run_at_a_time", run_here)
    with contextlib.nullcontext() if error is None else pytest.raises((RunError, InterruptedRun)):
        run_missing(words, seen.append)
    folder = Path(config.run_dir)
    assert [(folder / name).is_dir() for name in ("best", "checkpoints")] == [is_kept, is_kept]
    assert seen == ([] if is_kept else [folder])
    assert (folder / "metrics.jsonl").is_file()
    # Complete: nothing is run again, and what was left is removed.
    monkeypatch.setattr(jobs, "run_at_a_time", lambda *_: pytest.fail("run again"))
    run_missing(words, seen.append)
    assert seen == [folder]
    assert not (folder / "best").exists()
