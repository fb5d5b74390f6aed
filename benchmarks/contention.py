"""Seconds of a training step, alone and beside a busy process, by how OpenMP's threads wait for each other.

    python benchmarks/contention.py [--steps 30]

A thread that waits spins, and keeps a core from whoever has work; or sleeps, and wakes late. Each row is measured in a
process of its own, with the reviews and sizes of the quick profile; it shows the median of the steps. It needs Linux,
where torch uses GNU's OpenMP.
"""

import project

# isort: split
import argparse
import multiprocessing
import os
import statistics
import sys
import time

import torch

from config import CONFIGS, load_config
from data import batch_loader, load_reviews, training_batches
from models import build_model
from training.device import device_name, prepare_process
from training.trainer import TrainingStep

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
POLICIES = {
    "GOMP_SPINCOUNT=300000 (OpenMP's default)": {"GOMP_SPINCOUNT": "300000"},
    "GOMP_SPINCOUNT=1000 (ours)": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=20000": {"GOMP_SPINCOUNT": "20000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
EXPERIMENTS = ("4_lstm_attention", "5_transformer_prenorm")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    print(
        f"{device_name(torch.device('cpu'))}, torch {torch.__version__}; seconds a step, alone / beside a busy process"
    )
    for name in EXPERIMENTS:
        for label, environment in POLICIES.items():
            alone, beside = (_seconds(name, options.steps, environment, is_busy) for is_busy in (False, True))
            print(f"{name:22s} {label:40s} {alone:.3f} / {beside:.3f} ({beside / alone:.1f}x)", flush=True)
    return 0


def _seconds(name: str, num_steps: int, environment: dict[str, str], is_busy: bool) -> float:
    busy = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    if is_busy:
        busy.start()
    try:
        variables = dict.fromkeys(NAMES) | environment
        return project.in_a_fresh_process(step_seconds, name, num_steps, environment=variables)
    finally:
        if is_busy:
            busy.kill()
            busy.join()


def _spin() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        pass


def step_seconds(name: str, num_steps: int) -> float:
    """Median seconds of a training step of the experiment in this process, after five that are not counted."""
    prepare_process()
    config = load_config(CONFIGS / f"{name}.yaml", ["profile=quick", "device=cpu"])
    reviews = load_reviews(config.data)
    torch.manual_seed(0)
    model = build_model(config.model, len(reviews.tokenizer), config.data.max_length).train()
    step = TrainingStep(model, config.train, num_steps + 5, torch.device("cpu"))
    batches = training_batches(reviews.train.lengths, config.train.batch_size, seed=0, epoch=1)
    seconds = []
    for batch in batch_loader(reviews.train, batches[: num_steps + 5]):
        started = time.perf_counter()
        step(batch)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[5:])


if __name__ == "__main__":
    sys.exit(main())
