"""What a training step keeps in memory, by arithmetic: weights, gradients, AdamW's moments, values kept for backward.

    python benchmarks/memory.py --output benchmarks/memory.json

Counted for each experiment at its full settings, a batch of 64 reviews of 256 tokens, float32. The values kept for the
backward pass are counted tensor by tensor as autograd saves them (each storage once, weights not again).
"""

import argparse
import json
import sys
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import load_config  # noqa: E402
from models import ReviewClassifier, build_model, count_parameters  # noqa: E402

VOCABULARY = 30522


def saved_bytes(model: ReviewClassifier, reviews: int, tokens: int) -> int:
    """Bytes that autograd keeps for the backward pass of a batch of full-length reviews, weights apart."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # Holding it keeps its address from being given to another.
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(1000, VOCABULARY, (reviews, tokens), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(**batch)
    assert output.loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def row(path: Path, settings: list[str], reviews: int, tokens: int) -> dict:
    """The arithmetic of one experiment, in its last epoch."""
    config = load_config(path, settings)
    model = build_model(config.model, VOCABULARY, config.data.max_length).train()
    model.start_epoch(config.train.epochs)
    weights, trained = count_parameters(model), count_parameters(model, trainable=True)
    return {
        "key": path.stem.partition("_")[0],
        "experiment": config.experiment,
        "name": config.name,
        "batch": [reviews, tokens],
        "parameters": weights,
        "trained": trained,
        "weights_bytes": 4 * weights,
        "gradients_bytes": 4 * trained,
        "optimizer_bytes": 8 * trained,
        "saved_bytes": saved_bytes(model, reviews, tokens),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory of a training step, by arithmetic.")
    parser.add_argument("--output", type=Path, help="JSON list of rows to write")
    parser.add_argument("--reviews", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    options = parser.parse_args()
    # Interpreter and libraries, before there is a model: in resident memory they stand beside all of it.
    base = psutil.Process().memory_info().rss
    found = []
    for path in sorted((ROOT / "configs").glob("[1-8]*_*.yaml")):
        found.append({**row(path, [], options.reviews, options.tokens), "libraries_bytes": base})
        sizes = {key: found[-1][key] / 2**20 for key in found[-1] if key.endswith("_bytes")}
        print(
            f"{found[-1]['key']} {found[-1]['name']}: " + ", ".join(f"{k[:-6]} {v:,.0f} MiB" for k, v in sizes.items())
        )
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
