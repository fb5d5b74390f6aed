"""A review classifier over one of three backbones: built from settings, saved to and loaded from a folder.

Which code runs: in experiments 1 to 4 `nn.LSTM` through the fast path `EncoderDecoder.first_step`, in 5 to 7 the
blocks and the layer norm of transformer_solution.py with torch's scaled dot-product attention, in 8 the encoder of
`transformers`.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerBase
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import SequenceClassifierOutput

from config import MINILM, InputError, ModelConfig, config_from_dict, read_json
from data import packaged_encoder
from lstm import EncoderDecoder
from transformer_solution import MultiHeadedAttention, Transformer

WEIGHTS, SETTINGS = "model.safetensors", "config.json"
# Settings that saved models of earlier versions have under other names.
_RENAMED = {"thaw_epoch": "unfreeze_epoch", "thaw_layers": "unfreeze_layers"}


class ReviewClassifier(nn.Module):
    """A linear layer over a backbone's pooled representation of a review; class 0 is negative, 1 positive.

    Args:
        backbone: called as `backbone(input_ids, attention_mask)`, with an `output_size`.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.output_size, 2)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None, **cached: Tensor
    ) -> SequenceClassifierOutput:
        """Classify a batch.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 1 = token.
            labels: (B,) 0/1.
            cached: what the backbone need not compute again, such as `hidden_states` of a `BertBackbone`.

        Returns:
            `logits` (B, 2) and `loss`, the mean cross-entropy over the batch in nats (None without labels).
        """
        logits = self.classifier(self.backbone(input_ids, attention_mask, **cached)).float()
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def start_epoch(self, epoch: int) -> None:
        """Set which parameters are trained in `epoch`, counted from 1: all, but in a pretrained backbone."""
        if isinstance(self.backbone, BertBackbone):
            self.backbone.start_epoch(epoch)


def build_model(config: ModelConfig, vocabulary_size: int, max_length: int) -> ReviewClassifier:
    """The classifier that the settings describe; a pretrained backbone with its weights.

    Raises:
        InputError: the pretrained encoder is not available, is not a BERT model, or has too few layers.
    """
    if config.backbone == "bert":
        return ReviewClassifier(_bert_backbone(_load_encoder(config), config))
    return _build_from_scratch(config, vocabulary_size, max_length)


def save_model(
    folder: Path, model: ReviewClassifier, config: ModelConfig, max_length: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write weights (safetensors), settings (JSON) and tokenizer to `folder`; no pickle."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
    settings = {"model": asdict(config), "vocabulary_size": len(tokenizer), "max_length": max_length}
    if config.backbone == "bert":
        settings["encoder"] = model.backbone.model.config.to_dict()
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    tokenizer.save_pretrained(folder)


def load_model(folder: str | Path) -> tuple[ReviewClassifier, PreTrainedTokenizerBase, int]:
    """A saved classifier in evaluation mode, its tokenizer, and the number of tokens that it keeps of a review.

    Raises:
        InputError: a file is missing, or the weights are not those of the settings.
    """
    folder = Path(folder)
    for name in (WEIGHTS, SETTINGS, "tokenizer.json"):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: no such file; train the model first")
    settings = read_json(folder / SETTINGS)
    try:
        max_length = settings["max_length"]
        model_settings = {_RENAMED.get(key, key): value for key, value in settings["model"].items()}
        config = config_from_dict(model_settings, f"{folder / SETTINGS}", ModelConfig)
        if config.backbone == "bert":
            encoder = BertModel(BertConfig.from_dict(settings["encoder"]), add_pooling_layer=False)
            model = ReviewClassifier(_bert_backbone(encoder, config))
        else:
            model = _build_from_scratch(config, settings["vocabulary_size"], max_length)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / SETTINGS}: not the settings of a saved model ({error!r})") from None
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        raise InputError(f"{folder / WEIGHTS}: not the weights of this model: {str(error)[:300]}") from None
    return model.eval(), AutoTokenizer.from_pretrained(folder), max_length


def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    """Number of parameters, or of those that have gradients."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


# ---------------------------------------------------------------- backbones


class LSTMBackbone(nn.Module):
    """`EncoderDecoder` read at its first step; (B, T) -> (B, H), or (B, 2H) without a decoder.

    Args:
        padded_length: tokens to which every batch counts as padded, so that a review's states don't depend on
            the reviews beside it.
    """

    def __init__(self, model: EncoderDecoder, padded_length: int):
        super().__init__()
        self.model = model
        self.padded_length = padded_length
        encoder_only = model.decoder is None
        self.output_size = model.encoder.hidden_size * 2 if encoder_only else model.decoder.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.first_step(input_ids, attention_mask, self.padded_length)


class TransformerBackbone(nn.Module):
    """`Transformer` read at CLS; (B, T) -> (B, E)."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model
        self.output_size = model.mlp_head.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids, attention_mask)


