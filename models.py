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
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
    BertModel,
    PreTrainedTokenizerBase,
)

from backbones.classifier import ReviewClassifier, ReviewConfig
from backbones.encoders import BertBackbone
from config import MINILM, InputError, ModelConfig, config_from_dict, read_json
from data import packaged_encoder
from sources import hub

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


# A module that is loaded again registers again.
AutoConfig.register(ReviewConfig.model_type, ReviewConfig, exist_ok=True)
AutoModelForSequenceClassification.register(ReviewConfig, ReviewClassifier, exist_ok=True)


def build_model(config: ModelConfig, vocabulary_size: int, max_length: int) -> ReviewClassifier:
    """The classifier that the settings describe; a pretrained backbone with its weights.

    Raises:
        InputError: the pretrained encoder is not available, is not a BERT model, has too few layers, or has fewer
            embeddings than the tokenizer has ids, or fewer positions than `max_length`.
    """
    settings = ReviewConfig(asdict(config), vocabulary_size, max_length)
    if config.backbone != "bert":
        return ReviewClassifier(settings)
    encoder = _load_encoder(config)
    _check_fit(encoder.config, config, vocabulary_size, max_length)
    settings.encoder = encoder.config.to_dict()
    try:
        backbone = BertBackbone(encoder, config.unfreeze_epoch, config.unfreeze_layers, config.pooling)
    except ValueError as error:
        raise InputError(str(error)) from None
    return ReviewClassifier(settings, backbone)


def save_model(folder: Path, model: ReviewClassifier, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write weights (safetensors), settings (JSON) and tokenizer to `folder`, for `from_pretrained`; no pickle."""
    with _quiet():
        model.save_pretrained(folder)
    limit, tokenizer.model_max_length = tokenizer.model_max_length, model.config.max_tokens
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.model_max_length = limit


def load_model(folder: str | Path) -> tuple[ReviewClassifier, PreTrainedTokenizerBase, int]:
    """A saved classifier in evaluation mode, its tokenizer, and the number of tokens that it keeps of a review.

    Raises:
        InputError: a file is missing, or the weights are not those of the settings.
    """
    folder = Path(folder)
    for name in (WEIGHTS, SETTINGS, "tokenizer.json"):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: no such file; train the model first")
    config = _read_config(folder)
    try:
        with _quiet():
            model, loaded = ReviewClassifier.from_pretrained(folder, config=config, output_loading_info=True)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / SETTINGS}: not the settings of a saved model ({error!r})") from None
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        raise InputError(f"{folder / WEIGHTS}: not the weights of this model: {_one_line(error)}") from None
    wrong = {what: sorted(map(str, names)) for what, names in loaded.items() if names}
    if wrong:
        raise InputError(f"{folder / WEIGHTS}: not the weights of this model: {str(wrong)[:300]}")
    return model.eval(), _load_saved_tokenizer(folder), config.max_tokens


def as_plain_bert(model: ReviewClassifier) -> BertForTokenClassification:
    """A classifier of experiment 8 as a model that `transformers` has without this project; (B, T) -> logits (B, T, 2).

    The review's logits are those at its first token, [CLS]; of `model.pooling=mean` the mean over its tokens. BERT's
    own sequence classifier has another layer between the two, which these runs don't.

    Raises:
        InputError: another backbone, or another pooling, which is no position and no mean.
    """
    settings = model.config.model
    if settings["backbone"] != "bert" or settings["pooling"] not in ("first", "mean"):
        raise InputError(
            f"a classifier with model.backbone={settings['backbone']} and model.pooling={settings['pooling']} is no "
            "plain BERT; expected bert with first or mean"
        )
    labels = {"id2label": model.config.id2label, "label2id": model.config.label2id}
    plain = BertForTokenClassification(BertConfig.from_dict(model.config.encoder | labels))
    plain.bert.load_state_dict(model.backbone.model.state_dict())
    plain.classifier.load_state_dict(model.classifier.state_dict())
    return plain.eval()


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
    differences = _differing_architecture(ModelConfig(**source.config.model), source, config, model)
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
        with _quiet():
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bar for a moment's work, and no report that the pooler, which no classifier here reads, is left out."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.enable_progress_bar()
        transformers.logging.set_verbosity(verbosity)


# ---------------------------------------------------------------- saved models


def _read_config(folder: Path) -> ReviewConfig:
    """The settings in a saved model's folder, also in one that an earlier version wrote."""
    settings = read_json(folder / SETTINGS)
    try:
        given = {_RENAMED.get(key, key): value for key, value in settings["model"].items()}
        model = config_from_dict(given, f"{folder / SETTINGS}", ModelConfig)
        # Earlier versions wrote max_length, which transformers reserves for generated text.
        sizes = settings["vocabulary_size"], settings["max_tokens" if "max_tokens" in settings else "max_length"]
        if not all(isinstance(size, int) for size in sizes):
            raise TypeError(f"vocabulary_size and max_tokens are {sizes}; expected whole numbers")
        return ReviewConfig(asdict(model), *sizes, settings["encoder"] if model.backbone == "bert" else None)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / SETTINGS}: not the settings of a saved model ({error!r})") from None


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
