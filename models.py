"""A review classifier over one of three backbones: built from settings, saved to and loaded from a folder.

Which code runs: in experiments 1 to 4 `nn.LSTM` through the fast path `EncoderDecoder.first_step`, in 5 to 7 the
blocks and the layer norm of transformer_solution.py with torch's scaled dot-product attention, in 8 the encoder of
`transformers`.
"""

import contextlib
import hashlib
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
from transformers.modeling_outputs import SequenceClassifierOutput

from config import MINILM, InputError, ModelConfig, config_from_dict, read_json
from data import packaged_encoder
from lstm import EncoderDecoder
from sources import hub
from transformer_solution import MultiHeadedAttention, Transformer

WEIGHTS, SETTINGS = "model.safetensors", "config.json"
# Settings that saved models of earlier versions have under other names.
_RENAMED = {"thaw_epoch": "unfreeze_epoch", "thaw_layers": "unfreeze_layers"}
# What must be the same for a model to start from the weights of another, by backbone, and of a pretrained encoder.
_ARCHITECTURE = {
    "lstm": ("decoder", "attention", "embedding_size", "hidden_size"),
    "transformer": ("embedding_size", "hidden_size", "num_layers", "num_heads", "block"),
    "bert": (),
}
_ENCODER_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
)
_EMBEDDING = {"lstm": "encoder.embedding", "transformer": "embedding"}


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
        InputError: the pretrained encoder is not available, is not a BERT model, has too few layers, or has fewer
            embeddings than the tokenizer has ids, or fewer positions than `max_length`.
    """
    if config.backbone == "bert":
        encoder = _load_encoder(config)
        _check_fit(encoder.config, config, vocabulary_size, max_length)
        model = ReviewClassifier(_bert_backbone(encoder, config))
    else:
        model = _build_from_scratch(config, vocabulary_size, max_length)
    _use_fast_dropout(model)
    return model


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
    settings, config = _read_settings(folder)
    try:
        max_length = settings["max_length"]
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
    return model.eval(), _load_saved_tokenizer(folder), max_length


def find_saved_model(path: str | Path) -> Path:
    """The folder of a saved model, for that of a run or of `save_model`.

    Raises:
        InputError: the folder, or a file of the model, is missing.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; expected that of a run or of a saved model")
    folder = path / "best" if (path / "best").is_dir() else path
    for name in (WEIGHTS, SETTINGS, "tokenizer.json"):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: no such file; train the model first")
    return folder


def load_initial_weights(model: ReviewClassifier, config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> dict:
    """Give a new model the weights of `config.init_from`.

    Args:
        model: as `build_model` makes it of `config`.
        config: whose `init_from` names a run or a folder of `save_model`.
        tokenizer: of the reviews on which the model is to be trained.

    Returns:
        `path` and `sha256` of the weights.

    Raises:
        InputError: there is no saved model, or its architecture or tokenizer is another.
    """
    try:
        folder = find_saved_model(config.init_from)
        source, source_tokenizer, _ = load_model(folder)
    except InputError as error:
        raise InputError(f"model.init_from: {error}") from None
    differences = _differing_architecture(_read_settings(folder)[1], source, config, model)
    if _tokenizer_content(source_tokenizer) != _tokenizer_content(tokenizer):
        sizes = f"{len(source_tokenizer)} and {len(tokenizer)} entries"
        differences.append(f"the tokenizer (vocabularies of {sizes}; see data.tokenizer)")
    if differences:
        raise InputError(
            f"model.init_from={config.init_from}: its weights don't fit the new model, by {', '.join(differences)}; "
            "give both the same"
        )
    model.load_state_dict(source.state_dict())
    with (folder / WEIGHTS).open("rb") as file:
        return {"path": str(folder / WEIGHTS), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


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
        # To look costs nothing on a CPU; on a GPU the host would wait.
        is_full = attention_mask.device.type == "cpu" and bool(attention_mask.all())
        return self.model(input_ids, None if is_full else attention_mask)


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
        added = _additive_mask(attention_mask, x)
        *layers, last = self.model.encoder.layer[self.num_frozen_layers :]
        for layer in layers:
            x = layer(x, attention_mask=added)
        return _first_position(last, x, attention_mask)[:, 0]

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


# ---------------------------------------------------------------- dropout


class Dropout(nn.Dropout):
    """`nn.Dropout`, five times as fast on a CPU, where drawing a number for each element takes most of its time.

    An element is zeroed with the probability `p`, rounded to 16 bits, and the others are divided by the probability of
    the rest. Equal to `nn.Dropout` in distribution; it takes other numbers from the same generator.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """In training zero some elements and scale the others; any shape."""
        level = round(self.p * _LEVELS)
        is_plain = torch.compiler.is_compiling() or inputs.device.type != "cpu" or level in (0, _LEVELS)
        if is_plain or not self.training:
            return super().forward(inputs)
        return _DropoutFunction.apply(inputs, level)


# A 16-bit number decides over an element.
_LEVELS = 2**16


class _DropoutFunction(torch.autograd.Function):
    """Dropout with the probability `level` / 2^16; saves a byte an element."""

    @staticmethod
    def forward(ctx, inputs: Tensor, level: int) -> Tensor:
        count = inputs.numel()
        # Four 16-bit numbers at a time. Without an upper bound all 64 bits are random.
        drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = (drawn[:count] >= level - _LEVELS // 2).view(inputs.shape)
        ctx.save_for_backward(kept)
        ctx.scale = _LEVELS / (_LEVELS - level)
        return (inputs * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, d_outputs: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return d_outputs * kept * ctx.scale, None


def _use_fast_dropout(model: nn.Module) -> None:
    """Put `Dropout` in the place of every `nn.Dropout` inside the model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))


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
    source = str(packaged_encoder()) if config.pretrained == MINILM else config.pretrained

    def load(offline: bool) -> BertModel:
        settings = AutoConfig.from_pretrained(
            source,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            local_files_only=offline,
        )
        if not isinstance(settings, BertConfig):
            raise InputError(
                f"model.pretrained={config.pretrained!r} is a {settings.model_type} model; expected a BERT model"
            )
        with _quiet_loading():
            return AutoModel.from_pretrained(
                source,
                config=settings,
                add_pooling_layer=False,
                use_safetensors=True,
                dtype=torch.float32,
                local_files_only=offline,
            )

    return hub.load(source, "model.pretrained", load, f"{MINILM!r} works without a network")


