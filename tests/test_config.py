"""config.py: the order of the layers, the eight experiments, and which message refuses what."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

import config
from config import (
    CONFIGS,
    Config,
    InputError,
    ModelConfig,
    config_from_dict,
    describe_settings,
    load_config,
    read_json,
    to_yaml,
)
from helpers import write_file

EXPERIMENTS = sorted(CONFIGS.glob("[1-8]_*.yaml"))
VARIANTS = sorted((CONFIGS / "variants").glob("*.yaml"))
PROFILES = sorted(path.stem for path in config.PROFILES.glob("*.yaml"))
LSTM = CONFIGS / "1_lstm.yaml"
TRANSFORMER = CONFIGS / "5_transformer_prenorm.yaml"
MINILM = CONFIGS / "8_minilm.yaml"

# The eight models as the assignment has them; settings that it leaves open are not compared.
TABLE = {
    1: {"backbone": "lstm", "dropout": 0.0, "decoder": False, "attention": False},
    2: {"backbone": "lstm", "dropout": 0.3, "decoder": False, "attention": False},
    3: {"backbone": "lstm", "dropout": 0.3, "decoder": True, "attention": False},
    4: {"backbone": "lstm", "dropout": 0.3, "decoder": True, "attention": True},
    5: {"backbone": "transformer", "num_layers": 2, "block": "prenorm", "num_heads": 4, "dropout": 0.3},
    6: {"backbone": "transformer", "num_layers": 4, "block": "prenorm", "num_heads": 4, "dropout": 0.3},
    7: {"backbone": "transformer", "num_layers": 2, "block": "postnorm", "num_heads": 4, "dropout": 0.3},
    8: {"backbone": "bert", "unfreeze_epoch": 2, "unfreeze_layers": 1},
}


def write(folder: Path, content: str | bytes, name: str = "experiment.yaml") -> Path:
    return write_file(folder, name, content)


def refusal(*arguments) -> str:
    """The message with which `load_config(*arguments)` refuses; it has to be a single line."""
    with pytest.raises(InputError) as caught:
        load_config(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def leaves(settings: dict, prefix: str = "") -> dict:
    """Nested settings as one mapping of dotted keys."""
    flat = {}
    for key, value in settings.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


# ---------------------------------------------------------------- the order of the layers


@pytest.fixture
def layered(tmp_path, monkeypatch) -> Path:
    """An experiment file, and two profiles."""
    (tmp_path / "profiles").mkdir()
    monkeypatch.setattr(config, "PROFILES", tmp_path / "profiles")
    write(config.PROFILES, "train: {batch_size: 30, eval_steps: 31, eval_batch_size: 32}\n", "small.yaml")
    write(config.PROFILES, "train: {batch_size: 50, save_steps: 51}\n", "large.yaml")
    return write(tmp_path, "train: {epochs: 20, batch_size: 21, warmup_ratio: 0.5}\n")


def test_profile_overrides_defaults(layered):
    train = load_config(layered, ["profile=small"]).train
    assert (train.eval_steps, train.eval_batch_size) == (31, 32)
    assert train.learning_rate == Config().train.learning_rate


def test_experiment_file_overrides_profile(layered):
    train = load_config(layered, ["profile=small"]).train
    assert (train.epochs, train.batch_size) == (20, 21)


def test_command_line_overrides_experiment_file_and_profile(layered):
    train = load_config(
        layered, ["profile=small", "train.epochs=40", "train.batch_size=41", "train.eval_steps=42"]
    ).train
    assert (train.epochs, train.batch_size, train.eval_steps) == (40, 41, 42)
    assert train.warmup_ratio == 0.5


def test_last_override_of_a_setting_wins(layered):
    assert load_config(layered, ["profile=small", "seed=1", "seed=2"]).seed == 2


def test_profile_of_the_command_line_replaces_that_of_the_file(layered):
    layered.write_text("profile: small\n" + layered.read_text())
    assert load_config(layered).train.eval_steps == 31
    resolved = load_config(layered, ["profile=large"])
    assert resolved.profile == "large"
    assert resolved.train.save_steps == 51
    # Nothing of the profile that it replaces is left.
    assert resolved.train.eval_steps == Config().train.eval_steps


def test_whole_section_on_the_command_line_is_merged(layered):
    train = load_config(layered, ["profile=small", "train={epochs: 7, batch_size: 8}"]).train
    assert (train.epochs, train.batch_size, train.eval_steps, train.warmup_ratio) == (7, 8, 31, 0.5)


@pytest.fixture
def sectioned(layered) -> Path:
    """An experiment file of a Transformer; the profile `small` has a section for Transformers."""
    section = "transformer: {train: {batch_size: 60, epochs: 61, eval_steps: 62}}\n"
    write(config.PROFILES, section + "train: {batch_size: 30, eval_batch_size: 32}\n", "small.yaml")
    return write(layered.parent, "model: {backbone: transformer}\ntrain: {epochs: 20}\n")


def test_profile_section_of_the_backbone_overrides_the_rest_of_the_profile(sectioned):
    train = load_config(sectioned, ["profile=small"]).train
    assert (train.batch_size, train.eval_steps, train.eval_batch_size) == (60, 62, 32)


def test_experiment_file_and_command_line_override_the_profile_section(sectioned):
    train = load_config(sectioned, ["profile=small", "train.eval_steps=42"]).train
    assert (train.epochs, train.eval_steps) == (20, 42)


@pytest.mark.parametrize("override", ["model.backbone=lstm", "model={backbone: lstm}"])
def test_profile_section_of_another_backbone_is_ignored(sectioned, override):
    train = load_config(sectioned, ["profile=small", override]).train
    assert (train.batch_size, train.epochs, train.eval_steps) == (30, 20, Config().train.eval_steps)


def test_profile_section_follows_a_backbone_of_the_command_line(sectioned):
    path = write(sectioned.parent, "seed: 1\n", "lstm.yaml")
    assert load_config(path, ["profile=small"]).train.batch_size == 30
    assert load_config(path, ["profile=small", "model.backbone=transformer"]).train.batch_size == 60


def test_unknown_key_of_a_profile_section_is_refused(sectioned):
    write(config.PROFILES, "transformer: {train: {batch: 32}}\n", "small.yaml")
    assert refusal(sectioned, ["profile=small"]).startswith("profile small: unknown key 'train.batch'")


@pytest.mark.parametrize("section", ["3", "[1]", "text"])
def test_profile_section_that_is_not_a_mapping_is_refused(sectioned, section):
    write(config.PROFILES, f"transformer: {section}\n", "small.yaml")
    message = refusal(sectioned, ["profile=small"])
    assert message.startswith("profile small: transformer: expected key: value settings")


@pytest.fixture
def by_experiment(layered) -> Path:
    """A folder for experiment files, and a profile with a section for LSTMs, one for 2 and one for its variant 2m."""
    text = (
        "lstm: {train: {batch_size: 60}}\nexperiments: {2: {train: {batch_size: 70}}, 2m: {train: {batch_size: 80}}}\n"
    )
    write(config.PROFILES, text, "small.yaml")
    return layered.parent


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("experiment: 2\n", 70),
        ("experiment: 2\nkey: 2x\n", 70),
        ("experiment: 2\nkey: 2m\n", 80),
        ("experiment: 3\n", 60),
        ("seed: 1\n", 60),
        ("experiment: 2\ntrain: {batch_size: 90}\n", 90),
    ],
)
def test_profile_section_of_the_experiment_overrides_that_of_its_backbone(by_experiment, text, expected):
    """A variant has its experiment's, unless it has its own; the experiment file overrides both."""
    path = write(by_experiment, text, "experiment.yaml")
    assert load_config(path, ["profile=small"]).train.batch_size == expected


