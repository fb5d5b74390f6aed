"""explain.py: occlusion and attention of small trained models."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import small_config

from explain import attention, occlusion, words_map
from robustness import TrainedModel
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
