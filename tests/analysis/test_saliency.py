"""analysis/saliency.py: saliency by position, occlusion and attention of small models."""

import json
import unicodedata

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from analysis import figures, saliency
from analysis.facts import saliency_facts
from analysis.saliency import attention, main, occlusion, saliency_by_position, words_map
from helpers import make_texts, small_config, write_csv
from models import BertBackbone, ReviewClassifier, ReviewConfig
from predict import TrainedModel
from train import run
from transformer_solution import MultiHeadedAttention

TEXT = "A good-looking film, but extraordinarily bad at the end!"
WORDS = ["A", "good-looking", "film", "but", "extraordinarily", "bad", "at", "the", "end"]


@pytest.fixture(scope="module")
def models(trained_run):
    experiments = ("1_lstm", "4_lstm_attention", "5_transformer_prenorm")
    return {experiment[0]: TrainedModel(trained_run(experiment)) for experiment in experiments}


@pytest.fixture(scope="module")
def short_runs(tmp_path_factory, review_files):
    """Two seeds of one experiment on reviews cut at 8 tokens, by folder names that say nothing of them."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("first", "second")):
        overrides = ("train.epochs=1", "data.max_length=8", f"seed={seed}")
        run(small_config("1_lstm", review_files, folder / name, *overrides))
    return folder


@pytest.mark.parametrize("key", ["1", "4", "5"])
def test_occlusion_is_the_probability_lost_without_the_word(models, key):
    words, values = occlusion(models[key], TEXT)
    assert words == WORDS
    whole, without = models[key].probabilities([TEXT, TEXT.replace("bad", "")])
    # Batched with others, a probability may differ in its last digits.
    assert values[WORDS.index("bad")] == pytest.approx(whole - without, abs=1e-6)


@pytest.mark.parametrize("key", ["4", "5"])
def test_attention_weights_are_the_models_own_summed_over_a_words_tokens(models, key):
    """Held against the weights of an eager forward over the whole sequence, first row."""
    model = models[key]
    words, weights = attention(model, TEXT)
    assert words == WORDS
    module = [m for m in model.model.modules() if isinstance(m, MultiHeadedAttention)][-1]
    inputs = []
    handle = module.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    ids = torch.tensor([model.tokenizer(TEXT)["input_ids"]])
    with torch.inference_mode():
        model.model(input_ids=ids, attention_mask=torch.ones_like(ids))
        handle.remove()
        q, k = (module.split_heads(w(inputs[0])) for w in (module.w_q, module.w_k))
        rows = module.get_attention_weights(q, k)[0, :, 0].mean(dim=0)[-ids.shape[1] :]
    pieces = model.tokenizer.convert_ids_to_tokens(ids[0])
    assert weights[0] == pytest.approx(rows[pieces.index("a")].item(), abs=1e-6)
    start, end = pieces.index("but") + 1, pieces.index("bad")
    assert end - start >= 1
    assert weights[WORDS.index("extraordinarily")] == pytest.approx(rows[start:end].sum().item(), abs=1e-6)
    assert 0 < weights.sum() < 1


def test_attention_of_a_model_without_attention_is_refused(models):
    with pytest.raises(ValueError, match="LSTMBackbone without MultiHeadedAttention has no weights to show"):
        attention(models["1"], TEXT)


def test_words_with_combining_marks_keep_them(models):
    """Decomposed letters, as some systems write them, have the values of composed ones."""
    text = "The café was naïve"
    decomposed = unicodedata.normalize("NFD", text)
    for show in (attention, occlusion):
        words, values = show(models["5"], decomposed)
        assert words == decomposed.split()
        assert values == pytest.approx(show(models["5"], text)[1], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "message"), [("none/x.json", "there is no folder"), ("", "a folder; expected a file")]
)
def test_output_is_checked_before_the_models_are_loaded(short_runs, tmp_path, capsys, monkeypatch, name, message):
    monkeypatch.setattr(saliency, "saliency_of_runs", lambda *_: pytest.fail("something was computed"))
    assert main([str(short_runs / "first"), "--output", str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err


def test_words_map_has_a_row_per_model_and_a_column_per_word(models):
    figure = words_map({"1": occlusion(models["1"], TEXT), "5": (WORDS, np.arange(9) / 100)}, "a title")
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == WORDS
    assert [text.get_text() for text in axis.get_yticklabels()] == ["1", "5"]
    assert axis.images[0].get_array().shape == (2, 9)
    plt.close(figure)


class WeightedSum(nn.Module):
    """A sum of embedded tokens, each position with a weight of its own."""

    output_size = 5

    def __init__(self, weights):
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.weights = torch.tensor(weights)[:, None]

    def forward(self, input_ids, attention_mask):
        return (self.embedding(input_ids) * self.weights).sum(dim=1)


def test_saliency_of_a_linear_model_is_the_weight_of_each_position():
    model = ReviewClassifier(ReviewConfig(), WeightedSum([0.5, -2.0, 0.0])).train()
    saliency = saliency_by_position(model, torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 4, 7]]))
    row = model.classifier.weight[1] - model.classifier.weight[0]
    assert saliency == pytest.approx(np.array([0.5, 2.0, 0.0]) * row.norm().item(), rel=1e-5)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.backbone.embedding._forward_hooks


@pytest.mark.parametrize("key", ["1", "4", "5"])
def test_saliency_of_padded_reviews_is_the_mean_of_each_alone(models, key):
    model = models[key].model
    ids = torch.randint(1, 100, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7) < torch.tensor([[7], [4], [2]])
    alone = [saliency_by_position(model, row[None, :length]) for row, length in zip(ids, (7, 4, 2), strict=True)]
    together = saliency_by_position(model, ids * mask, mask.long())
    assert together[0] == pytest.approx(np.mean([values[0] for values in alone]), rel=1e-4)
    assert together[3] == pytest.approx((alone[0][3] + alone[1][3]) / 2, rel=1e-4)
    assert together[4:] == pytest.approx(alone[0][4:], rel=1e-4)


def test_padded_reviews_of_half_the_length_have_panels_of_their_own(review_files, tmp_path):
    # At a limit of 16 tokens some of the reviews fill all positions, some half.
    overrides = ("train.epochs=1", "data.max_length=16")
    run(small_config("1_lstm", review_files, tmp_path / "run", *overrides))
    assert main([str(tmp_path / "run"), "--output", str(tmp_path / "saliency.json")]) == 0
    log = json.loads((tmp_path / "saliency.json").read_text())
    assert log["short_lengths"] == [8, 8]
    assert log["short_reviews"] >= 1
    model = log["models"]["1"]
    assert len(model["short_trained"]) == 8
    assert max(model["short_trained"]) == 1.0
    figure = figures.saliency_by_position(log)
    assert [axis.get_title() for axis in figure.axes[2:]] == [
        f"{state} models, reviews of 8 to 8 tokens, padded" for state in ("Untrained", "Trained")
    ]
    assert figure.axes[3].lines[0].get_ydata() == pytest.approx(model["short_trained"])
    plt.close(figure)
    facts = saliency_facts(log)
    assert facts["short_trained"]["1"]["last"] == 1.0


def test_saliency_of_a_frozen_encoder_equals_autograd_through_all_its_layers():
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "hidden_size": 12, "intermediate_size": 20, "num_attention_heads": 3}
    encoder = BertModel(BertConfig(num_hidden_layers=3, **sizes), add_pooling_layer=False).double()
    model = ReviewClassifier(ReviewConfig(), BertBackbone(encoder, unfreeze_epoch=2, unfreeze_layers=1)).double()
    ids = torch.randint(1, 31, (5, 7))
    saliency = saliency_by_position(model, ids)
    encoder.eval()
    embedded = encoder.embeddings.word_embeddings(ids).detach().requires_grad_()
    logits = model.classifier(encoder(inputs_embeds=embedded).last_hidden_state[:, 0])
    (logits[:, 1] - logits[:, 0]).sum().backward()
    assert saliency == pytest.approx(embedded.grad.norm(dim=-1).mean(dim=0).numpy(), rel=1e-9)


def test_saliency_command_writes_values_before_and_after_training(short_runs, tmp_path):
    assert main([str(short_runs / "first"), "--output", str(tmp_path / "saliency.json")]) == 0
    log = json.loads((tmp_path / "saliency.json").read_text())
    assert 1 <= log["reviews"] <= 20
    model = log["models"]["1"]
    assert (model["label"], model["experiment"]) == ("BiLSTM", 1)
    for state in ("untrained", "trained"):
        assert len(model[state]) == 8
        assert max(model[state]) == 1.0
    assert model["untrained"] != model["trained"]
    # Before training the gradient falls with the distance from the first step, which is read.
    assert model["untrained"][0] == 1.0
    assert model["untrained"][0] > 10 * model["untrained"][7]
    figure = figures.saliency_by_position(log)
    assert [axis.get_title() for axis in figure.axes] == [
        f"{state} models, reviews that fill all positions" for state in ("Untrained", "Trained")
    ]
    assert figure.axes[1].lines[0].get_ydata() == pytest.approx(model["trained"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1 BiLSTM"]
    plt.close(figure)


def test_two_seeds_of_one_experiment_both_appear(short_runs, tmp_path):
    folders = [str(short_runs / name) for name in ("first", "second")]
    assert main([*folders, "--output", str(tmp_path / "both.json")]) == 0
    both = json.loads((tmp_path / "both.json").read_text())["models"]
    assert list(both) == ["1 seed 0", "1 seed 1"]
    assert main([folders[1], "--output", str(tmp_path / "second.json")]) == 0
    assert json.loads((tmp_path / "second.json").read_text())["models"]["1"] == both["1 seed 1"]
    assert both["1 seed 0"]["untrained"] != both["1 seed 1"]["untrained"]


def test_one_run_given_twice_is_refused(short_runs, tmp_path, capsys):
    folder = str(short_runs / "first")
    assert main([folder, folder, "--output", str(tmp_path / "saliency.json")]) == 2
    assert "are both 1 with seed 0" in capsys.readouterr().err
    assert not (tmp_path / "saliency.json").exists()


def test_runs_on_different_validation_reviews_are_refused(short_runs, review_files, tmp_path, capsys):
    other = write_csv(tmp_path / "validation.csv", *make_texts(20, 7))
    overrides = ("train.epochs=1", "data.max_length=8", f"data.validation={other}", "seed=2")
    run(small_config("1_lstm", review_files, tmp_path / "other", *overrides))
    folders = [str(short_runs / "first"), str(tmp_path / "other")]
    assert main([*folders, "--output", str(tmp_path / "saliency.json")]) == 2
    assert "have different validation reviews" in capsys.readouterr().err


def test_reviews_that_do_not_fill_all_positions_are_refused(review_files, tmp_path, capsys):
    folder = tmp_path / "run"
    run(small_config("1_lstm", review_files, folder, "train.epochs=1", "data.max_length=200"))
    assert main([str(folder), "--output", str(tmp_path / "saliency.json")]) == 2
    assert "no validation review has data.max_length=200 tokens" in capsys.readouterr().err
