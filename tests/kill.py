"""Stop or kill training runs, resume them, and compare the results with those of a run that was left alone.

python tests/kill.py --moments 500     # SIGKILL at random moments: the long version of a test in test_checkpoint.py
"""

import argparse
import json
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

# As a script it stands beside the tests, not beside the modules.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from config import Config
from helpers import small_config, without_timings, write_review_files
from training.checkpoint import checkpoints_of, verify_folder
from training.interrupts import InterruptedRun

# Children are forked from a server that has loaded the modules and computed nothing.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train"])
_UNINTERRUPTED: dict[str, dict] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = killable_config(Path(folder) / "run", write_review_files(Path(folder)))
        kill_and_resume(config, options.moments, options.seed)
    print(f"{options.moments} kills before the run's end: the result was the same each time")


def killable_config(run_dir: Path, reviews: Path) -> Config:
    """A Transformer with dropout on the small files of a folder, saving every step."""
    return small_config("5_transformer_prenorm", reviews, run_dir, "train.save_steps=1")


def kill_and_resume(config: Config, moments: int, seed: int) -> None:
    """Raise AssertionError unless a run killed at each of `moments`, spread over its life, ends as one left alone."""
    run_dir = Path(config.run_dir)
    finish(config)
    # Again, now that the tokenised reviews are cached.
    shutil.rmtree(run_dir)
    life = finish(config)
    expected = result_of(run_dir)
    rng = np.random.default_rng(seed)
    for number in range(moments):
        shutil.rmtree(run_dir)
        while not kill_after(config, moment := life * (number + rng.random()) / moments):
            # The machine has become faster than when the life was measured, and the run was over.
            life *= 0.8
            shutil.rmtree(run_dir)
        check_what_is_there(run_dir)
        finish(config)
        assert_same_result(result_of(run_dir), expected, f"killed after {moment:.3f} s of {life:.3f}")


def finish(config: Config) -> float:
    """Start a run in a process and wait for its end; returns the seconds it took."""
    started = time.monotonic()
    process = start(config)
    process.join(60)
    assert process.exitcode == 0, f"{config.run_dir}: exit code {process.exitcode}"
    return time.monotonic() - started


def kill_after(config: Config, seconds: float) -> bool:
    """Start a run in a process and kill it after so many seconds; returns whether it was still alive."""
    process = start(config)
    process.join(seconds)
    is_alive = process.is_alive()
    process.kill()
    process.join()
    process.close()
    return is_alive


def start(config: Config) -> multiprocessing.Process:
    process = CONTEXT.Process(target=run_child, args=(config,))
    process.start()
    return process


def run_child(config: Config) -> None:
    """A run in one thread."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    logging.disable(logging.WARNING)
    train.run(config)


def check_what_is_there(run_dir: Path) -> None:
    """After a kill: every checkpoint is whole, every line of the log but a torn last one is JSON."""
    for folder in checkpoints_of(run_dir):
        verify_folder(folder, ("model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"))
    log = run_dir / "metrics.jsonl"
    if log.exists():
        for line in log.read_text().split("\n")[:-1]:
            json.loads(line)


# ---------------------------------------------------------------- results


def result_of(run_dir: Path) -> dict:
    """All that must be equal, by the file it stands in: weights, optimiser and random states by their sha256."""
    last = checkpoints_of(run_dir)[0]
    state = json.loads((last / "state.json").read_text())
    files = json.loads((last / "manifest.json").read_text())["files"]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run_dir / "summary.json").read_text())
    record = state.pop("record")
    assert record.pop("history") == lines, f"{last / 'state.json'}: other lines than metrics.jsonl"
    record.pop("best")
    state.pop("settings")
    return {
        "last checkpoint": last.name,
        **{name: entry for name, entry in files.items() if name != "state.json"},
        "state.json": state,
        "state.json: record": without_timings([record])[0],
        "best/model.safetensors": (run_dir / "best" / "model.safetensors").read_bytes(),
        "metrics.jsonl": without_timings(lines),
        "summary.json": without_timings([summary])[0],
        **{name: (run_dir / name).read_text() for name in ("validation_predictions.csv", "test_predictions.csv")},
    }


def assert_same_result(result: dict, expected: dict, when: str = "resumed") -> None:
    """Equal in every part of `result_of`."""
    different = different_parts(result, expected)
    assert not different, f"{when}: these differ from the run that was left alone: {different}"


def different_parts(result: dict, expected: dict) -> list[str]:
    """The parts of `result_of` in which two runs differ."""
    return [name for name in expected if result.get(name) != expected[name]]


def uninterrupted(config: Config) -> dict:
    """The result of a run of these settings that nothing stops, computed once a process."""
    key = f"{config.experiment} {config.train}"
    if key not in _UNINTERRUPTED:
        run_dir = config.run_dir + "-uninterrupted"
        train.run(replace(config, run_dir=run_dir))
        _UNINTERRUPTED[key] = result_of(Path(run_dir))
    return _UNINTERRUPTED[key]


# ---------------------------------------------------------------- runs that stop at a step


def run_until_complete(config: Config, most: int = 10) -> int:
    """Start a run again until it is complete; returns how often it was stopped."""
    for num_stops in range(most):
        try:
            train.run(config)
            return num_stops
        except InterruptedRun:
            continue
    raise AssertionError(f"{config.run_dir}: stopped {most} times, not complete")


def interrupted(config: Config, stop_at, *steps: int) -> Path:
    """The folder of a run that stops in the last of `steps`; `stop_at` is the fixture."""
    stop_at(*steps)
    try:
        train.run(config)
    except InterruptedRun:
        stop_at()
        return Path(config.run_dir)
    raise AssertionError(f"{config.run_dir}: not stopped at step {steps}")


if __name__ == "__main__":
    main()
