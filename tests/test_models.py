"""models.py: the classifier over each backbone: settings, learning, freezing, saving."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from config import CONFIGS, InputError, ModelConfig, load_config
from data import load_tokenizer
from helpers import EXPERIMENTS, assert_close, assert_same_tensors, ragged_mask
from models import (
    BertBackbone,
    ReviewClassifier,
    ReviewConfig,
    build_model,
    count_parameters,
    load_model,
    save_model,
)
from transformer_solution import PostNormAttentionBlock, PreNormAttentionBlock


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("packaged")


def make_model(experiment: str, *overrides: str, vocabulary_size: int = 30522) -> ReviewClassifier:
    config = load_config(CONFIGS / f"{experiment}.yaml", overrides)
    torch.manual_seed(0)
    return build_model(config.model, vocabulary_size, config.data.max_length)


BERT_SIZES = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 10, "vocab_size": 31}


def small_bert(attn_implementation: str = "sdpa", max_position_embeddings: int = 512, **settings) -> BertBackbone:
    """An encoder of BERT's architecture with four layers of random weights."""
    sizes = {"max_position_embeddings": max_position_embeddings, **BERT_SIZES}
    config = BertConfig(num_hidden_layers=4, attn_implementation=attn_implementation, **sizes)
    encoder = BertModel(config, add_pooling_layer=False)
    return BertBackbone(encoder, **{"unfreeze_epoch": 2, "unfreeze_layers": 1, **settings})


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_experiment_overfits_sixteen_reviews(experiment):
    """At the experiment's own sizes; labels are random, so a model has to memorise the reviews."""
    model = make_model(experiment)
    model.start_epoch(2)
    torch.manual_seed(1)
    lengths = torch.tensor([24, 3, 5, 17] * 4)
    mask = ragged_mask(lengths.tolist(), 24)
    ids = torch.randint(1000, 30000, mask.shape) * mask
    ids[:, 0] = 101  # [CLS]
    ids[torch.arange(16), lengths - 1] = 102  # [SEP]
    labels = torch.randperm(16) % 2
    rate = 3e-3 if experiment != "8_minilm" else 1e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.eval()
    for _ in range(80):
        output = model(ids, mask.long(), labels)
        if output.loss < 0.05:
            break
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    output = model(ids, mask.long(), labels)
    assert output.loss < 0.1
    assert (output.logits.argmax(1) == labels).all()


def test_loss_is_the_mean_cross_entropy_of_the_logits():
    model = make_model("1_lstm", vocabulary_size=31).eval()
    ids, mask, labels = torch.randint(1, 31, (3, 7)), torch.ones(3, 7).long(), torch.tensor([0, 1, 1])
    output = model(ids, mask, labels)
    assert output.logits.shape == (3, 2)
    expected = -output.logits.log_softmax(1)[torch.arange(3), labels].mean()
    torch.testing.assert_close(output.loss, expected)
    assert model(ids, mask).loss is None