def _check_fit(encoder: BertConfig, config: ModelConfig, vocabulary_size: int, max_length: int) -> None:
    """Refuse (`InputError`) a tokenizer with more ids than embeddings, and more tokens than positions."""
    name = f"model.pretrained={config.pretrained!r}"
    if vocabulary_size > encoder.vocab_size:
        raise InputError(
            f"data.tokenizer has {vocabulary_size} ids, {name} has embeddings for {encoder.vocab_size}; set "
            "data.tokenizer to the encoder's own"
        )
    if max_length > encoder.max_position_embeddings:
        raise InputError(
            f"data.max_length is {max_length}, {name} has {encoder.max_position_embeddings} positions; set "
            f"data.max_length to at most {encoder.max_position_embeddings}"
        )


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


# ---------------------------------------------------------------- saved models


def _read_settings(folder: Path) -> tuple[dict, ModelConfig]:
    """All settings in a saved model's folder, and those of its architecture."""
    settings = read_json(folder / SETTINGS)
    try:
        model_settings = {_RENAMED.get(key, key): value for key, value in settings["model"].items()}
    except (KeyError, AttributeError) as error:
        raise InputError(f"{folder / SETTINGS}: not the settings of a saved model ({error!r})") from None
    return settings, config_from_dict(model_settings, f"{folder / SETTINGS}", ModelConfig)


def _load_saved_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the library of tokenizers raises nothing more special
        raise InputError(f"{folder / 'tokenizer.json'}: not a tokenizer: {_one_line(error)}") from None


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> dict:
    """All that shapes its ids: cutting and padding are settings of a call."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in content.items() if key not in ("truncation", "padding")}


def _differing_architecture(
    before: ModelConfig, source: ReviewClassifier, now: ModelConfig, model: ReviewClassifier
) -> list[str]:
    """`key: before -> now` of what would give the same weights another meaning, or no place."""
    keys = ["backbone", *_ARCHITECTURE[now.backbone]]
    pairs = [(f"model.{key}", getattr(before, key), getattr(now, key)) for key in keys]
    if before.backbone == now.backbone == "bert":
        encoders = source.backbone.model.config.to_dict(), model.backbone.model.config.to_dict()
        pairs += [(f"the encoder's {key}", *(encoder.get(key) for encoder in encoders)) for key in _ENCODER_KEYS]
    elif before.backbone == now.backbone:
        sizes = (m.backbone.model.get_submodule(_EMBEDDING[now.backbone]).num_embeddings for m in (source, model))
        pairs.append(("the vocabulary's size", *sizes))
    return [f"{key}: {old!r} -> {new!r}" for key, old, new in pairs if old != new]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
