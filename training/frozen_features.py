"""Outputs of frozen layers, computed once for a split and cached in a memory-mapped file.

Layers that are never trained give the same output in every epoch and evaluation; training on cached outputs leaves only
the trained layers to compute. Shapes: `B` reviews, `T` tokens, `D` features.
"""

import hashlib
import json
import logging
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data import TokenizedReviews, atomic_path, batch_loader, evaluation_batches
from models import BertBackbone

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class FrozenFeatures(TokenizedReviews):
    """A split whose batches also hold `hidden_states` (B, T, D), the frozen layers' outputs, 0 on padding.

    The file is made under a key of the reviews, the frozen weights and the precision where it is missing or damaged.

    Args:
        reviews: the split.
        backbone: on the device that is to compute; its frozen layers are read.
        folder: gets the file.
        precision: `"fp32"` or `"bf16"`, in which they are cached; bf16 takes half the space and rounds to 8 bits.
        batch_size: reviews to compute at a time.
    """

    def __init__(
        self, reviews: TokenizedReviews, backbone: BertBackbone, folder: Path, precision: str, batch_size: int
    ):
        super().__init__(reviews.source, reviews.chosen)
        self.ends = np.cumsum(self.lengths, dtype=np.int64)
        self.path = folder / f"{_features_key(reviews, backbone, precision)}.frozen"
        self.shape = (int(self.ends[-1]), backbone.output_size)
        self.dtype = DTYPES[precision]
        self.num_bytes = self.shape[0] * self.shape[1] * self.dtype.itemsize
        if not self._is_whole():
            self.make(backbone, batch_size)
        self.features = self.open(self.path)

    def open(self, path: Path, writable: bool = False) -> Tensor:
        """The file as a tensor (tokens of all reviews, D)."""
        count = self.shape[0] * self.shape[1]
        return torch.from_file(str(path), shared=writable, size=count, dtype=self.dtype).view(self.shape)

    def _is_whole(self) -> bool:
        """Whether the file is there in its full size; a warning where its size is another."""
        if not self.path.is_file():
            return False
        size, expected = self.path.stat().st_size, self.num_bytes
        if size != expected:
            message = "warning: %s: the cached features are damaged (%d bytes, expected %d) and made again"
            log.warning(message, self.path, size, expected)
        return size == expected

    @torch.no_grad()
    def make(self, backbone: BertBackbone, batch_size: int) -> None:
        """Compute the file, so that one under the key is always whole."""
        device = next(backbone.parameters()).device
        hint = " (train.cache_frozen_features=bf16 takes half of it, null none)"
        # A file that stands there is damaged, or made meanwhile by another process and as good.
        with atomic_path(self.path, self.num_bytes, hint=hint) as path:
            _reserve(path, self.num_bytes)
            features = self.open(path, writable=True)
            batches = evaluation_batches(self.lengths, batch_size)
            uncached = batch_loader(TokenizedReviews(self.source, self.chosen), batches, device)
            for indices, batch in zip(batches, uncached, strict=True):
                states = backbone.frozen_states(batch["input_ids"], batch["attention_mask"])
                tokens = states[batch["attention_mask"] != 0].to(self.dtype).cpu()
                features[torch.from_numpy(self.positions(indices))] = tokens

    def positions(self, indices: np.ndarray) -> np.ndarray:
        """Where in the file the tokens of these reviews stand, one review after the other."""
        return np.concatenate([np.arange(self.ends[i] - self.lengths[i], self.ends[i]) for i in indices])

    def __getitem__(self, indices: np.ndarray) -> dict[str, Tensor]:
        batch = super().__getitem__(indices)
        states = self.features.new_zeros(*batch["input_ids"].shape, self.shape[1])
        states[batch["attention_mask"] != 0] = self.features[torch.from_numpy(self.positions(indices))]
        return {**batch, "hidden_states": states}


def _reserve(path: Path, size: int) -> None:
    """A file of `size` bytes, promised by the system: a mapped file that finds the disk full kills the process."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _features_key(reviews: TokenizedReviews, backbone: BertBackbone, precision: str) -> str:
    """Key of all that shapes the outputs: the tokens, the frozen weights, both precisions."""
    device = next(backbone.parameters()).device.type
    computed = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "fp32"
    digest = hashlib.sha256(json.dumps([precision, computed, backbone.num_frozen_layers]).encode())
    ids = reviews.ids()
    digest.update(ids.offsets.to_numpy().tobytes() + ids.values.to_numpy().tobytes())
    frozen = [backbone.model.embeddings, *backbone.model.encoder.layer[: backbone.num_frozen_layers]]
    for module in frozen:
        for tensor in module.state_dict().values():
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:20]