def test_profile_over_a_base_has_its_settings_and_sections_but_for_its_own(by_experiment):
    own = "base: small\nlstm: {train: {epochs: 9}}\nexperiments: {2m: {train: {batch_size: 81}}}\n"
    write(config.PROFILES, own, "other.yaml")
    for text, size in (("seed: 1\n", 60), ("experiment: 2\n", 70), ("experiment: 2\nkey: 2m\n", 81)):
        resolved = load_config(write(by_experiment, text, "experiment.yaml"), ["profile=other"])
        assert (resolved.profile, resolved.train.epochs, resolved.train.batch_size) == ("other", 9, size)


def test_unknown_base_of_a_profile_is_refused(by_experiment):
    write(config.PROFILES, "base: smal\n", "other.yaml")
    assert refusal(None, ["profile=other"]).startswith("profile: there is no 'smal' (did you mean 'small'?)")


def test_profile_section_of_an_experiment_that_is_not_a_mapping_is_refused(by_experiment):
    write(config.PROFILES, "experiments: {2: 7}\n", "small.yaml")
    path = write(by_experiment, "experiment: 2\n", "experiment.yaml")
    assert refusal(path, ["profile=small"]).startswith("profile small: experiments.2: expected key: value settings")


def test_sections_of_experiments_that_are_not_a_mapping_are_refused(by_experiment):
    write(config.PROFILES, "experiments: 7\n", "small.yaml")
    assert refusal(None, ["profile=small"]).startswith("profile small: experiments: expected key: value settings")


