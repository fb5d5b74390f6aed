"""The classifier over each backbone: settings, learning, freezing, saving."""

import json

import pytest
import torch
from conftest import EXPERIMENTS
from helpers import ragged_mask
from torch import nn
from transformers import BertConfig, BertModel

from config import InputError, ModelConfig, load_config
from data import load_tokenizer
from models import (
    BertBackbone,
    ReviewClassifier,
    bert_backbone,
    build_model,
    build_scratch,
    count_parameters,
    load_model,
    save_model,
)
from transformer_solution import PostNormAttentionBlock, PreNormAttentionBlock


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("packaged")


def make_model(experiment: str, *overrides: str, vocabulary_size: int = 30522) -> ReviewClassifier:
    config = load_config(f"configs/{experiment}.yaml", overrides)
    torch.manual_seed(0)
    return build_model(config.model, vocabulary_size, config.data.max_length)


def small_bert(layers: int = 4, **settings) -> BertBackbone:
    """An encoder of BERT's architecture with random weights."""
    sizes = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 10, "vocab_size": 31}
    encoder = BertModel(BertConfig(num_hidden_layers=layers, **sizes), add_pooling_layer=False)
    return bert_backbone(encoder, ModelConfig(backbone="bert", **settings))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_of_the_eight_overfits_sixteen_reviews(experiment):
    """At the experiment's own sizes; labels are drawn by chance, so only the reviews themselves can tell."""
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
def test_what_stands_on_padding_changes_no_logit(experiment):
    model = make_model(experiment, vocabulary_size=31).eval()
    mask = ragged_mask([9, 1, 4], 9)
    ids = torch.randint(1, 31, mask.shape)
    others = torch.where(mask, ids, torch.randint(1, 31, mask.shape))
    assert not torch.equal(ids, others)
    torch.testing.assert_close(model(others, mask).logits, model(ids, mask).logits, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- settings


def test_every_setting_of_an_lstm_reaches_its_layer():
    config = ModelConfig(backbone="lstm", embedding_size=6, hidden_size=10, dropout=0.25, decoder=True, attention=True)
    model = build_scratch(config, 31, 17).backbone
    inner = model.model
    assert inner.encoder.embedding.weight.shape == (31, 6)
    assert inner.encoder.dropout.p == 0.25
    assert (inner.encoder.rnn.input_size, inner.encoder.rnn.hidden_size) == (6, 10)
    assert inner.encoder.rnn.bidirectional
    assert (inner.decoder.rnn.input_size, inner.decoder.rnn.hidden_size) == (20, 10)
    assert (inner.decoder.mlp_attn.num_heads, inner.decoder.mlp_attn.head_size) == (1, 20)
    assert model.padded_length == 17
    assert build_scratch(ModelConfig(decoder=True), 31, 17).backbone.model.decoder.mlp_attn is None
    assert build_scratch(ModelConfig(), 31, 17).backbone.model.decoder is None


def test_every_setting_of_a_transformer_reaches_its_layers():
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
    model = build_scratch(config, 31, 17).backbone.model
    assert model.embedding.weight.shape == (31, 12)
    assert model.dropout.p == 0.25
    assert [type(block) for block in model.transformer] == [PostNormAttentionBlock] * 3
    for block in model.transformer:
        assert block.linear[0].out_features == 10
        assert block.linear[2].p == block.linear[4].p == 0.25
        assert (block.attn.num_heads, block.attn.head_size) == (2, 6)
        assert block.attn.attn_implementation == "eager"
    assert isinstance(make_model("5_transformer_prenorm").backbone.model.transformer[0], PreNormAttentionBlock)


def test_every_setting_of_a_bert_reaches_its_layers():
    model = make_model("8_minilm", "model.dropout=0.25", "model.unfreeze_layers=2", "model.unfreeze_epoch=3").backbone
    rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    assert rates == {0.25}
    assert model.model.config.attention_probs_dropout_prob == 0.25
    assert (model.unfreeze_layers, model.unfreeze_epoch) == (2, 3)


def test_the_packaged_encoder_has_its_pretrained_weights():
    """Two sentences of one meaning are nearer than two of different ones; random weights know no meaning."""
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
def test_exactly_the_thawed_layers_and_the_classifier_have_gradients(unfreeze_epoch, unfreeze_layers, expected):
    model = ReviewClassifier(small_bert(unfreeze_epoch=unfreeze_epoch, unfreeze_layers=unfreeze_layers))
    names = [name for name, _ in model.named_parameters()]
    for epoch, layers in enumerate(expected, start=1):
        model.start_epoch(epoch)
        prefixes = tuple(f"backbone.model.encoder.layer.{layer}." for layer in layers)
        wanted = {name for name in names if name.startswith(("classifier.", *prefixes))}
        assert trained(model) == wanted
        assert count_parameters(model, trainable=True) == sum(model.get_parameter(name).numel() for name in wanted)


def test_experiment_eight_trains_the_classifier_and_then_the_last_layer_too():
    model = make_model("8_minilm")
    assert trained(model) == {"classifier.weight", "classifier.bias"}
    model.start_epoch(2)
    last = len(model.backbone.model.encoder.layer) - 1
    assert {name.split(".")[4] for name in trained(model) if name.startswith("backbone")} == {str(last)}


def test_the_other_experiments_train_all_their_parameters_from_the_first_epoch():
    for experiment in EXPERIMENTS[:-1]:
        model = make_model(experiment, vocabulary_size=31)
        model.start_epoch(1)
        assert trained(model) == {name for name, _ in model.named_parameters()}


def test_more_layers_than_there_are_can_not_be_thawed():
    with pytest.raises(InputError, match="unfreeze_layers=5; the encoder has 4 layers"):
        small_bert(unfreeze_layers=5)


def test_an_encoder_that_is_not_at_hand_is_refused_by_name():
    config = ModelConfig(backbone="bert", pretrained="nobody/nothing")
    with pytest.raises(InputError, match=r"model.pretrained='nobody/nothing'.*'packaged' works without a network"):
        build_model(config, 31, 17)


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("experiment", ["1_lstm", "4_lstm_attention", "7_transformer_postnorm", "8_minilm"])
def test_a_saved_model_comes_back_with_equal_logits(experiment, tokenizer, tmp_path):
    config = load_config(f"configs/{experiment}.yaml", ["data.max_length=40"])
    torch.manual_seed(0)
    model = build_model(config.model, len(tokenizer), 40).eval()
    save_model(tmp_path, model, config.model, 40, tokenizer)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".safetensors", ".json", ".txt"}
    loaded, loaded_tokenizer, max_length = load_model(tmp_path)
    assert max_length == 40
    assert not loaded.training
    texts = ["not bad at all", "never again"]
    batch = loaded_tokenizer(texts, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], tokenizer(texts, padding=True, return_tensors="pt")["input_ids"])
    arguments = batch["input_ids"], batch["attention_mask"]
    # Equal weights; where they lie in memory may change the order of a sum.
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )
    torch.testing.assert_close(loaded(*arguments).logits, model(*arguments).logits, rtol=1e-5, atol=1e-6)


@pytest.fixture
def saved(tokenizer, tmp_path):
    config = load_config("configs/1_lstm.yaml", ["model.embedding_size=4", "model.hidden_size=4"])
    save_model(tmp_path, build_model(config.model, len(tokenizer), 17), config.model, 17, tokenizer)
    return tmp_path


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_file_of_a_model_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(InputError, match=f"{name}: no such file"):
        load_model(saved)


def test_weights_that_are_damaged_or_of_another_model_are_refused(saved):
    settings = json.loads((saved / "config.json").read_text())
    settings["model"]["hidden_size"] = 5
    (saved / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="not the weights of this model"):
        load_model(saved)
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="not the weights of this model"):
        load_model(saved)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"depth": 3}}', '{"model": {"dropout": -1}}'])
def test_settings_that_are_none_are_refused(saved, content):
    (saved / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json: "):
        load_model(saved)
