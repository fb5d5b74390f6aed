"""config.py: the order of the layers, the eight experiments, and what is refused with which message."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

import config
from config import Config, InputError, ModelConfig, config_from_dict, describe_settings, load_config, to_yaml

CONFIGS = Path(config.__file__).resolve().parent / "configs"
EXPERIMENTS = sorted(CONFIGS.glob("[1-8]_*.yaml"))
PROFILES = sorted(path.stem for path in (CONFIGS / "profiles").glob("*.yaml"))
LSTM = CONFIGS / "1_lstm.yaml"
TRANSFORMER = CONFIGS / "5_transformer_prenorm.yaml"

# The table of DESIGN.md; what it does not say of a model is not compared.
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
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(*arguments) -> str:
    """The message with which `load_config(*arguments)` refuses; it has to be a single line."""
    with pytest.raises(InputError) as caught:
        load_config(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def leaves(settings: dict, prefix: str = "") -> dict:
    """Nested settings as one mapping of dotted keys."""
    found = {}
    for key, value in settings.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


# ---------------------------------------------------------------- the order of the layers


@pytest.fixture
def layered(tmp_path, monkeypatch) -> Path:
    """An experiment file, and two profiles."""
    (tmp_path / "profiles").mkdir()
    monkeypatch.setattr(config, "PROFILES", tmp_path / "profiles")
    write(tmp_path / "profiles", "train: {batch_size: 30, eval_steps: 31}\n", "small.yaml")
    write(tmp_path / "profiles", "train: {batch_size: 50, epochs: 51}\n", "large.yaml")
    return write(tmp_path, "train: {epochs: 20, batch_size: 21, eval_steps: 22}\n")


def test_a_later_layer_wins_over_an_earlier_one(layered):
    train = load_config(layered, ["profile=small", "train.eval_steps=40"]).train
    assert train.eval_batch_size == Config().train.eval_batch_size
    assert train.epochs == 20
    assert train.batch_size == 30
    assert train.eval_steps == 40


def test_the_last_override_of_a_setting_wins(layered):
    assert load_config(layered, ["profile=small", "seed=1", "seed=2"]).seed == 2


def test_the_profile_of_the_command_line_replaces_that_of_the_file(layered):
    layered.write_text("profile: small\n" + layered.read_text())
    resolved = load_config(layered, ["profile=large"])
    assert resolved.profile == "large"
    assert (resolved.train.batch_size, resolved.train.epochs, resolved.train.eval_steps) == (50, 51, 22)


def test_a_whole_section_can_be_given_on_the_command_line(layered):
    train = load_config(layered, ["profile=small", "train={epochs: 7, batch_size: 8}"]).train
    assert (train.epochs, train.batch_size, train.eval_steps) == (7, 8, 31)


def test_a_profiles_section_of_a_backbone_is_for_its_models_only(layered):
    profile = layered.parent / "profiles" / "small.yaml"
    profile.write_text("transformer: {train: {batch_size: 32, epochs: 9, eval_steps: 5}}\ntrain: {batch_size: 30}\n")
    layered.write_text("model: {backbone: transformer}\ntrain: {epochs: 8}\n")
    train = load_config(layered, ["profile=small"]).train
    # The weakest of the layers: the file and the rest of the profile win over it.
    assert (train.batch_size, train.epochs, train.eval_steps) == (30, 8, 5)
    assert load_config(layered, ["profile=small", "train.eval_steps=7"]).train.eval_steps == 7
    other = load_config(layered, ["profile=small", "model.backbone=lstm"]).train
    assert (other.batch_size, other.epochs, other.eval_steps) == (30, 8, 100)
    profile.write_text("transformer: {train: {batch: 32}}\n")
    with pytest.raises(InputError, match="profile small: unknown key 'train.batch'"):
        load_config(layered, ["profile=small"])


def test_a_file_without_a_profile_gets_the_default_one(tmp_path):
    path = write(tmp_path, "seed: 5\n")
    assert load_config(path) == load_config(path, ["profile=imdb"])
    assert (load_config(path).seed, load_config(path).run_dir) == (5, "logs/imdb/1_lstm")


# ---------------------------------------------------------------- the experiments and profiles as they come


def test_there_is_one_file_for_each_experiment():
    assert [int(path.name[0]) for path in EXPERIMENTS] == list(range(1, 9))
    assert {"imdb", "quick", "tiny", "yelp"} <= set(PROFILES)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_each_experiment_has_the_settings_of_the_design_in_every_profile(path, profile):
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
def test_the_yelp_profile_is_the_protocol_of_the_assignment(path):
    resolved = load_config(path, ["profile=yelp"])
    data, train = resolved.data, resolved.train
    assert (data.source, data.validation_first, data.max_length) == ("yelp", 1000, 256)
    assert (data.max_train_samples, data.max_eval_samples) == (None, None)
    assert (train.batch_size, train.learning_rate, train.adam_eps, train.eval_steps) == (512, 1e-5, 1e-8, 100)


# ---------------------------------------------------------------- what a value may look like


def test_a_number_that_pyyaml_reads_as_text_is_a_float(tmp_path):
    assert yaml.safe_load("1e-5") == "1e-5"
    train = load_config(write(tmp_path, "train:\n  learning_rate: 1e-5\n"), ["train.adam_eps=1e-7"]).train
    assert (train.learning_rate, train.adam_eps) == (1e-5, 1e-7)
    assert type(train.learning_rate) is type(train.adam_eps) is float


def test_an_integer_is_a_float_where_a_float_is_asked_for():
    rate = load_config(LSTM, ["train.learning_rate=1"]).train.learning_rate
    assert (rate, type(rate)) == (1.0, float)


def test_null_unsets_a_setting_that_may_be_unset():
    assert load_config(LSTM, ["train.max_grad_norm=null"]).train.max_grad_norm is None


def test_null_is_refused_where_a_value_is_needed():
    message = refusal(LSTM, ["train.epochs=null"])
    assert re.match(r"override 'train\.epochs=null': train\.epochs: .*None.*; expected int$", message)


def test_a_value_may_hold_an_equals_sign():
    assert load_config(LSTM, ["run_dir=logs/rate=high"]).run_dir == "logs/rate=high"


def test_the_run_folder_follows_a_new_name():
    assert load_config(LSTM, ["name=other", "profile=tiny"]).run_dir == "logs/tiny/1_other"


# ---------------------------------------------------------------- unknown keys


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("train.epoch", "train.epochs"),
        ("model.droput", "model.dropout"),
        ("epochs", "train.epochs"),
        ("max_grad_norm", "train.max_grad_norm"),
        ("sed", "seed"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(tmp_path, given, meant):
    section, _, key = given.rpartition(".")
    path = write(tmp_path, yaml.safe_dump({section: {key: 1}} if section else {key: 1}))
    wanted = f"unknown key {given!r} (did you mean {meant!r}?); see --help for all keys"
    assert refusal(path) == f"{path}: {wanted}"
    assert refusal(LSTM, [f"{given}=1"]) == f"override '{given}=1': {wanted}"


def test_an_unknown_key_of_a_profile_is_refused_with_the_profile(layered):
    write(config.PROFILES, "train: {batchsize: 3}\n", "small.yaml")
    assert refusal(layered, ["profile=small"]).startswith(
        "profile small: unknown key 'train.batchsize' (did you mean 'train.batch_size'?)"
    )


def test_an_unknown_key_that_resembles_nothing_gets_no_suggestion():
    message = refusal(LSTM, ["zzzzzz=1"])
    assert message == "override 'zzzzzz=1': unknown key 'zzzzzz'; see --help for all keys"


# ---------------------------------------------------------------- values of another type, or out of range


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
        ("data.train", "[a.csv]", "str or null"),
        ("train.precision", "[fp32]", "one of fp32, bf16, fp16"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_type_expected(tmp_path, key, value, expected):
    section, name = key.split(".")
    path = write(tmp_path, f"{section}:\n  {name}: {value}\n")
    for origin, arguments in ((str(path), (path,)), (f"override '{key}={value}'", (LSTM, [f"{key}={value}"]))):
        message = refusal(*arguments)
        assert message.startswith(f"{origin}: {key}: ")
        assert value.strip("[]").split(",")[0].lower() in message.removeprefix(f"{origin}: {key}: ").lower()
        assert message.endswith(f"; expected {expected}")


@pytest.mark.parametrize("value", ["3", "null", "[a]"])
def test_a_section_that_is_no_mapping_is_refused(tmp_path, value):
    path = write(tmp_path, f"train: {value}\n")
    assert re.match(re.escape(f"{path}: ") + r".*train.*; expected key: value settings", refusal(path), re.IGNORECASE)


@pytest.mark.parametrize(
    ("key", "value", "shown", "expected"),
    [
        ("model.dropout", "-0.1", "-0.1", "float and at least 0 and below 1"),
        ("model.dropout", "1.0", "1.0", "float and at least 0 and below 1"),
        ("train.learning_rate", "nan", "nan", "float and above 0"),
        ("train.learning_rate", ".nan", "nan", "float and above 0"),
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
        ("model.backbone", "hub", "'hub'", "one of lstm, transformer, bert"),
        ("model.block", "middle", "'middle'", "one of prenorm, postnorm"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(tmp_path, key, value, shown, expected):
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
def test_a_value_at_the_edge_of_its_range_is_taken(key, value):
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
        (LSTM, ["data.source=files"], "data.source=files needs data.train=FILE (.csv, .json, .jsonl or .parquet)"),
        (
            LSTM,
            ["device=cpu", "train.precision=fp16"],
            "train.precision=fp16 needs CUDA; on a CPU fp32 and bf16 work",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(path, overrides, message):
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
def test_settings_that_go_together_are_taken(path, overrides):
    resolved = leaves(dataclasses.asdict(load_config(path, overrides)))
    for text in overrides:
        key, _, value = text.partition("=")
        assert resolved[key] == yaml.safe_load(value)


# ---------------------------------------------------------------- files, profiles and overrides that can't be read


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
    ],
)
def test_a_file_that_is_no_yaml_is_refused(tmp_path, content):
    path = write(tmp_path, content)
    assert refusal(path).startswith(f"{path}: not a YAML file of settings: ")


def test_a_yaml_list_is_refused(tmp_path):
    path = write(tmp_path, "- seed: 1\n- seed: 2\n")
    assert refusal(path).startswith(f"{path}: expected `key: value` settings, found a list")


@pytest.mark.parametrize("content", ["3\n", "true\n", "2.5\n", "!!set {seed}\n"])
def test_a_yaml_value_that_is_no_mapping_is_refused(tmp_path, content):
    path = write(tmp_path, content)
    assert refusal(path).startswith(f"{path}: ")


@pytest.mark.parametrize("content", ["", "\n", "# only a comment\n", "{}"])
def test_a_file_without_settings_leaves_the_defaults(tmp_path, content):
    assert load_config(write(tmp_path, content), ["profile=tiny"]).model == ModelConfig()
    expected = load_config(write(tmp_path, "profile: imdb\n", "named.yaml"))
    assert load_config(write(tmp_path, content)) == expected


def test_a_missing_file_is_refused_with_what_there_is(tmp_path):
    path = tmp_path / "missing.yaml"
    assert refusal(path) == f"{path}: no such file; the experiments are configs/1_*.yaml to configs/8_*.yaml"
    assert refusal(tmp_path).startswith(f"{tmp_path}: no such file")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("yelpp", "'yelpp' (did you mean 'yelp'?)"),
        ("zzz", "'zzz'"),
        ("../profiles/tiny", "'../profiles/tiny'"),
        ("3", "3"),
        ("null", "None"),
        ("[imdb]", "['imdb'] (did you mean 'imdb'?)"),
    ],
)
def test_an_unknown_profile_is_refused_with_those_there_are(tmp_path, name, shown):
    wanted = f"profile: there is no {shown}; there are {', '.join(PROFILES)}"
    assert refusal(LSTM, [f"profile={name}"]) == wanted
    assert refusal(write(tmp_path, f"profile: {name}\n")) == wanted


@pytest.mark.parametrize("reference", ["${name}", "${nothing}"])
def test_a_profile_that_refers_to_another_setting_is_refused(reference):
    assert refusal(LSTM, [f"profile={reference}"]).startswith("profile")


@pytest.mark.parametrize("text", ["train.epochs", "=3", "", "="])
def test_an_override_without_key_and_value_is_refused(text):
    assert refusal(LSTM, [text]) == f"override {text!r}: expected key=value, such as train.epochs=3"


@pytest.mark.parametrize("text", ["name=[a", "name={a", "name=a: b: c", "name=${", "name=\x07"])
def test_an_override_whose_value_is_no_yaml_is_refused(text):
    assert refusal(LSTM, [text]).startswith(f"override {text!r}: ")


@pytest.mark.parametrize("reference", ["${nothing}", "${name}"])
def test_a_reference_that_leads_nowhere_is_refused(reference):
    assert "nterpolation" in refusal(LSTM, [f"name={reference}"])


# ---------------------------------------------------------------- the help, and settings as an object


def test_the_help_names_every_setting_with_its_default():
    text = describe_settings()
    # The defaults of the dataclass itself: the run folder is shown as it is written, unresolved.
    settings = leaves(dataclasses.asdict(Config()))
    assert len(settings) > 40
    for key, default in settings.items():
        shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
        assert re.search(rf"^  {re.escape(key)} \(.*; default {re.escape(shown)}\)\n      \S", text, re.MULTILINE), key


def test_the_help_says_what_is_accepted():
    text = describe_settings()
    assert "  data.max_length (int, at least 3 and at most 512; default 256)" in text
    assert "  train.precision (one of fp32, bf16, fp16; default fp32)" in text
    assert "  train.max_grad_norm (float or null, above 0; default 1.0)" in text


def test_a_config_is_frozen():
    resolved = load_config(LSTM)
    for section, name in ((resolved, "seed"), (resolved.data, "source"), (resolved.model, "dropout")):
        with pytest.raises(dataclasses.FrozenInstanceError, match=name):
            setattr(section, name, 0)
    with pytest.raises(dataclasses.FrozenInstanceError, match="epochs"):
        resolved.train.epochs = 4


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_config_written_as_yaml_reads_back_equal(path):
    # Values that YAML could take for something else, and every kind of null.
    overrides = ["profile=tiny", "train.learning_rate=1e-5", "data.revision='1234'", "train.max_grad_norm=null"]
    resolved = load_config(path, [*overrides, "run_dir='logs/a: #1'", "name='null'", "overwrite=true"])
    assert resolved.name == "null"
    assert resolved.data.revision == "1234"
    again = config_from_dict(yaml.safe_load(to_yaml(resolved)), "config.yaml")
    assert again == resolved
    assert isinstance(again, Config)


def test_a_section_alone_reads_back_equal():
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
def test_a_dictionary_of_settings_is_checked_as_a_file_is(settings, message):
    with pytest.raises(InputError, match="^" + re.escape(message)):
        config_from_dict(settings, "run")


@pytest.mark.parametrize("name", ["${nothing}", "${"])
def test_a_dictionary_with_a_reference_that_leads_nowhere_is_refused(name):
    with pytest.raises(InputError, match="^run: "):
        config_from_dict({"name": name}, "run")


def test_a_dictionary_of_settings_that_do_not_go_together_is_refused():
    with pytest.raises(InputError, match=r"^run: model\.attention=true needs model\.decoder=true$"):
        config_from_dict({"model": {"attention": True}}, "run")


def test_a_resolved_config_is_an_experiment_file_that_gives_the_same_run(tmp_path):
    """Its own settings must not be overwritten by the profile that it names."""
    config = load_config("configs/5_transformer_prenorm.yaml", ["profile=quick", "data.max_train_samples=77", "seed=3"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config
    again = load_config(tmp_path / "config.yaml", ["profile=yelp"])
    assert (again.data.source, again.train.batch_size) == ("yelp", 512)


def test_an_override_out_of_range_is_blamed_and_not_the_file():
    assert refusal(LSTM, ["model.dropout=-1"]).startswith("override 'model.dropout=-1': model.dropout is -1.0")


@pytest.mark.parametrize("text", ["train.epochs=???", "seed=???"])
def test_a_value_that_is_left_open_is_refused(text):
    assert refusal(LSTM, [text]) == f"override {text!r}: {text.partition('=')[0]} is '???'; expected a value"
