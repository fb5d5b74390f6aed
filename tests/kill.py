"""Kill a training run with SIGKILL at random moments, resume it each time, and compare with one that was left alone.

python tests/kill.py --moments 500     # the long version of the test in test_checkpoint.py
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
from config import Config, load_config
from training.checkpoint import FOLDER, checkpoints_of, verify_folder

# What a log holds beside the result: a run that was interrupted differs in these.
TIMINGS = (
    "train_seconds",
    "evaluation_seconds",
    "checkpoint_seconds",
    "test_seconds",
    "memory",
    "steady_memory_bytes",
    "peak_memory_bytes",
)
# Children are forked from a server that has the modules loaded, and has computed nothing.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train"])


def child(config: Config) -> None:
    """A run that keeps its last checkpoint, in one thread."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    logging.disable(logging.WARNING)
    remove = shutil.rmtree
    shutil.rmtree = keep_checkpoints(remove)
    train.run(config)
    shutil.rmtree = remove


def keep_checkpoints(remove):
    """`shutil.rmtree` that leaves the folder of checkpoints alone."""
    return lambda path, **options: None if Path(path).name == FOLDER else remove(path, **options)


def start(config: Config) -> multiprocessing.Process:
    process = CONTEXT.Process(target=child, args=(config,))
    process.start()
    return process


def finish(config: Config) -> float:
    """Start a run and wait for its end; returns the seconds it took."""
    started = time.monotonic()
    process = start(config)
    process.join(60)
    assert process.exitcode == 0, f"exit code {process.exitcode}"
    return time.monotonic() - started


def kill_after(config: Config, seconds: float) -> bool:
    """Start a run and kill it after so many seconds; returns whether it was still alive."""
    process = start(config)
    process.join(seconds)
    alive = process.is_alive()
    process.kill()
    process.join()
    process.close()
    return alive


def result_of(run_dir: Path) -> dict:
    """All that must be equal: weights, optimiser and random states by their sha256, log lines, predictions, summary."""
    last = checkpoints_of(run_dir)[0]
    state = json.loads((last / "state.json").read_text())
    files = json.loads((last / "manifest.json").read_text())["files"]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run_dir / "summary.json").read_text())
    record = state.pop("record")
    assert record["history"] == lines
    untimed = [{key: value for key, value in part.items() if key not in TIMINGS} for part in (*lines, summary, record)]
    for part in untimed:
        part.pop("best", None), part.pop("history", None)
    return {
        "step": last.name,
        "files": {name: entry for name, entry in files.items() if name != "state.json"},
        "best": (run_dir / "best" / "model.safetensors").read_bytes(),
        "state": {key: value for key, value in state.items() if key != "settings"},
        "lines": untimed,
        "predictions": [(run_dir / f"{n}_predictions.csv").read_text() for n in ("validation", "test")],
    }


def check_what_is_there(run_dir: Path) -> None:
    """After a kill: every checkpoint is whole, every line of the log but a torn last one is JSON."""
    for folder in checkpoints_of(run_dir):
        verify_folder(folder, ("model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"))
    log = run_dir / "metrics.jsonl"
    if log.exists():
        for line in log.read_text().split("\n")[:-1]:
            json.loads(line)


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
        assert result_of(run_dir) == expected, f"killed after {moment:.3f} s of {life:.3f}"


def small_config(folder: Path, reviews: Path) -> Config:
    """A Transformer with dropout on the small files of the tests, saving every step."""
    settings = [
        "data.source=files",
        *(f"data.{name}={reviews / name}.csv" for name in ("train", "validation", "test")),
        f"data.cache_dir={reviews / 'cache'}",
        f"run_dir={folder / 'run'}",
        "device=cpu",
        "data.max_length=24",
        "model.embedding_size=8",
        "model.hidden_size=8",
        "train.batch_size=8",
        "train.eval_steps=4",
        "train.save_steps=1",
    ]
    return replace(load_config("configs/5_transformer_prenorm.yaml", settings), name="killed")


def main() -> None:
    from conftest import write_review_files

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = small_config(Path(folder), write_review_files(Path(folder)))
        kill_and_resume(config, options.moments, options.seed)
    print(f"{options.moments} kills before the run's end: the result was the same each time")


if __name__ == "__main__":
    main()