def test_no_file_gives_defaults_profile_and_command_line():
    resolved = load_config(None, ["profile=tiny", "train.epochs=7"])
    assert (resolved.train.epochs, resolved.data.max_train_samples) == (7, 64)
    assert resolved.model == ModelConfig()
    assert refusal(None, ["train.epochs=0"]).startswith("override 'train.epochs=0': train.epochs is 0")
    assert refusal(None, ["data.source=files"]).startswith("settings: data.source=files needs data.train")
    assert load_config(None) == load_config(None, ["profile=imdb"])


def test_profile_defaults_to_imdb(tmp_path):
    path = write(tmp_path, "seed: 5\n")
    assert load_config(path) == load_config(path, ["profile=imdb"])
    assert (load_config(path).seed, load_config(path).run_dir) == (5, "logs/imdb/1_lstm")


# ---------------------------------------------------------------- the committed experiments and profiles


def test_each_experiment_has_one_file():
    assert [int(path.name[0]) for path in EXPERIMENTS] == list(range(1, 9))
    assert {"imdb", "quick", "tiny", "yelp"} <= set(PROFILES)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_have_the_assigned_settings_in_every_profile(path, profile):
    resolved = load_config(path, [f"profile={profile}"])
    number = int(path.name[0])
    assert resolved.experiment == number
    assert path.stem == f"{number}_{resolved.name}"
    assert {name: getattr(resolved.model, name) for name in TABLE[number]} == TABLE[number]
    assert resolved.train.epochs == 2 if number == 8 else resolved.train.epochs >= 3
    if number != 8:
        assert (resolved.model.embedding_size, resolved.model.hidden_size) == (256, 256)
    assert resolved.data.max_length <= 256
    assert resolved.data.tokenizer == "packaged"
    assert resolved.run_dir == f"logs/{profile}/{path.stem}"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_yelp_profile_is_the_protocol_of_the_assignment(path):
    resolved = load_config(path, ["profile=yelp"])
    data, train = resolved.data, resolved.train
    assert (data.source, data.validation_first, data.max_length) == ("yelp", 1000, 256)
    assert (data.max_train_samples, data.max_eval_samples) == (None, None)
    assert (train.batch_size, train.learning_rate, train.adam_eps, train.eval_steps) == (512, 1e-5, 1e-8, 100)


# ---------------------------------------------------------------- key, run folder, architecture


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_key_defaults_to_the_experiment_number(path):
    resolved = load_config(path)
    assert resolved.key == str(resolved.experiment)


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_variant_has_a_key_of_its_own(path):
    resolved = load_config(path)
    assert re.fullmatch(rf"{resolved.experiment}[a-z]\w*", resolved.key)
    assert resolved.run_dir == f"logs/imdb/{path.stem}"


def test_keys_of_experiments_and_variants_are_distinct():
    keys = [load_config(path).key for path in (*EXPERIMENTS, *VARIANTS)]
    assert len(set(keys)) == len(keys), keys
    assert "8t" in keys


def test_run_folder_is_named_by_profile_key_and_name():
    assert load_config(LSTM, ["key=1x", "name=other", "profile=tiny"]).run_dir == "logs/tiny/1x_other"
    assert load_config(LSTM, ["experiment=3", "profile=tiny"]).run_dir == "logs/tiny/3_lstm"


@pytest.mark.parametrize(("text", "key"), [("key=9", "9"), ("key=007", "007"), ("key=4x", "4x"), ("key=null", "null")])
def test_key_is_text(text, key):
    assert load_config(LSTM, [text]).key == key


