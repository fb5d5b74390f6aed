"""Where the time of a training step goes: matrix products, norms, dropout, optimiser and so on.

    python benchmarks/profile.py [--steps 8] [--experiments 5_transformer_prenorm ...] [--output FILE]

Trains each of experiments 1 to 7 for a few steps on reviews of Yelp's lengths (IMDB's where there are none), in batches
of 64 as `speed.py` does, and sums PyTorch's profile of the operations by what they belong to: a sum inside of
`LayerNorm` belongs to the norm. `Python` is what remains of the wall-clock time: calls, and autograd between
operations. Profiling itself takes time, most of it there.
"""

from project import ROOT

# isort: split
import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from data import batch_loader, training_batches
from speed import SCRATCH, YELP, Bench, Case
from training.device import device_name, prepare_process
from training.trainer import TrainingStep

# The first word that an operation's name, or that of one above it, contains decides.
PARTS = {
    "optimiser": ("optimiser", "Optimizer.step", "zero_grad"),
    "norm": ("LayerNorm", "NormFunction"),
    "attention": ("scaled_dot_product", "ScaledDotProduct", "softmax", "Softmax"),
    "GELU": ("gelu", "Gelu"),
    "dropout": ("dropout", "Dropout", "bernoulli"),
    "embedding": ("embedding", "Embedding"),
    "matrix products": ("mkldnn_rnn", "MkldnnRnn", "::mm", "::addmm", "::bmm", "::baddbmm", "::linear", "::addmv"),
}
WARMUP_STEPS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--experiments", nargs="+", default=[path.stem for path in SCRATCH])
    parser.add_argument("--yelp", type=Path, default=YELP, help="reviews in the Yelp Polarity form, for their lengths")
    parser.add_argument("--output", type=Path, help="JSON list of rows")
    options = parser.parse_args()
    prepare_process()
    bench = Bench("cpu", False, options.yelp)
    lengths = list(bench.sources)[-1]
    print(f"{device_name(bench.device)}, torch {torch.__version__}; reviews of the lengths of {lengths}")
    rows = []
    for name in options.experiments:
        path = ROOT / "configs" / f"{name}.yaml"
        rows.append(measure(Case(bench, path, lengths), options.steps))
        print_row(rows[-1])
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def measure(case: Case, num_steps: int) -> dict:
    """Milliseconds a step of each part, and of the whole."""
    settings, reviews = case.config.train, case.reviews
    batches = training_batches(reviews.train.lengths, settings.batch_size, 0, 1)
    batches = [batches[i % len(batches)] for i in range(WARMUP_STEPS + num_steps)]
    step = TrainingStep(case.fast.train(), settings, 10**6, case.bench.device)
    loader = batch_loader(reviews.train, batches, case.bench.device)
    for _ in range(WARMUP_STEPS):
        step(next(loader))
    in_optimiser(step)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        started = time.perf_counter()
        for _ in range(num_steps):
            with record_function("data"):
                batch = next(loader)
            step(batch)
        wall = time.perf_counter() - started
    seconds = seconds_by_part(profiled.events())
    seconds["Python"] = wall - sum(seconds.values())
    ms = {part: 1e3 * value / num_steps for part, value in seconds.items()}
    return {
        "experiment": case.path.stem,
        "lengths": case.lengths,
        "device": device_name(case.bench.device),
        "torch": torch.__version__,
        "milliseconds": 1e3 * wall / num_steps,
        "parts": dict(sorted(ms.items(), key=lambda item: -item[1])),
    }


def in_optimiser(step: TrainingStep) -> None:
    """Make the profile count clipping and the check for non-finite numbers as part of the optimiser."""
    for name in ("_clip", "_update"):
        method = getattr(step, name)

        def marked(*arguments, method=method):
            with record_function("optimiser"):
                return method(*arguments)

        setattr(step, name, marked)


def seconds_by_part(events: list) -> dict[str, float]:
    """Seconds of the operations' own time, by part."""
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        seconds[part_of(event)] += event.self_cpu_time_total / 1e6
    return seconds


def part_of(event) -> str:
    """The part to which an operation belongs: that of the outermost marked one, else of the nearest named one."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    if "data" in names:
        return "data"
    for part in ("optimiser", "norm", "attention", "dropout", "embedding"):
        if any(word in name for name in names for word in PARTS[part]):
            return part
    for name in names:
        for part, words in PARTS.items():
            if any(word in name for word in words):
                return part
    return "other operations"


def print_row(row: dict) -> None:
    parts = "  ".join(f"{part} {ms / row['milliseconds']:.0%}" for part, ms in row["parts"].items())
    print(f"{row['experiment']:<24}{row['milliseconds']:6.0f} ms a step  {parts}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