@pytest.mark.parametrize("experiment", ["5_transformer_prenorm", "6_transformer_deep", "7_transformer_postnorm"])
def test_logits_ignore_padding_ids(experiment):
    model = make_model(experiment, vocabulary_size=31).eval()
    mask = ragged_mask([9, 1, 4], 9)
    ids = torch.randint(1, 31, mask.shape)
    others = torch.where(mask, ids, torch.randint(1, 31, mask.shape))
    assert not torch.equal(ids, others)
    torch.testing.assert_close(model(others, mask).logits, model(ids, mask).logits, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- settings


def test_every_lstm_setting_reaches_its_layer():
    config = ModelConfig(backbone="lstm", embedding_size=6, hidden_size=10, dropout=0.25, decoder=True, attention=True)
    model = build_model(config, 31, 17).backbone
    inner = model.model
    assert inner.encoder.embedding.weight.shape == (31, 6)
    assert inner.encoder.dropout.p == 0.25
    assert (inner.encoder.rnn.input_size, inner.encoder.rnn.hidden_size) == (6, 10)
    assert inner.encoder.rnn.bidirectional
    assert (inner.decoder.rnn.input_size, inner.decoder.rnn.hidden_size) == (20, 10)
    assert (inner.decoder.mlp_attn.num_heads, inner.decoder.mlp_attn.head_size) == (1, 20)
    assert model.padded_length == 17
    assert build_model(ModelConfig(decoder=True), 31, 17).backbone.model.decoder.mlp_attn is None
    assert build_model(ModelConfig(), 31, 17).backbone.model.decoder is None


def test_every_transformer_setting_reaches_its_layers():
    config = ModelConfig(
        backbone="transformer",
        embedding_size=12,
        hidden_size=10,
        dropout=0.25,
        num_layers=3,
        num_heads=2,
        block="postnorm",
        attn_implementation="eager",
    )
    model = build_model(config, 31, 17).backbone.model
    assert model.embedding.weight.shape == (31, 12)
    assert model.dropout.p == 0.25
    assert [type(block) for block in model.transformer] == [PostNormAttentionBlock] * 3
    for block in model.transformer:
        assert block.linear[0].out_features == 10
        assert block.linear[2].p == block.linear[4].p == 0.25
        assert (block.attn.num_heads, block.attn.head_size) == (2, 6)
        assert block.attn.attn_implementation == "eager"
    assert isinstance(make_model("5_transformer_prenorm").backbone.model.transformer[0], PreNormAttentionBlock)


def test_every_bert_setting_reaches_its_layers():
    model = make_model("8_minilm", "model.dropout=0.25", "model.unfreeze_layers=2", "model.unfreeze_epoch=3").backbone
    rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    assert rates == {0.25}
    assert model.model.config.attention_probs_dropout_prob == 0.25
    assert (model.unfreeze_layers, model.unfreeze_epoch) == (2, 3)


def test_minilm_has_its_pretrained_weights():
    """Sentences of like meaning are closer than others, which random weights would not give."""
    model, tokenizer = make_model("8_minilm").eval().backbone, load_tokenizer("packaged")
    batch = tokenizer(["a great movie", "a wonderful film", "the train is late"], padding=True, return_tensors="pt")
    states = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    means = (states * batch["attention_mask"][..., None]).sum(1) / batch["attention_mask"].sum(1, keepdim=True)
    near, far = (torch.cosine_similarity(means[0], means[i], dim=0) for i in (1, 2))
    assert near > 0.7
    assert far < 0.3


# ---------------------------------------------------------------- freezing


def trained(model: ReviewClassifier) -> set[str]:
    """Names of the parameters that a backward pass gives a gradient."""
    model.zero_grad(set_to_none=True)
    model(torch.randint(1, 31, (2, 5)), torch.ones(2, 5).long(), torch.tensor([0, 1])).loss.backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("unfreeze_epoch", "unfreeze_layers", "expected"),
    [(2, 1, [[], [3], [3]]), (3, 2, [[], [], [2, 3]]), (1, 4, [[0, 1, 2, 3]] * 3), (2, 0, [[], [], []])],
)
def test_only_unfrozen_layers_and_classifier_have_gradients(unfreeze_epoch, unfreeze_layers, expected):
    model = ReviewClassifier(ReviewConfig(), small_bert(unfreeze_epoch=unfreeze_epoch, unfreeze_layers=unfreeze_layers))
    names = [name for name, _ in model.named_parameters()]
    for epoch, layers in enumerate(expected, start=1):
        model.start_epoch(epoch)
        prefixes = tuple(f"backbone.model.encoder.layer.{layer}." for layer in layers)
        unfrozen = {name for name in names if name.startswith(("classifier.", *prefixes))}
        assert trained(model) == unfrozen, f"epoch {epoch}"
        assert count_parameters(model, trainable=True) == sum(model.get_parameter(name).numel() for name in unfrozen)


def test_minilm_trains_the_classifier_and_then_the_last_layer_too():
    model = make_model("8_minilm")
    assert trained(model) == {"classifier.weight", "classifier.bias"}
    model.start_epoch(2)
    last = len(model.backbone.model.encoder.layer) - 1
    assert {name.split(".")[4] for name in trained(model) if name.startswith("backbone")} == {str(last)}


def test_other_experiments_train_all_parameters_from_the_first_epoch():
    for experiment in EXPERIMENTS[:-1]:
        model = make_model(experiment, vocabulary_size=31)
        model.start_epoch(1)
        assert trained(model) == {name for name, _ in model.named_parameters()}, experiment


def test_more_unfrozen_layers_than_the_encoder_has_are_refused():
    with pytest.raises(ValueError, match=r"^model\.unfreeze_layers=5; the encoder has 4 layers$"):
        small_bert(unfreeze_layers=5)
    with pytest.raises(InputError, match=r"^model\.unfreeze_layers=7; the encoder has 6 layers$"):
        build_model(ModelConfig(backbone="bert", unfreeze_layers=7), 31, 17)