def test_variant_keeps_its_null_where_the_profile_sets_a_value():
    """All layers of 8t are trained: no outputs of frozen layers are cached, though profiles ask for them."""
    path = CONFIGS / "variants" / "8t_minilm_all_layers.yaml"
    for profile in ("quick", "tiny", "imdb"):
        assert load_config(MINILM, [f"profile={profile}"]).train.cache_frozen_features is not None
        assert load_config(path, [f"profile={profile}"]).train.cache_frozen_features is None, profile


@pytest.mark.parametrize(
    ("overrides", "architecture"),
    [
        ([], "MiniLM, last layer fine-tuned"),
        (["model.pretrained=bert-base-uncased"], "bert-base-uncased, last layer fine-tuned"),
    ],
)
def test_architecture_of_experiment_8_names_the_encoder_that_runs(overrides, architecture):
    assert load_config(MINILM, overrides).architecture == architecture


# ---------------------------------------------------------------- what a value may look like


def test_scientific_notation_without_a_point_is_a_float(tmp_path):
    assert yaml.safe_load("1e-5") == "1e-5"
    train = load_config(write(tmp_path, "train:\n  learning_rate: 1e-5\n"), ["train.adam_eps=1e-7"]).train
    assert (train.learning_rate, train.adam_eps) == (1e-5, 1e-7)
    assert type(train.learning_rate) is type(train.adam_eps) is float


def test_integer_is_accepted_for_a_float():
    rate = load_config(LSTM, ["train.learning_rate=1"]).train.learning_rate
    assert (rate, type(rate)) == (1.0, float)


def test_null_unsets_an_optional_setting():
    assert load_config(LSTM, ["train.max_grad_norm=null"]).train.max_grad_norm is None
    assert load_config(LSTM, ["data.revision=null"]).data.revision is None


def test_null_is_refused_for_a_required_setting():
    message = refusal(LSTM, ["train.epochs=null"])
    assert re.match(r"override 'train\.epochs=null': train\.epochs: .*'null'.*; expected int$", message)


def test_override_value_may_contain_an_equals_sign():
    assert load_config(LSTM, ["run_dir=logs/rate=high"]).run_dir == "logs/rate=high"


@pytest.mark.parametrize(
    "text",
    ["logs/try #2", "010", "1e3", "no", "true", "null", "'quoted'", '"quoted"', "a: b", "[a", "- a", "{a: b}", "!x"],
)
def test_text_of_the_command_line_is_taken_as_it_looks(text):
    resolved = load_config(LSTM, [f"name={text}", f"data.tokenizer={text}"])
    assert (resolved.name, resolved.data.tokenizer) == (text, text)
    assert config_from_dict(yaml.safe_load(to_yaml(resolved)), "config.yaml") == resolved


def test_number_of_the_command_line_is_taken_as_it_looks():
    resolved = load_config(LSTM, ["train.epochs=010", "train.learning_rate=1e-4", "seed=8"])
    assert (resolved.train.epochs, resolved.train.learning_rate, resolved.seed) == (10, 1e-4, 8)


def test_home_folder_of_a_path_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path, "data: {cache_dir: ~/cache, source: files, train: ~/a.csv}\n")
    resolved = load_config(path, ["run_dir=~/logs/a~b", "data.tokenizer=~/bert", "model.pretrained=~/bert"])
    assert resolved.run_dir == f"{tmp_path}/logs/a~b"
    assert (resolved.data.cache_dir, resolved.data.train) == (f"{tmp_path}/cache", f"{tmp_path}/a.csv")
    assert resolved.data.tokenizer == resolved.model.pretrained == f"{tmp_path}/bert"


# ---------------------------------------------------------------- what labels stand for


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("{neg: 0, pos: 1}", {"neg": 0, "pos": 1}),
        ("{1: 0, 2: 0, 3: null, 4: 1, 5: 1}", {"1": 0, "2": 0, "3": None, "4": 1, "5": 1}),
        ("{false: 0, true: 1}", {"false": 0, "true": 1}),
        ("{'no': 0, 'yes': 1}", {"no": 0, "yes": 1}),
        ("{'bad one': 0, good: 1}", {"bad one": 0, "good": 1}),
        ("null", None),
    ],
)
def test_labels_are_read_alike_from_a_file_and_the_command_line(tmp_path, text, labels):
    path = write(tmp_path, f"data: {{labels: {text}}}\n")
    assert load_config(path).data.labels == load_config(LSTM, [f"data.labels={text}"]).data.labels == labels
    assert load_config(path, ["profile=tiny"]).data.labels == labels