class BertBackbone(nn.Module):
    """An encoder of BERT's architecture read at its first token, [CLS] (Devlin et al. 2019); (B, T) -> (B, D).

    Its last layers are trained from `unfreeze_epoch` on, the others never. Frozen layers compute as in evaluation.

    Args:
        model: the encoder, without a pooler.
        unfreeze_epoch: first epoch, from 1, in which encoder layers are trained.
        unfreeze_layers: how many of them, from the last.

    Raises:
        ValueError: there are fewer layers than `unfreeze_layers`.
    """

    def __init__(self, model: BertModel, unfreeze_epoch: int, unfreeze_layers: int):
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
        self.start_epoch(1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, hidden_states: Tensor | None = None) -> Tensor:
        """The [CLS] state of a batch; `hidden_states` are those of `frozen_states`, where they are cached."""
        if hidden_states is None:
            with torch.no_grad():
                hidden_states = self.frozen_states(input_ids, attention_mask)
        x = hidden_states.to(self.model.embeddings.word_embeddings.weight.dtype)
        tokens = attention_mask[:, None, None, :] != 0
        added = torch.zeros(tokens.shape, dtype=x.dtype, device=x.device).masked_fill(~tokens, torch.finfo(x.dtype).min)
        *layers, last = self.model.encoder.layer[self.num_frozen_layers :]
        for layer in layers:
            x = layer(x, attention_mask=added)
        return _first_position(last, x, tokens)[:, 0]

    def frozen_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Output of the embedding and the layers that are never trained, (B, T, D)."""
        x = self.model.embeddings(input_ids=input_ids)
        mask = create_bidirectional_mask(self.model.config, x, attention_mask)
        for layer in self.model.encoder.layer[: self.num_frozen_layers]:
            x = layer(x, mask)
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


def _first_position(layer: nn.Module, x: Tensor, tokens: Tensor) -> Tensor:
    """A BERT layer's output at its first position, all that the classifier reads: (B, T, D) -> (B, 1, D)."""
    attention = layer.attention.self
    queries, keys, values = (
        project(states).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
        for project, states in ((attention.query, x[:, :1]), (attention.key, x), (attention.value, x))
    )
    rate = attention.dropout.p if layer.training else 0.0
    mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, tokens, dropout_p=rate)
    return layer.feed_forward_chunk(layer.attention.output(mixed.transpose(1, 2).flatten(2), x[:, :1]))


# ---------------------------------------------------------------- building


def _build_from_scratch(config: ModelConfig, vocabulary_size: int, max_length: int) -> ReviewClassifier:
    """The classifier over an LSTM or a Transformer."""
    if config.backbone == "transformer":
        model = Transformer(
            vocabulary_size,
            embed_dim=config.embedding_size,
            hidden_dim=config.hidden_size,
            num_heads=config.num_heads,
            num_layers=config.num_layers,
            block=config.block,
            dropout=config.dropout,
            attn_implementation=config.attn_implementation,
        )
        return ReviewClassifier(TransformerBackbone(model))
    attention = MultiHeadedAttention(2 * config.hidden_size, num_heads=1) if config.attention else None
    model = EncoderDecoder(
        vocabulary_size,
        embedding_size=config.embedding_size,
        hidden_size=config.hidden_size,
        dropout=config.dropout,
        encoder_only=not config.decoder,
        attn=attention,
    )
    return ReviewClassifier(LSTMBackbone(model, max_length))


def _load_encoder(config: ModelConfig) -> BertModel:
    """The pretrained encoder, from the package or the hub, with its dropout set."""
    source = packaged_encoder() if config.pretrained == MINILM else config.pretrained
    try:
        settings = AutoConfig.from_pretrained(
            source, hidden_dropout_prob=config.dropout, attention_probs_dropout_prob=config.dropout
        )
        if not isinstance(settings, BertConfig):
            raise InputError(
                f"model.pretrained={config.pretrained!r} is a {settings.model_type} model; expected a BERT model"
            )
        with _quiet_loading():
            return AutoModel.from_pretrained(
                source, config=settings, add_pooling_layer=False, use_safetensors=True, dtype=torch.float32
            )
    except OSError as error:
        raise InputError(
            f"model.pretrained={config.pretrained!r} could not be loaded ({' '.join(str(error).split())[:200]}); "
            f"{MINILM!r} works without a network"
        ) from None


def _bert_backbone(encoder: BertModel, config: ModelConfig) -> BertBackbone:
    try:
        return BertBackbone(encoder, config.unfreeze_epoch, config.unfreeze_layers)
    except ValueError as error:
        raise InputError(str(error)) from None


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """No bar for a load of a moment, and no report that the pooler, which no classifier here reads, is left out."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.enable_progress_bar()
        transformers.logging.set_verbosity(verbosity)