# The last layer is computed apart, so it is never among the frozen states.
@pytest.mark.parametrize(("unfreeze_layers", "num_frozen"), [(0, 3), (1, 3), (2, 2), (4, 0)])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("lengths", [[9, 1, 4], [9, 9, 9]], ids=["ragged", "full"])
def test_frozen_states_equal_the_encoder_cut_to_the_frozen_layers(
    unfreeze_layers, num_frozen, attn_implementation, lengths
):
    backbone = small_bert(attn_implementation, unfreeze_layers=unfreeze_layers).double().eval()
    config = BertConfig(num_hidden_layers=num_frozen, attn_implementation=attn_implementation, **BERT_SIZES)
    cut = BertModel(config, add_pooling_layer=False).double().eval()
    cut.load_state_dict({name: backbone.model.state_dict()[name] for name in cut.state_dict()})
    mask = ragged_mask(lengths, 9).long()
    ids = torch.randint(1, 31, mask.shape) * mask
    # On padding too: those states are cached, and no attention of a later layer may read them.
    assert_close(backbone.frozen_states(ids, mask), cut(input_ids=ids, attention_mask=mask).last_hidden_state)


def test_frozen_states_leave_the_module_list_alone():
    backbone = small_bert(unfreeze_layers=2)
    layers = backbone.model.encoder.layer
    lists = []
    layers[0].register_forward_hook(lambda *_: lists.append(backbone.model.encoder.layer))
    backbone.frozen_states(torch.randint(1, 31, (2, 5)), torch.ones(2, 5).long())
    assert lists == [layers]
    assert lists[0] is backbone.model.encoder.layer is layers
    assert len(layers) == 4


def test_bert_logits_ignore_padding_ids():
    model = ReviewClassifier(ReviewConfig(), small_bert(unfreeze_layers=2)).double().eval()
    mask = ragged_mask([9, 1, 4], 9)
    ids = torch.randint(1, 31, mask.shape)
    others = torch.where(mask, ids, torch.randint(1, 31, mask.shape))
    assert not torch.equal(ids, others)
    assert_close(model(others, mask.long()).logits, model(ids, mask.long()).logits)


def test_unavailable_encoder_is_refused_by_name():
    config = ModelConfig(backbone="bert", pretrained="nobody/nothing")
    with pytest.raises(InputError, match=r"model.pretrained='nobody/nothing'.*'MiniLM' works without a network"):
        build_model(config, 31, 17)


def test_tokenizer_with_more_ids_than_the_encoder_has_embeddings_is_refused(tmp_path):
    small_bert().model.save_pretrained(tmp_path)
    config = ModelConfig(backbone="bert", pretrained=str(tmp_path))
    size, positions = BERT_SIZES["vocab_size"], BertConfig().max_position_embeddings
    assert build_model(config, size, positions).backbone.output_size == BERT_SIZES["hidden_size"]
    message = (
        rf"data\.tokenizer has {size + 1} ids, model\.pretrained='.*' has embeddings for {size}; set data\.tokenizer"
    )
    with pytest.raises(InputError, match=message):
        build_model(config, size + 1, positions)


def test_more_tokens_than_the_encoder_has_positions_are_refused(tmp_path):
    small_bert().model.save_pretrained(tmp_path)
    config, positions = ModelConfig(backbone="bert", pretrained=str(tmp_path)), BertConfig().max_position_embeddings
    message = (
        rf"data\.max_length is {positions + 1}, model\.pretrained='.*' has {positions} positions; set data\.max_length"
    )
    with pytest.raises(InputError, match=message):
        build_model(config, 31, positions + 1)