@pytest.mark.parametrize(
    "text", ["{neg: 0}", "{neg: 0, pos: 2}", "{a: 0, b: 1, c: 7}", "{}", "[0, 1]", "neg", "{a: x}"]
)
def test_labels_that_are_not_both_classes_are_refused(text):
    message = refusal(LSTM, [f"data.labels={text}"])
    assert message.startswith(f"override 'data.labels={text}': data.labels")
    assert message.endswith("; expected a mapping of labels to 0, 1 (both) or null")


# ---------------------------------------------------------------- unknown keys


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("train.epoch", "train.epochs"),
        ("model.droput", "model.dropout"),
        ("epochs", "train.epochs"),
        ("max_grad_norm", "train.max_grad_norm"),
        ("sed", "seed"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_one(tmp_path, unknown, meant):
    section, _, key = unknown.rpartition(".")
    path = write(tmp_path, yaml.safe_dump({section: {key: 1}} if section else {key: 1}))
    message = f"unknown key {unknown!r} (did you mean {meant!r}?); see --help for all keys"
    assert refusal(path) == f"{path}: {message}"
    assert refusal(LSTM, [f"{unknown}=1"]) == f"override '{unknown}=1': {message}"


def test_unknown_key_of_a_profile_names_the_profile(layered):
    write(config.PROFILES, "train: {batchsize: 3}\n", "small.yaml")
    assert refusal(layered, ["profile=small"]).startswith(
        "profile small: unknown key 'train.batchsize' (did you mean 'train.batch_size'?)"
    )


def test_unknown_key_that_resembles_none_gets_no_suggestion():
    message = refusal(LSTM, ["zzzzzz=1"])
    assert message == "override 'zzzzzz=1': unknown key 'zzzzzz'; see --help for all keys"


# ---------------------------------------------------------------- wrong types, values out of range


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.epochs", "two", "int"),
        ("train.epochs", "2.5", "int"),
        ("train.epochs", "true", "int"),
        ("train.epochs", "[1, 2]", "int"),
        ("train.learning_rate", "fast", "float"),
        ("train.max_grad_norm", "none", "float or null"),
        ("data.max_train_samples", "many", "int or null"),
        ("model.decoder", "maybe", "bool"),
    ],
)
def test_value_of_a_wrong_type_is_refused_with_the_expected_type(tmp_path, key, value, expected):
    section, name = key.split(".")
    path = write(tmp_path, f"{section}:\n  {name}: {value}\n")
    for origin, arguments in ((str(path), (path,)), (f"override '{key}={value}'", (LSTM, [f"{key}={value}"]))):
        message = refusal(*arguments)
        assert message.startswith(f"{origin}: {key}: ")
        assert value.strip("[]").split(",")[0].lower() in message.removeprefix(f"{origin}: {key}: ").lower()
        assert message.endswith(f"; expected {expected}")


def test_list_in_a_file_is_refused_where_a_text_is_expected(tmp_path):
    message = refusal(path := write(tmp_path, "data: {train: [a.csv]}\n"))
    assert message.startswith(f"{path}: data.train: ")
    assert message.endswith("; expected str or null")


@pytest.mark.parametrize("value", ["3", "null", "[a]"])
def test_section_that_is_not_a_mapping_is_refused(tmp_path, value):
    path = write(tmp_path, f"train: {value}\n")
    assert re.match(re.escape(f"{path}: ") + r".*train.*; expected key: value settings", refusal(path), re.IGNORECASE)


