"""The yardstick: training and evaluation as the assignment's notebook does them, on the same weights.

Every review is tokenised in the collate function of each step and padded to the full length, every position of every
layer is computed by its definition, each tensor is copied to the device by itself, and the loss is read on the host
at every step. Nothing but `speed.py` imports this.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from backbones.dropout import Dropout
from backbones.encoders import BertBackbone, LSTMBackbone
from models import ReviewClassifier
from transformer_solution import (
    LayerNorm,
    MultiHeadedAttention,
    PreNormAttentionBlock,
    Transformer,
)


class ReferenceClassifier(nn.Module):
    """The logits of a `ReviewClassifier`, with its own weights, by the whole backbone and with PyTorch's dropout."""

    def __init__(self, model: ReviewClassifier):
        super().__init__()
        self.model = model
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, Dropout):
                    setattr(module, name, nn.Dropout(child.p).train(child.training))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T) padded to the full length -> (B, 2)."""
        backbone = self.model.backbone
        if isinstance(backbone, LSTMBackbone):
            summary = backbone.model(input_ids, attention_mask)[0]
        elif isinstance(backbone, BertBackbone):
            summary = backbone.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
        else:
            summary = transformer(backbone.model, input_ids, attention_mask)
        return self.model.classifier(summary)


def transformer(model: Transformer, input_ids: Tensor, mask: Tensor) -> Tensor:
    """`Transformer.forward` with every block in full."""
    x, mask = model.embed(input_ids, mask)
    for block in model.transformer:
        if isinstance(block, PreNormAttentionBlock):
            x = x + attention(block.attn, layer_norm(block.layer_norm_1, x), mask)
            x = x + block.linear(layer_norm(block.layer_norm_2, x))
        else:
            x = layer_norm(block.layer_norm_1, x + attention(block.attn, x, mask))
            x = layer_norm(block.layer_norm_2, x + block.linear(x))
    return layer_norm(model.mlp_head, x[:, 0])


def attention(layer: MultiHeadedAttention, x: Tensor, mask: Tensor) -> Tensor:
    """The equations of `MultiHeadedAttention`, one operation each."""
    q, k, v = (layer.split_heads(project(x)) for project in (layer.w_q, layer.w_k, layer.w_v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(layer.head_size)
    scores = scores.masked_fill(mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min)
    return layer.w_o(layer.merge_heads(scores.softmax(dim=-1) @ v))


def layer_norm(layer: LayerNorm, x: Tensor) -> Tensor:
    """The equation of `LayerNorm`, one operation each."""
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + layer.eps) * layer.weight + layer.bias


def loader(
    texts: Sequence[str],
    labels: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    max_length: int,
    shuffle: bool,
) -> DataLoader:
    """Batches that are tokenised as they are drawn, padded to `max_length`."""

    def collate(items: list[tuple[str, int]]) -> dict[str, Tensor]:
        batch = tokenizer(
            [text for text, _ in items],
            padding="max_length",
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        batch["labels"] = torch.tensor([label for _, label in items])
        return batch

    pairs = list(zip(texts, labels, strict=True))
    return DataLoader(pairs, batch_size=batch_size, shuffle=shuffle, collate_fn=collate)


def train_epoch(
    model: ReferenceClassifier, batches: DataLoader, optimizer: torch.optim.Optimizer, device: torch.device
) -> Iterator[float]:
    """Train on every batch; yields each step's loss."""
    model.train()
    for batch in batches:
        optimizer.zero_grad()
        input_ids = batch["input_ids"].to(device)
        attention_mask = batch["attention_mask"].to(device)
        labels = batch["labels"].to(device)
        loss = nn.functional.cross_entropy(model(input_ids, attention_mask), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


@torch.no_grad()
def evaluate(model: ReferenceClassifier, batches: DataLoader, device: torch.device) -> tuple[float, Tensor]:
    """Accuracy and logits (n, 2) of every review."""
    model.eval()
    correct, logits = 0, []
    for batch in batches:
        input_ids = batch["input_ids"].to(device)
        attention_mask = batch["attention_mask"].to(device)
        labels = batch["labels"].to(device)
        logits.append(model(input_ids, attention_mask))
        correct += (logits[-1].argmax(dim=1) == labels).sum().item()
    all_logits = torch.cat(logits)
    return correct / len(all_logits), all_logits.cpu()
