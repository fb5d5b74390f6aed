"""The backbones of a review classifier: encoders of token ids, pooled to one vector a review.

Each is called as `backbone(input_ids, attention_mask)`, (B, T) both, and has an `output_size`.
"""

import torch
from torch import Tensor, nn
from transformers import BertModel

from backbones.pooling import Pooling
from lstm import EncoderDecoder
from transformer_solution import Transformer


class LSTMBackbone(nn.Module):
    """`EncoderDecoder`, pooled; (B, T) -> (B, H), or (B, 2H) without a decoder.

    Args:
        model: encoder and decoder.
        padded_length: tokens to which every batch counts as padded, so that a review's states don't depend on
            the reviews beside it. None: each review is read from its first to its last token, as if it were alone.
        pooling: of the steps at the tokens, as in `Pooling`; `"first"` computes no other step.
    """

    def __init__(self, model: EncoderDecoder, padded_length: int | None, pooling: str = "first"):
        super().__init__()
        self.model = model
        self.padded_length = padded_length
        size = model.encoder.hidden_size
        is_encoder_only = model.decoder is None
        self.output_size = size * 2 if is_encoder_only else model.decoder.hidden_size
        self.pooling = Pooling(pooling, self.output_size, num_forward=size if is_encoder_only else None)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if self.padded_length is None:
            if self.pooling.kind == "first":
                return self.model.packed_first_step(input_ids, attention_mask)
            return self.pooling(self.model.packed_steps(input_ids, attention_mask), attention_mask)
        if self.pooling.kind == "first":
            return self.model.first_step(input_ids, attention_mask, self.padded_length)
        return self.pooling(self.model.all_steps(input_ids, attention_mask, self.padded_length), attention_mask)


class TransformerBackbone(nn.Module):
    """`Transformer`, read at CLS (`pooling="first"`) or pooled over the tokens; (B, T) -> (B, E)."""

    def __init__(self, model: Transformer, pooling: str = "first"):
        super().__init__()
        self.model = model
        self.output_size = model.mlp_head.hidden_size
        self.pooling = Pooling(pooling, self.output_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # To look costs nothing on a CPU; on a GPU the host would wait.
        is_full = attention_mask.device.type == "cpu" and bool(attention_mask.all())
        mask = None if is_full else attention_mask
        if self.pooling.kind == "first":
            return self.model(input_ids, mask)
        return self.pooling(self.model.token_outputs(input_ids, mask), attention_mask)


class EmbeddingBackbone(nn.Module):
    """A learned embedding of each token, pooled: no order, no context; (B, T) -> (B, E)."""

    def __init__(self, vocabulary_size: int, size: int, dropout: float, pooling: str):
        super().__init__()
        self.model = nn.Embedding(vocabulary_size, size, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.output_size = size
        self.pooling = Pooling(pooling, size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.pooling(self.dropout(self.model(input_ids)), attention_mask)


class BertBackbone(nn.Module):
    """An encoder of BERT's architecture (Devlin et al. 2019), read at [CLS] or pooled; (B, T) -> (B, D).

    Its last layers are trained from `unfreeze_epoch` on, the others never. Frozen layers compute as in evaluation.

    Args:
        model: the encoder, without a pooler.
        unfreeze_epoch: first epoch, from 1, in which encoder layers are trained.
        unfreeze_layers: how many of them, from the last.
        pooling: of the states of the tokens, [CLS] and [SEP] among them, as in `Pooling`.

    Raises:
        ValueError: there are fewer layers than `unfreeze_layers`.
    """

    def __init__(self, model: BertModel, unfreeze_epoch: int, unfreeze_layers: int, pooling: str = "first"):
        super().__init__()
        num_layers = len(model.encoder.layer)
        if unfreeze_layers > num_layers:
            raise ValueError(f"model.unfreeze_layers={unfreeze_layers}; the encoder has {num_layers} layers")
        self.model = model
        self.unfreeze_epoch = unfreeze_epoch
        self.unfreeze_layers = unfreeze_layers
        # The last layer is computed apart even if it is never trained: at one position only.
        self.num_frozen_layers = num_layers - max(1, unfreeze_layers)
        self.output_size = model.config.hidden_size
        self.pooling = Pooling(pooling, self.output_size)
        self.start_epoch(1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, hidden_states: Tensor | None = None) -> Tensor:
        """The pooled states of a batch; `hidden_states` are those of `frozen_states`, where they are cached."""
        if hidden_states is None:
            with torch.no_grad():
                hidden_states = self.frozen_states(input_ids, attention_mask)
        x = hidden_states.to(self.model.embeddings.word_embeddings.weight.dtype)
        added = _additive_mask(attention_mask, x)
        *layers, last = self.model.encoder.layer[self.num_frozen_layers :]
        for layer in layers:
            x = layer(x, attention_mask=added)
        if self.pooling.kind == "first":
            return _first_position(last, x, attention_mask)[:, 0]
        return self.pooling(last(x, attention_mask=added), attention_mask)

    def frozen_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Output of the embedding and the layers that are never trained, (B, T, D)."""
        x = self.model.embeddings(input_ids=input_ids)
        added = _additive_mask(attention_mask, x)
        for layer in self.model.encoder.layer[: self.num_frozen_layers]:
            x = layer(x, attention_mask=added)
        return x

    def start_epoch(self, epoch: int) -> None:
        """Freeze all parameters but those that are trained in `epoch`, counted from 1."""
        self.model.requires_grad_(False)
        num_trained = self.unfreeze_layers if epoch >= self.unfreeze_epoch else 0
        for layer in self.model.encoder.layer[len(self.model.encoder.layer) - num_trained :]:
            layer.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> "BertBackbone":
        """As `nn.Module.train`, but frozen layers stay in evaluation mode: dropout would only add noise to them."""
        super().train(mode)
        for module in (self.model.embeddings, *self.model.encoder.layer):
            module.train(mode and any(parameter.requires_grad for parameter in module.parameters()))
        return self


def _additive_mask(attention_mask: Tensor, x: Tensor) -> Tensor:
    """What a BERT layer adds to its attention scores, (B, 1, 1, T), in the dtype of `x`: the least number on padding.

    transformers' own function makes the host wait for a GPU, to see whether a batch has padding at all.
    """
    padding = attention_mask[:, None, None, :] == 0
    return torch.zeros_like(padding, dtype=x.dtype).masked_fill(padding, torch.finfo(x.dtype).min)


def _first_position(layer: nn.Module, x: Tensor, attention_mask: Tensor) -> Tensor:
    """A BERT layer's output at its first position, all that the classifier reads: (B, T, D) -> (B, 1, D)."""
    tokens = attention_mask[:, None, None, :] != 0
    attention = layer.attention.self
    queries, keys, values = (
        project(states).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
        for project, states in ((attention.query, x[:, :1]), (attention.key, x), (attention.value, x))
    )
    rate = attention.dropout.p if layer.training else 0.0
    mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, tokens, dropout_p=rate)
    return layer.feed_forward_chunk(layer.attention.output(mixed.transpose(1, 2).flatten(2), x[:, :1]))