@pytest.mark.parametrize(
    ("key", "value", "shown", "expected"),
    [
        ("model.dropout", "-0.1", "-0.1", "float and at least 0 and below 1"),
        ("model.dropout", "1.0", "1.0", "float and at least 0 and below 1"),
        ("train.learning_rate", "nan", "nan", "float and above 0"),
        ("train.learning_rate", "inf", "inf", "float and above 0"),
        ("train.learning_rate", "-inf", "-inf", "float and above 0"),
        ("train.learning_rate", "0", "0.0", "float and above 0"),
        ("train.weight_decay", "nan", "nan", "float and at least 0"),
        ("train.max_grad_norm", "0", "0.0", "float or null and above 0"),
        ("train.epochs", "0", "0", "int and at least 1"),
        ("train.batch_size", "-4", "-4", "int and at least 1"),
        ("data.max_length", "2", "2", "int and at least 3 and at most 512"),
        ("data.max_length", "513", "513", "int and at least 3 and at most 512"),
        ("data.test_fraction", "0.5", "0.5", "float and above 0 and below 0.5"),
        ("data.max_train_samples", "1", "1", "int or null and at least 2"),
        ("model.backbone", "hub", "'hub'", "one of lstm, transformer, bert, embedding"),
        ("model.block", "middle", "'middle'", "one of prenorm, postnorm"),
    ],
)
def test_value_out_of_range_is_refused_with_the_range(tmp_path, key, value, shown, expected):
    section, name = key.split(".")
    path = write(tmp_path, f"{section}:\n  {name}: {value}\n")
    assert refusal(path) == f"{path}: {key} is {shown}; expected {expected}"
    assert refusal(LSTM, [f"{key}={value}"]).endswith(f": {key} is {shown}; expected {expected}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.dropout", "0"),
        ("model.dropout", "0.999"),
        ("data.max_length", "3"),
        ("data.max_length", "512"),
        ("train.epochs", "1"),
        ("data.test_fraction", "0.499"),
        ("data.max_train_samples", "2"),
    ],
)
def test_value_at_the_edge_of_its_range_is_accepted(key, value):
    section, name = key.split(".")
    assert getattr(getattr(load_config(LSTM, [f"{key}={value}"]), section), name) == float(value)


@pytest.mark.parametrize(
    ("path", "overrides", "message"),
    [
        (TRANSFORMER, ["model.num_heads=3"], "model.num_heads=3 must divide model.embedding_size=256"),
        (TRANSFORMER, ["model.embedding_size=30"], "model.num_heads=4 must divide model.embedding_size=30"),
        (TRANSFORMER, ["data.max_length=300"], "data.max_length is 300; the transformer has 256 positions"),
        (TRANSFORMER, ["data.max_length=257"], "data.max_length is 257; the transformer has 256 positions"),
        (LSTM, ["model.attention=true"], "model.attention=true needs model.decoder=true"),
        (
            LSTM,
            ["data.source=files"],
            "data.source=files needs data.train=FILE (.csv, .tsv, .json, .jsonl, .parquet or a folder)",
        ),
        (
            LSTM,
            ["device=cpu", "train.precision=fp16"],
            "train.precision=fp16 needs CUDA, and device=cpu; use fp32 or bf16",
        ),
    ],
)
def test_incompatible_settings_are_refused(path, overrides, message):
    assert refusal(path, overrides).endswith(f": {message}")


@pytest.mark.parametrize(
    ("path", "overrides"),
    [
        (TRANSFORMER, ["model.num_heads=8"]),
        (LSTM, ["model.num_heads=3"]),
        (LSTM, ["data.max_length=300"]),
        (LSTM, ["model.attention=true", "model.decoder=true"]),
        (LSTM, ["data.source=files", "data.train=reviews.csv"]),
        (LSTM, ["device=cpu", "train.precision=bf16"]),
        (LSTM, ["device=cuda", "train.precision=fp16"]),
    ],
)
def test_compatible_settings_are_accepted(path, overrides):
    resolved = leaves(dataclasses.asdict(load_config(path, overrides)))
    for text in overrides:
        key, _, value = text.partition("=")
        assert resolved[key] == yaml.safe_load(value)


# ---------------------------------------------------------------- unreadable files, profiles and overrides


@pytest.mark.parametrize(
    "content",
    [
        b"train: [1, 2",
        b"a:\tb\n\tc: d",
        b"seed: 1\nseed: 2\n",
        b"seed: 1\n---\nseed: 2\n",
        b"name: ${",
        bytes(range(256)),
        b"\x00\x01\x02",
        b"\x89PNG\r\n\x1a\n",
        pytest.param(b"[" * 700, id="nested too deep"),
    ],
)
def test_file_that_is_not_yaml_is_refused(tmp_path, content):
    path = write(tmp_path, content)
    assert refusal(path).startswith(f"{path}: not a YAML file of settings: ")


def test_yaml_list_is_refused(tmp_path):
    path = write(tmp_path, "- seed: 1\n- seed: 2\n")
    assert refusal(path).startswith(f"{path}: expected `key: value` settings, found a list")


