"""What a training step keeps in memory, by arithmetic: weights, gradients, AdamW's moments, saved activations.

    python benchmarks/memory.py profile=imdb train.precision=bf16 --measure --output benchmarks/memory.json

Counted for each experiment with its settings and those given, for a batch of reviews as long as the limit. The
activations saved for the backward pass are counted tensor by tensor as autograd saves them (each storage once, without
the weights).

`--measure` sets the peak of a step's resident memory beside them, on a CPU under Linux, each in a process of its own in
which what is freed goes back to the system at once: a long run also holds what its allocator keeps for later.
"""

from project import in_a_fresh_process

# isort: split
import argparse
import json
import sys
from pathlib import Path

import psutil
import torch

from config import CONFIGS, Config, load_config
from models import ReviewClassifier, build_model, count_parameters
from training.command import run_command
from training.evaluation import autocast

VOCABULARY = 30522
EXPERIMENTS = [*sorted(CONFIGS.glob("[1-8]_*.yaml")), *sorted(CONFIGS.glob("variants/8*.yaml"))]
STEPS = 4
# glibc maps every block from this size on by itself, and unmaps it when it is freed.
RETURN_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}


def full_batch(config: Config) -> dict[str, torch.Tensor]:
    """A batch of reviews that fill all positions."""
    size = (config.train.batch_size, config.data.max_length)
    ids = torch.randint(1000, VOCABULARY, size, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}


def last_epoch_model(config: Config) -> ReviewClassifier:
    """The model as it is trained in its last epoch."""
    model = build_model(config.model, VOCABULARY, config.data.max_length).train()
    model.start_epoch(config.train.epochs)
    return model


def saved_bytes(model: ReviewClassifier, config: Config) -> int:
    """Bytes that autograd keeps for the backward pass of a batch of full-length reviews, weights apart."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # Holding it keeps its address from being given to another.
            kept[storage.data_ptr()] = storage
        return tensor

    batch = full_batch(config)
    with (
        autocast(config.train.precision, torch.device("cpu")),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        output = model(**batch)
    assert output.loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def step_peak_bytes(path: Path, settings: list[str]) -> int:
    """Peak of the resident memory of this process during a training step, after a few steps."""
    config = load_config(path, settings)
    model, batch = last_epoch_model(config), full_batch(config)
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    for step in range(STEPS):
        if step == STEPS - 1:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here
        optimizer.zero_grad()
        with autocast(config.train.precision, torch.device("cpu")):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines["VmHWM"].split()[0])


def row(path: Path, settings: list[str]) -> dict:
    """The arithmetic of one experiment, in its last epoch."""
    config = load_config(path, settings)
    model = last_epoch_model(config)
    weights, trained = count_parameters(model), count_parameters(model, trainable=True)
    return {
        "key": config.key,
        "label": config.architecture,
        "batch": [config.train.batch_size, config.data.max_length],
        "precision": config.train.precision,
        "parameters": weights,
        "trained": trained,
        "weights_bytes": 4 * weights,
        "gradients_bytes": 4 * trained,
        "optimizer_bytes": 8 * trained,
        "saved_bytes": saved_bytes(model, config),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory of a training step, by arithmetic.")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, as for train.py")
    parser.add_argument("--output", type=Path, help="JSON to write: rows, one a model")
    parser.add_argument("--measure", action="store_true", help="measure a step of each, too")
    options = parser.parse_args()
    return run_command(lambda: count(options.settings, options.measure, options.output))


def count(settings: list[str], measure: bool, output: Path | None) -> None:
    """Print, and write, a row for each experiment."""
    # Interpreter and libraries, before there is a model: in resident memory they stand beside all of it.
    libraries = psutil.Process().memory_info().rss
    rows = []
    for path in EXPERIMENTS:
        rows.append({**row(path, settings), "libraries_bytes": libraries})
        if measure:
            rows[-1]["measured_bytes"] = in_a_fresh_process(step_peak_bytes, path, settings, environment=RETURN_AT_ONCE)
        sizes = {key: value / 2**20 for key, value in rows[-1].items() if key.endswith("_bytes")}
        print(
            f"{rows[-1]['key']} {rows[-1]['label']}: " + ", ".join(f"{k[:-6]} {v:,.0f} MiB" for k, v in sizes.items())
        )
    if output:
        output.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
