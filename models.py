"""A review classifier over one of four backbones: built from settings, saved to and loaded from a folder.

Which code runs: in experiments 1 to 4 `nn.LSTM` through the fast path `EncoderDecoder.first_step`, in 5 to 7 the
blocks and the layer norm of transformer_solution.py with torch's scaled dot-product attention (training in
bfloat16 on a CPU: with that module's own), in 8 the encoder of `transformers`.
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

from backbones.dropout import use_fast_dropout
from backbones.encoders import BertBackbone, EmbeddingBackbone, LSTMBackbone, TransformerBackbone
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
    "lstm": ("decoder", "attention", "embedding_size", "hidden_size", "pooling", "padding"),
    "transformer": ("embedding_size", "hidden_size", "num_layers", "num_heads", "block", "pooling"),
    "bert": ("pooling",),
    "embedding": ("embedding_size", "pooling"),
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
_EMBEDDING = {"lstm": "encoder.embedding", "transformer": "embedding", "embedding": ""}


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
    use_fast_dropout(model)
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


# ---------------------------------------------------------------- building


def _build_from_scratch(config: ModelConfig, vocabulary_size: int, max_length: int) -> ReviewClassifier:
    """The classifier over an LSTM, a Transformer or an embedding."""
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
        return ReviewClassifier(TransformerBackbone(model, config.pooling))
    if config.backbone == "embedding":
        sizes = vocabulary_size, config.embedding_size
        return ReviewClassifier(EmbeddingBackbone(*sizes, config.dropout, config.pooling))
    attention = MultiHeadedAttention(2 * config.hidden_size, num_heads=1) if config.attention else None
    model = EncoderDecoder(
        vocabulary_size,
        embedding_size=config.embedding_size,
        hidden_size=config.hidden_size,
        dropout=config.dropout,
        encoder_only=not config.decoder,
        attn=attention,
    )
    with torch.no_grad():
        for rnn in (model.encoder.rnn, *([model.decoder.rnn] if model.decoder else [])):
            for name, bias in rnn.named_parameters():
                if name.startswith("bias_ih"):
                    # The gates' order is input, forget, cell, output.
                    bias[rnn.hidden_size : 2 * rnn.hidden_size] += config.forget_bias
    padded_length = max_length if config.padding == "right" else None
    return ReviewClassifier(LSTMBackbone(model, padded_length, config.pooling))


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
        return BertBackbone(encoder, config.unfreeze_epoch, config.unfreeze_layers, config.pooling)
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