@pytest.mark.parametrize("content", ["3\n", "true\n", "2.5\n", "!!set {seed}\n"])
def test_yaml_scalar_is_refused(tmp_path, content):
    path = write(tmp_path, content)
    assert refusal(path).startswith(f"{path}: ")


def test_yaml_tags_execute_no_code(tmp_path):
    tag = f"!!python/object/apply:os.mkdir ['{tmp_path / 'made'}']"
    path = write(tmp_path, f"name: {tag}\n")
    assert refusal(path).startswith(f"{path}: not a YAML file of settings: ")
    assert load_config(LSTM, [f"name={tag}"]).name == tag
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", ["", "\n", "# only a comment\n", "{}"])
def test_empty_file_leaves_the_defaults(tmp_path, content):
    assert load_config(write(tmp_path, content), ["profile=tiny"]).model == ModelConfig()
    expected = load_config(write(tmp_path, "profile: imdb\n", "named.yaml"))
    assert load_config(write(tmp_path, content)) == expected


def test_missing_file_is_refused_with_the_files_there_are(tmp_path):
    path = tmp_path / "missing.yaml"
    assert refusal(path) == f"{path}: no such file; the experiments are configs/1_*.yaml to configs/8_*.yaml"
    assert refusal(tmp_path).startswith(f"{tmp_path}: no such file")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("yelpp", "'yelpp' (did you mean 'yelp'?)"),
        ("zzz", "'zzz'"),
        ("../profiles/tiny", "'../profiles/tiny'"),
    ],
)
def test_unknown_profile_is_refused_with_the_profiles_there_are(tmp_path, name, shown):
    message = f"profile: there is no {shown}; there are {', '.join(PROFILES)}"
    assert refusal(LSTM, [f"profile={name}"]) == message
    assert refusal(write(tmp_path, f"profile: {name}\n")) == message


@pytest.mark.parametrize(
    ("name", "shown"), [("3", "3"), ("null", "None"), ("[imdb]", "['imdb'] (did you mean 'imdb'?)")]
)
def test_profile_of_a_file_that_is_no_text_is_refused(tmp_path, name, shown):
    message = f"profile: there is no {shown}; there are {', '.join(PROFILES)}"
    assert refusal(write(tmp_path, f"profile: {name}\n")) == message


@pytest.mark.parametrize("reference", ["${name}", "${nothing}"])
def test_profile_that_refers_to_another_setting_is_refused(reference):
    assert refusal(LSTM, [f"profile={reference}"]).startswith("profile")


@pytest.mark.parametrize("text", ["train.epochs", "=3", "", "="])
def test_override_without_key_and_value_is_refused(text):
    assert refusal(LSTM, [text]) == f"override {text!r}: expected key=value, such as train.epochs=3"


@pytest.mark.parametrize("text", ["model=[a", "data.labels={a", "model=a: b: c", "name=${", "overwrite=\x07"])
def test_override_whose_value_is_not_yaml_is_refused(text):
    assert refusal(LSTM, [text]).startswith(f"override {text!r}: ")


@pytest.mark.parametrize("reference", ["${nothing}", "${name}"])
def test_unresolvable_reference_is_refused(reference):
    assert "nterpolation" in refusal(LSTM, [f"name={reference}"])


# ---------------------------------------------------------------- JSON


def test_read_json_returns_the_object_of_a_file(tmp_path):
    content = {"loss": 0.25, "steps": [1, 2], "name": "caf\u00e9", "best": None}
    path = write(tmp_path, json.dumps(content, ensure_ascii=False), "summary.json")
    assert read_json(path) == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not readable as JSON (Expecting value"),
        ('{"loss": 1', "not readable as JSON (Expecting ',' delimiter"),
        (b'{"name": "caf\xe9"}', "not readable as JSON ('utf-8' codec can't decode byte 0xe9"),
        ('{"loss": NaN}', "not readable as JSON (NaN is not a finite number)"),
        ('{"loss": -Infinity}', "not readable as JSON (-Infinity is not a finite number)"),
        ('{"loss": 1e400}', "not readable as JSON (1e400 is not a finite number)"),
        ("[" * 100_000, "not readable as JSON (maximum recursion depth exceeded"),
        ("[1, 2]", "found a list; expected a JSON object"),
        ("3", "found a int; expected a JSON object"),
        ("null", "found a NoneType; expected a JSON object"),
    ],
    ids=["empty", "cut", "latin-1", "nan", "infinity", "overflow", "nested", "list", "number", "null"],
)
def test_read_json_refuses_what_is_not_an_object_of_finite_numbers(tmp_path, content, message):
    path = write(tmp_path, content, "summary.json")
    with pytest.raises(InputError, match="^" + re.escape(f"{path}: {message}")):
        read_json(path)


