"""Predicting and evaluating with a classifier: one loop over batches of similar length, for every caller."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data import TokenizedReviews, TokenizedTexts, batch_loader, evaluation_batches
from models import ReviewClassifier
from training import distributed

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a split: mean cross-entropy (nats), accuracy and F1 of the positive class, over all reviews, and the
    probability of positive of each review, (n,)."""

    loss: float
    accuracy: float
    f1: float
    probabilities: np.ndarray


def evaluate(
    model: ReviewClassifier,
    reviews: TokenizedReviews,
    batch_size: int,
    device: torch.device,
    precision: str = "fp32",
    sample: np.ndarray | None = None,
) -> Evaluation:
    """Metrics of `model` on a split, or on the reviews of it at the positions `sample` (n,); the model is left in
    evaluation mode. Other arguments as of `predict_logits`."""
    model.eval()
    sample = np.arange(len(reviews)) if sample is None else sample
    logits = predict_logits(model, reviews, batch_size, device, precision, sample)
    labels = torch.from_numpy(reviews.labels[sample])
    predicted = logits.argmax(dim=1)
    true_positives = int((predicted * labels).sum())
    return Evaluation(
        loss=torch.nn.functional.cross_entropy(logits, labels).item(),
        accuracy=(predicted == labels).double().mean().item(),
        f1=2 * true_positives / max(1, int(predicted.sum() + labels.sum())),
        probabilities=logits.softmax(dim=1)[:, 1].numpy(),
    )


@torch.inference_mode()
def predict_logits(
    model: ReviewClassifier,
    reviews: TokenizedReviews | TokenizedTexts,
    batch_size: int,
    device: torch.device,
    precision: str = "fp32",
    sample: np.ndarray | None = None,
) -> Tensor:
    """Logits of each review in order, (n, 2), float64, on the CPU; batched by length, shared among the processes.

    Args:
        model: in evaluation mode, on `device`.
        reviews: a split, or texts without labels.
        batch_size: reviews at a time.
        device: that computes.
        precision: of the forward pass, see `autocast`.
        sample: (n,) positions of the reviews to read; None for all.
    """
    sample = np.arange(len(reviews)) if sample is None else sample
    batches = distributed.shard(evaluation_batches(reviews.lengths[sample], batch_size))
    computed = []
    for batch in batch_loader(reviews, [sample[batch] for batch in batches], device):
        batch.pop("labels", None)
        with autocast(precision, device):
            computed.append(model(**batch).logits.double())
    logits = torch.zeros(len(sample), 2, dtype=torch.float64)
    if computed:
        # Read at the end: a host that reads each batch waits for the device each time.
        logits[torch.from_numpy(np.concatenate(batches))] = torch.cat(computed).cpu()
    return distributed.all_reduce_sum(logits)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward pass in `"fp32"`, `"bf16"` or `"fp16"`."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
