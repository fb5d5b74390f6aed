"""What a training step keeps in memory, by arithmetic: weights, gradients, AdamW's moments, values kept for backward.

    python benchmarks/memory.py profile=imdb train.precision=bf16 --measure --output benchmarks/memory.json

Counted for each experiment with its settings and those given, for a batch of reviews as long as the limit. The values
kept for the backward pass are counted tensor by tensor as autograd saves them (each storage once, weights not again).

`--measure` sets beside them the resident memory over a short training on a CPU in which what is freed goes back to the
system at once: a long run also holds what its allocator keeps for later.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import Config, InputError, load_config  # noqa: E402
from models import ReviewClassifier, build_model, count_parameters  # noqa: E402
from train import autocast  # noqa: E402

VOCABULARY = 30522
MEASURED_REVIEWS = 800
# glibc maps every block from this size on by itself, and unmaps it when it is freed.
RETURN_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}


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

    reviews, tokens = config.train.batch_size, config.data.max_length
    ids = torch.randint(1000, VOCABULARY, (reviews, tokens), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}
    with autocast(config, ids.device), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(**batch)
    assert output.loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def row(path: Path, settings: list[str]) -> dict:
    """The arithmetic of one experiment, in its last epoch."""
    config = load_config(path, settings)
    model = build_model(config.model, VOCABULARY, config.data.max_length).train()
    model.start_epoch(config.train.epochs)
    weights, trained = count_parameters(model), count_parameters(model, trainable=True)
    return {
        "key": path.stem.partition("_")[0],
        "experiment": config.experiment,
        "name": config.name,
        "batch": [config.train.batch_size, config.data.max_length],
        "precision": config.train.precision,
        "parameters": weights,
        "trained": trained,
        "weights_bytes": 4 * weights,
        "gradients_bytes": 4 * trained,
        "optimizer_bytes": 8 * trained,
        "saved_bytes": saved_bytes(model, config),
    }


def measured_bytes(path: Path, settings: list[str], folder: Path) -> int:
    """Resident memory, averaged over the steps after the first ones, of a training on few reviews."""
    short = [
        f"data.train_size={MEASURED_REVIEWS}",
        "data.eval_size=100",
        "train.eval_steps=1000000",
        f"data.cache_dir={folder / 'cache'}",
        f"run_dir={folder / path.stem}",
        "device=cpu",
    ]
    # The last epoch that changes what is trained is the second, of experiment 8.
    epochs = f"train.epochs={min(2, load_config(path, settings).train.epochs)}"
    command = [sys.executable, str(ROOT / "train.py"), str(path), *settings, *short, epochs]
    environment = {**os.environ, **RETURN_AT_ONCE}
    subprocess.run(command, check=True, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    return json.loads((folder / path.stem / "summary.json").read_text())["steady_memory_bytes"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory of a training step, by arithmetic.")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, as for train.py")
    parser.add_argument("--output", type=Path, help="JSON list of rows to write")
    parser.add_argument("--measure", action="store_true", help="train each for a few steps, too")
    options = parser.parse_args()
    # Interpreter and libraries, before there is a model: in resident memory they stand beside all of it.
    base = psutil.Process().memory_info().rss
    found = []
    for path in sorted((ROOT / "configs").glob("[1-8]*_*.yaml")):
        try:
            found.append({**row(path, options.settings), "libraries_bytes": base})
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        if options.measure:
            with tempfile.TemporaryDirectory() as folder:
                found[-1]["measured_bytes"] = measured_bytes(path, options.settings, Path(folder))
        sizes = {key: found[-1][key] / 2**20 for key in found[-1] if key.endswith("_bytes")}
        print(
            f"{found[-1]['key']} {found[-1]['name']}: " + ", ".join(f"{k[:-6]} {v:,.0f} MiB" for k, v in sizes.items())
        )
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
