"""explain.py: occlusion, attention and reach of small models."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import small_config
from torch import nn
from transformers import BertConfig, BertModel

from analysis.figures import reach as draw_reach
from analysis.robustness import TrainedModel
from analysis.saliency import attention, main, occlusion, reach, words_map
from models import BertBackbone, ReviewClassifier
from train import run
from transformer_solution import MultiHeadedAttention

TEXT = "A good-looking film, but extraordinarily bad at the end!"
WORDS = ["A", "good-looking", "film", "but", "extraordinarily", "bad", "at", "the", "end"]


@pytest.fixture(scope="module")
def models(tmp_path_factory, review_files):
    found = {}
    for experiment in ("1_lstm", "4_lstm_attention", "5_transformer_prenorm"):
        folder = tmp_path_factory.mktemp("explain") / experiment
        run(small_config(experiment, review_files, folder, "train.epochs=1"))
        found[experiment[0]] = TrainedModel(folder)
    return found


@pytest.mark.parametrize("key", ["1", "4", "5"])
def test_a_word_counts_by_what_the_label_loses_without_it(models, key):
    words, values = occlusion(models[key], TEXT)
    assert words == WORDS
    whole, without = models[key].probabilities(models[key].encode([TEXT, TEXT.replace("bad", "")]))
    # Batched with others, a probability may differ in its last digits.
    assert values[WORDS.index("bad")] == pytest.approx(whole - without, abs=1e-6)


@pytest.mark.parametrize("key", ["4", "5"])
def test_attention_is_what_the_model_computes_summed_over_a_words_tokens(models, key):
    """Held against the weights of an eager forward over the whole sequence, first row."""
    model = models[key]
    words, shares = attention(model, TEXT)
    assert words == WORDS
    module = [m for m in model.model.modules() if isinstance(m, MultiHeadedAttention)][-1]
    seen = []
    handle = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    ids = torch.tensor([model.tokenizer(TEXT)["input_ids"]])
    with torch.inference_mode():
        model.model(input_ids=ids, attention_mask=torch.ones_like(ids))
        handle.remove()
        q, k = (module.split_heads(w(seen[0])) for w in (module.w_q, module.w_k))
        rows = module.get_attention_weights(q, k)[0, :, 0].mean(dim=0)[-ids.shape[1] :]
    pieces = model.tokenizer.convert_ids_to_tokens(ids[0])
    assert shares[0] == pytest.approx(rows[pieces.index("a")].item(), abs=1e-6)
    start = pieces.index("but") + 1
    end = pieces.index("bad")
    assert end - start >= 1
    assert shares[WORDS.index("extraordinarily")] == pytest.approx(rows[start:end].sum().item(), abs=1e-6)
    assert 0 < shares.sum() < 1


def test_a_model_without_attention_is_refused(models):
    with pytest.raises(ValueError, match="1 lstm has no attention of its own"):
        attention(models["1"], TEXT)


def test_the_map_has_a_row_a_model_and_a_column_a_word(models):
    figure = words_map({"1": occlusion(models["1"], TEXT), "5": (WORDS, np.arange(9) / 100)}, "a title")
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == WORDS
    assert [text.get_text() for text in axis.get_yticklabels()] == ["1", "5"]
    assert axis.images[0].get_array().shape == (2, 9)
    plt.close(figure)


class Weighted(nn.Module):
    """A sum of embedded tokens, each position with a weight of its own."""

    output_size = 5

    def __init__(self, weights):
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.weights = torch.tensor(weights)[:, None]

    def forward(self, input_ids, attention_mask):
        return (self.embedding(input_ids) * self.weights).sum(dim=1)


def test_a_position_pulls_by_its_weight_in_the_difference_of_the_logits():
    model = ReviewClassifier(Weighted([0.5, -2.0, 0.0])).train()
    pulls = reach(model, torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 4, 7]]))
    row = model.classifier.weight[1] - model.classifier.weight[0]
    assert pulls == pytest.approx(np.array([0.5, 2.0, 0.0]) * row.norm().item(), rel=1e-5)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.backbone.embedding._forward_hooks


def test_a_frozen_encoder_is_looked_through():
    """Held against autograd through the whole encoder, its embedded tokens given."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "hidden_size": 12, "intermediate_size": 20, "num_attention_heads": 3}
    encoder = BertModel(BertConfig(num_hidden_layers=3, **sizes), add_pooling_layer=False).double()
    model = ReviewClassifier(BertBackbone(encoder, unfreeze_epoch=2, unfreeze_layers=1)).double()
    ids = torch.randint(1, 31, (5, 7))
    pulls = reach(model, ids)
    encoder.eval()
    embedded = encoder.embeddings.word_embeddings(ids).detach().requires_grad_()
    logits = model.classifier(encoder(inputs_embeds=embedded).last_hidden_state[:, 0])
    (logits[:, 1] - logits[:, 0]).sum().backward()
    assert pulls == pytest.approx(embedded.grad.norm(dim=-1).mean(dim=0).numpy(), rel=1e-9)


def test_the_reach_of_runs_before_and_after_training_is_written(review_files, tmp_path, capsys):
    folder = tmp_path / "1_lstm"
    run(small_config("1_lstm", review_files, folder, "train.epochs=1", "data.max_length=8"))
    assert main([str(folder), "--output", str(tmp_path / "reach.json")]) == 0
    found = json.loads((tmp_path / "reach.json").read_text())
    assert 1 <= found["reviews"] <= 20
    pulls = found["models"]["1"]
    assert pulls["name"] == "lstm"
    for state in ("untrained", "trained"):
        assert len(pulls[state]) == 8
        assert max(pulls[state]) == 1.0
    assert pulls["untrained"] != pulls["trained"]
    # Read at the first step, where the backward direction arrives: the nearer, the stronger, before any training.
    assert pulls["untrained"][0] == 1.0
    assert pulls["untrained"][0] > 10 * pulls["untrained"][7]
    figure = draw_reach({"a": {"1 lstm": pulls["untrained"]}, "b": {"1 lstm": pulls["trained"]}})
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    assert figure.axes[1].lines[0].get_ydata() == pytest.approx(pulls["trained"])
    plt.close(figure)


def test_reviews_that_are_all_shorter_than_the_limit_are_refused(review_files, tmp_path, capsys):
    folder = tmp_path / "1_lstm"
    run(small_config("1_lstm", review_files, folder, "train.epochs=1", "data.max_length=200"))
    assert main([str(folder), "--output", str(tmp_path / "reach.json")]) == 2
    assert "no validation review has 200 tokens" in capsys.readouterr().err
