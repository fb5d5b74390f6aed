"""Several runs at a time, each in a process of its own."""

import ctypes
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import torch

from config import Config, InputError, RunError, load_config
from training.checkpoint import FOLDER as CHECKPOINTS
from training.device import pick_device
from training.interrupts import InterruptedRun, StopRequest, stop_requests
from training.run_folder import finished_run

log = logging.getLogger(__name__)

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
# Tells a run's process which one started it.
PARENT = "TRAIN_STARTED_BY"
# More than any of the eight needs with all reviews of IMDB.
BYTES_PER_RUN = 5 * 2**30


def take_jobs(overrides: Sequence[str]) -> tuple[list[str], int | None]:
    """The settings, and N of `jobs=N`, which is none of a run's (None where it is not given).

    Raises:
        InputError: N is no positive whole number.
    """
    others = [word for word in overrides if not word.startswith("jobs=")]
    given = [word.removeprefix("jobs=") for word in overrides if word.startswith("jobs=")]
    for number in given:
        if not number.isdecimal() or int(number) == 0:
            raise InputError(f"jobs={number}: expected a whole number from 1, the runs at a time")
    return others, int(given[-1]) if given else None


def default_jobs(num_runs: int, devices: Sequence[torch.device]) -> int:
    """How many runs at a time: on a CPU one a core, as far as memory allows; on GPUs, and in a group of processes, one.

    Two runs on one core each end sooner than one after the other on both (`benchmarks/README.md`).
    """
    if any(device.type == "cuda" for device in devices) or "RANK" in os.environ:
        return 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    by_cores = _available_cores() // (int(threads) if threads.isdecimal() and int(threads) else 1)
    return max(1, min(num_runs, by_cores, psutil.virtual_memory().available // BYTES_PER_RUN))


def run_at_a_time(words: Sequence[Sequence[str]], configs: Sequence[Config], jobs: int) -> None:
    """Train each run by a command of its own, `jobs` at a time; their lines come under their keys.

    The processes share the cores: each gets its part as threads, unless `OMP_NUM_THREADS` is set. An error ends its
    run alone. Run the same again to resume.

    Args:
        words: of each run, the experiment file and `key=value`, as train.py takes them.
        configs: the settings that they describe.
        jobs: how many at a time.

    Raises:
        RunError: some ended with an error; the others are complete.
        InterruptedRun: SIGTERM or Ctrl-C came; the processes have saved their states.
    """
    children: list[subprocess.Popen] = []

    def train(words: Sequence[str], config: Config) -> int:
        if stop.signum:
            return 0
        child = _start(words, threads=max(1, _available_cores() // jobs))
        children.append(child)
        return _relay(child, config.key)

    log.info("%d runs, %d at a time", len(configs), jobs)
    with stop_requests() as stop, ThreadPoolExecutor(jobs) as pool:
        ended = _pass_on(stop, children)
        try:
            statuses = list(pool.map(train, words, configs))
        finally:
            ended.set()
    _log_table(configs)
    if stop.signum:
        raise InterruptedRun(stop.signum, "stopped, states saved; run the same command again to resume")
    failed = [config.key for config, status in zip(configs, statuses, strict=True) if status]
    if failed:
        raise RunError(f"{len(failed)} of {len(configs)} runs ended with an error, printed above: {', '.join(failed)}")


def run_missing(words: Sequence[Sequence[str]], last: Callable[[Path], None] = lambda folder: None) -> None:
    """Train the runs that are not complete; then keep only their logs: weights and states take 150 MB a run.

    Args:
        words: of each run, the experiment file and `key=value`, as train.py takes them.
        last: called with the folder of each complete run that still has its model.

    Raises:
        RunError, InterruptedRun: as `run_at_a_time`. After an interruption nothing is removed: the next call does it.
    """
    configs = [load_config(file, overrides) for file, *overrides in words]
    missing = [i for i, config in enumerate(configs) if finished_run(config, Path(config.run_dir)) is None]
    try:
        if missing:
            devices = [pick_device(configs[i].device, configs[i].train.precision) for i in missing]
            jobs = default_jobs(len(missing), devices)
            run_at_a_time([words[i] for i in missing], [configs[i] for i in missing], jobs)
    except RunError:
        _keep_logs(configs, last)
        raise
    _keep_logs(configs, last)


def _keep_logs(configs: Sequence[Config], last: Callable[[Path], None]) -> None:
    """Of each complete run that has its model: call `last`, then remove weights and states."""
    for config in configs:
        folder = Path(config.run_dir)
        if (folder / "summary.json").is_file() and (folder / "best").is_dir():
            last(folder)
            for name in ("best", CHECKPOINTS):
                shutil.rmtree(folder / name, ignore_errors=True)


def _start(words: Sequence[str], threads: int) -> subprocess.Popen:
    """The process of one run."""
    return subprocess.Popen(
        [sys.executable, str(TRAIN), *words, "jobs=1"],
        env={"OMP_NUM_THREADS": str(threads), **os.environ, PARENT: str(os.getpid())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Ctrl-C in the terminal comes to this process only, which passes it on.
        start_new_session=True,
    )


def _relay(child: subprocess.Popen, key: str) -> int:
    """Log what the process says, each line after the run's key, until it ends; returns its exit status."""
    with child:
        for line in child.stdout:
            # A progress bar returns to the line's beginning.
            text = line.rstrip().rpartition("\r")[2]
            if text:
                log.info("%-3s %s", key, text)
    if child.returncode < 0:
        log.info("%-3s killed by signal %d", key, -child.returncode)
    return child.returncode


def stop_with_parent() -> None:
    """In a process of `run_at_a_time`, on Linux: SIGTERM, which saves the run's state, once the parent is killed."""
    parent = os.environ.pop(PARENT, None)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGTERM)


def _available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pass_on(stop: StopRequest, children: list[subprocess.Popen]) -> threading.Event:
    """Start a thread that sends SIGTERM to the children once a stop is requested, until the event is set."""
    ended = threading.Event()

    def watch() -> None:
        told: set[int] = set()
        while not ended.wait(0.2):
            for child in list(children) if stop.signum else []:
                if child.pid not in told and child.poll() is None:
                    told.add(child.pid)
                    child.send_signal(signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    return ended


def _log_table(configs: Sequence[Config]) -> None:
    """What the complete runs reached."""
    log.info("%-4s %-38s %10s %8s %10s", "", "model", "best val.", "test", "training")
    for config in configs:
        path = Path(config.run_dir) / "summary.json"
        if not path.is_file():
            log.info("%-4s %-38s not complete", config.key, config.architecture)
            continue
        summary = json.loads(path.read_text())
        log.info(
            "%-4s %-38s %9.1f%% %7.1f%% %8.0f s",
            config.key,
            config.architecture,
            100 * summary["best_validation_accuracy"],
            100 * summary["test_accuracy"],
            summary["train_seconds"],
        )
