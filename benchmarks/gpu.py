"""All that a GPU can tell, in about ten minutes: the tests marked cuda, speed.py, and 100 steps of each experiment.

    make test-gpu                                  # or: python benchmarks/gpu.py [--output gpu.json]

Writes a JSON object: the card's name, the versions, how the tests ended, the rows of `speed.py`, and for each
experiment and precision seconds a step, reviews a second, memory and the mean loss of the first and last ten steps.
"""

from project import ROOT

# isort: split
import argparse
import json
import platform
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from config import CONFIGS, RunError, load_config
from data import Reviews, batch_loader, load_reviews, training_batches
from models import build_model
from training.command import run_command
from training.device import MemoryMeter, device_name, now, pick_device, prepare
from training.trainer import TrainingStep

EXPERIMENTS = sorted(CONFIGS.glob("[1-8]_*.yaml"))
WARMUP_STEPS = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "gpu.json", help="JSON to write")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"), help="cpu: to try this without a GPU")
    parser.add_argument("--steps", type=int, default=100, help="of each experiment and precision")
    parser.add_argument("--skip-speed", action="store_true", help="leave out speed.py, which takes longest")
    options = parser.parse_args()
    return run_command(lambda: measure(options))


def measure(options: argparse.Namespace) -> None:
    """Measure, and write the file after each part.

    Raises:
        InputError: there is no CUDA device.
        RunError: a test failed; everything is measured and written all the same.
    """
    device = pick_device(options.device)
    result = {"device": device_name(device), "torch": torch.__version__, "python": platform.python_version()}
    print(*result.values(), sep=", ", flush=True)
    parts = {"tests": run_tests, "steps": lambda: run_steps(device, options.steps)}
    if not options.skip_speed:
        parts["speed"] = lambda: run_speed(options.device)
    for name, part in parts.items():
        result[name] = part()
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {options.output}")
    if result["tests"]["status"]:
        raise RunError(f"the tests marked cuda ended with status {result['tests']['status']}; see above")


def run_tests() -> dict:
    """The exit status and the last line of pytest."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_cuda.py", "-p", "no:cacheprovider"]
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(process.stdout, flush=True)
    return {"status": process.returncode, "summary": process.stdout.strip().splitlines()[-1]}


def run_speed(device: str) -> list[dict]:
    """The rows of `speed.py` that depend on the device."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.json"
        only = ["layers", "training", "evaluation"]
        command = [sys.executable, ROOT / "benchmarks" / "speed.py", "--device", device, "--output", output]
        subprocess.run([*command, "--only", *only], check=True)
        return json.loads(output.read_text())


def run_steps(device: torch.device, num_steps: int) -> list[dict]:
    """A row for each experiment and precision, on IMDB's reviews in batches of the experiment's size."""
    reviews = load_reviews(load_config(EXPERIMENTS[0], ["profile=imdb"]).data)
    precisions = ("fp32", "bf16", "fp16") if device.type == "cuda" else ("fp32", "bf16")
    rows = []
    for path in EXPERIMENTS:
        for precision in precisions:
            rows.append(step_row(path, precision, reviews, device, num_steps))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def step_row(path: Path, precision: str, reviews: Reviews, device: torch.device, num_steps: int) -> dict:
    """Train for `num_steps` after a few that are not timed."""
    config = load_config(path, ["profile=imdb", f"train.precision={precision}"])
    prepare(device, precision)
    torch.manual_seed(0)
    model = build_model(config.model, len(reviews.tokenizer), config.data.max_length).to(device).train()
    model.start_epoch(config.train.epochs)
    size, total = config.train.batch_size, num_steps + WARMUP_STEPS
    step = TrainingStep(model, replace(config.train, warmup_ratio=0.1), total, device)
    batches = training_batches(reviews.train.lengths, size, seed=0, epoch=1)
    batches = [batches[i % len(batches)] for i in range(total)]
    losses, memory, started = [], MemoryMeter(device), 0.0
    for i, batch in enumerate(batch_loader(reviews.train, batches, device)):
        if i == WARMUP_STEPS:
            started = now(device)
        losses.append(step(batch)[0])
        memory.sample()
    seconds = (now(device) - started) / num_steps
    losses = torch.stack(losses).tolist()
    return {
        "experiment": path.stem,
        "precision": precision,
        "seconds_per_step": seconds,
        "reviews_per_second": size / seconds,
        "memory": memory.result(),
        "first_loss": sum(losses[:10]) / 10,
        "last_loss": sum(losses[-10:]) / 10,
    }


if __name__ == "__main__":
    sys.exit(main())