@pytest.fixture
def encoder_folder(tmp_path):
    """A small encoder as `transformers` saves it, of 31 entries and 20 positions."""
    small_bert(max_position_embeddings=20).model.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_encoder_is_refused_by_name(encoder_folder, name):
    (encoder_folder / name).write_bytes((encoder_folder / name).read_bytes()[:50])
    with pytest.raises(InputError, match=f"model.pretrained='{encoder_folder}' could not be loaded"):
        build_model(ModelConfig(backbone="bert", pretrained=str(encoder_folder)), 31, 20)


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("experiment", ["1_lstm", "4_lstm_attention", "7_transformer_postnorm", "8_minilm"])
def test_saved_model_loads_with_equal_weights_and_logits(experiment, tokenizer, tmp_path):
    config = load_config(CONFIGS / f"{experiment}.yaml", ["data.max_length=40"])
    torch.manual_seed(0)
    model = build_model(config.model, len(tokenizer), 40).eval()
    save_model(tmp_path, model, tokenizer)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".safetensors", ".json", ".txt"}
    loaded, loaded_tokenizer, max_length = load_model(tmp_path)
    assert max_length == 40
    assert not loaded.training
    texts = ["not bad at all", "never again"]
    batch = loaded_tokenizer(texts, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], tokenizer(texts, padding=True, return_tensors="pt")["input_ids"])
    arguments = batch["input_ids"], batch["attention_mask"]
    assert_same_tensors(loaded.state_dict(), model.state_dict())
    # Where the weights lie in memory may change the order of a sum.
    torch.testing.assert_close(loaded(*arguments).logits, model(*arguments).logits, rtol=1e-5, atol=1e-6)


@pytest.fixture
def saved(tokenizer, tmp_path):
    config = load_config(CONFIGS / "1_lstm.yaml", ["model.embedding_size=4", "model.hidden_size=4"])
    save_model(tmp_path, build_model(config.model, len(tokenizer), 17), tokenizer)
    return tmp_path


def rename_settings(folder: Path, names: dict[str, str], **values) -> None:
    """Give settings of a saved model other names, and other values, in its config.json."""
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    settings["model"] = {names.get(key, key): value for key, value in settings["model"].items()} | values
    assert set(names.values()) <= settings["model"].keys()
    path.write_text(json.dumps(settings))


EARLIER_NAMES = {"unfreeze_epoch": "thaw_epoch", "unfreeze_layers": "thaw_layers"}


def test_lstm_saved_by_an_earlier_version_loads(saved):
    weights = load_model(saved)[0].state_dict()
    rename_settings(saved, EARLIER_NAMES, pretrained="packaged")
    model, _, max_length = load_model(saved)
    assert max_length == 17
    assert_same_tensors(model.state_dict(), weights)


def test_bert_saved_by_an_earlier_version_loads_with_its_unfrozen_layers(tokenizer, tmp_path):
    backbone = small_bert(unfreeze_epoch=3, unfreeze_layers=2)
    settings = asdict(ModelConfig(backbone="bert", unfreeze_epoch=3, unfreeze_layers=2))
    config = ReviewConfig(settings, len(tokenizer), 17, backbone.model.config.to_dict())
    model = ReviewClassifier(config, backbone)
    save_model(tmp_path, model, tokenizer)
    rename_settings(tmp_path, EARLIER_NAMES, pretrained="packaged")
    loaded = load_model(tmp_path)[0]
    assert_same_tensors(loaded.state_dict(), model.state_dict())
    assert (loaded.backbone.unfreeze_epoch, loaded.backbone.unfreeze_layers) == (3, 2)
    assert loaded.backbone.num_frozen_layers == 2


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_missing_file_of_a_saved_model_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(InputError, match=f"{name}: no such file"):
        load_model(saved)


@pytest.mark.parametrize("content", ["", "[]", '{"version": "1.0"}'])
def test_damaged_tokenizer_of_a_saved_model_is_named(saved, content):
    (saved / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="tokenizer.json: not a tokenizer: "):
        load_model(saved)


def test_damaged_or_mismatched_weights_are_refused(saved):
    settings = json.loads((saved / "config.json").read_text())
    settings["model"]["hidden_size"] = 5
    (saved / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="not the weights of this model"):
        load_model(saved)
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="not the weights of this model"):
        load_model(saved)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"model": 3, "max_length": 17}',
        '{"model": {"depth": 3}, "max_length": 17}',
        '{"model": {"dropout": -1}, "max_length": 17}',
        '{"model": {}, "max_length": 17}',
        '{"model": {}, "vocabulary_size": 31}',
        '{"model": {}, "vocabulary_size": "many", "max_length": 17}',
        '{"model": {"backbone": "bert"}, "max_length": 17}',
        '{"model": {"backbone": "bert"}, "max_length": 17, "encoder": 3}',
        '{"model": {"backbone": "bert"}, "encoder": {"num_hidden_layers": 1}}',
    ],
)
def test_invalid_settings_of_a_saved_model_are_refused(saved, content):
    (saved / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json: "):
        load_model(saved)