def test_read_json_refuses_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(InputError, match=re.escape(f"{path}: not readable as JSON")):
            read_json(path)


# ---------------------------------------------------------------- the help, and settings as an object


def test_help_lists_every_setting_with_its_default():
    text = describe_settings()
    # Of the dataclass itself: the run folder is shown with its references, unresolved.
    settings = leaves(dataclasses.asdict(Config()))
    assert len(settings) > 40
    for key, default in settings.items():
        shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
        assert re.search(rf"^  {re.escape(key)} \(.*; default {re.escape(shown)}\)\n      \S", text, re.MULTILINE), key


def test_help_shows_accepted_values():
    text = describe_settings()
    assert "  data.max_length (int, at least 3 and at most 512; default 256)" in text
    assert "  train.precision (one of fp32, bf16, fp16; default fp32)" in text
    assert "  train.max_grad_norm (float or null, above 0; default 1.0)" in text


def test_config_is_frozen():
    resolved = load_config(LSTM)
    for section, name in ((resolved, "seed"), (resolved.data, "source"), (resolved.model, "dropout")):
        with pytest.raises(dataclasses.FrozenInstanceError, match=name):
            setattr(section, name, 0)
    with pytest.raises(dataclasses.FrozenInstanceError, match="epochs"):
        resolved.train.epochs = 4


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_config_survives_a_yaml_round_trip(path):
    # Values that YAML could take for something else, and every kind of null.
    overrides = ["profile=tiny", "train.learning_rate=1e-5", "data.revision=1234", "train.max_grad_norm=null"]
    resolved = load_config(path, [*overrides, "run_dir=logs/a: #1", "name=null", "overwrite=true"])
    assert resolved.name == "null"
    assert resolved.data.revision == "1234"
    again = config_from_dict(yaml.safe_load(to_yaml(resolved)), "config.yaml")
    assert again == resolved
    assert isinstance(again, Config)


def test_section_survives_a_dictionary_round_trip():
    model = load_config(TRANSFORMER, ["model.num_heads=8"]).model
    assert config_from_dict(dataclasses.asdict(model), "settings.json", ModelConfig) == model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": {"epoch": 1}}, "run: unknown key 'train.epoch' (did you mean 'train.epochs'?)"),
        ({"train": {"epochs": "two"}}, "run: train.epochs: Value 'two'"),
        ({"train": {"epochs": 0}}, "run: train.epochs is 0; expected int and at least 1"),
        ([1], "run: "),
    ],
)
def test_dictionary_of_settings_is_checked_like_a_file(settings, message):
    with pytest.raises(InputError, match="^" + re.escape(message)):
        config_from_dict(settings, "run")


@pytest.mark.parametrize("name", ["${nothing}", "${"])
def test_dictionary_with_an_unresolvable_reference_is_refused(name):
    with pytest.raises(InputError, match="^run: "):
        config_from_dict({"name": name}, "run")


def test_dictionary_of_incompatible_settings_is_refused():
    with pytest.raises(InputError, match=r"^run: model\.attention=true needs model\.decoder=true$"):
        config_from_dict({"model": {"attention": True}}, "run")


def test_resolved_config_is_an_experiment_file_of_the_same_run(tmp_path):
    """Its settings win over the profile that it names, and over one that the command line names."""
    resolved = load_config(TRANSFORMER, ["profile=quick", "data.max_train_samples=77", "seed=3", "key=5x"])
    path = write(tmp_path, to_yaml(resolved), "config.yaml")
    assert load_config(path) == resolved
    assert load_config(path, ["profile=yelp"]) == dataclasses.replace(resolved, profile="yelp")


def test_override_out_of_range_is_named_rather_than_the_file():
    assert refusal(LSTM, ["model.dropout=-1"]).startswith("override 'model.dropout=-1': model.dropout is -1.0")


@pytest.mark.parametrize("text", ["train.epochs=???", "seed=???"])
def test_missing_value_marker_is_refused(text):
    assert refusal(LSTM, [text]) == f"override {text!r}: {text.partition('=')[0]} is '???'; expected a value"
