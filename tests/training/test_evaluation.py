"""Evaluation: metrics over all reviews, logits in order, precision of the forward pass."""

import numpy as np
import pytest
import torch

from data import TokenizedTexts, load_reviews
from helpers import assert_close
from models import build_model
from training.evaluation import autocast, evaluate, predict_logits

CPU = torch.device("cpu")


@pytest.fixture
def model_and_reviews(make_config):
    """A Transformer and 20 reviews; one batch of all of them tells what is right."""
    config = make_config("5_transformer_prenorm")
    torch.manual_seed(0)
    return build_model(config.model, 30522, 24).eval(), load_reviews(config.data).validation


def test_evaluation_weighs_every_review_the_same(model_and_reviews):
    """With batches of 7, the last of 20 reviews has 6."""
    model, reviews = model_and_reviews
    result = evaluate(model.train(), reviews, 7, CPU)
    assert not model.training
    batch = reviews[np.arange(len(reviews))]
    output = model(**batch)
    predicted = output.logits.argmax(1)
    hits = (predicted & batch["labels"]).sum().item()
    assert result.loss == pytest.approx(output.loss.item(), abs=1e-6)
    assert result.accuracy == (predicted == batch["labels"]).double().mean().item()
    precision, recall = hits / max(1, predicted.sum().item()), hits / batch["labels"].sum().item()
    assert result.f1 == pytest.approx(2 * precision * recall / max(precision + recall, 1e-9))
    np.testing.assert_allclose(result.probabilities, output.logits.softmax(1)[:, 1].detach(), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_logits_are_in_the_order_of_the_reviews(model_and_reviews, batch_size):
    """Batches are sorted by length; a split and the same texts without labels."""
    model, reviews = model_and_reviews
    expected = model(**reviews[np.arange(len(reviews))]).logits.detach().double()
    assert_close(predict_logits(model, reviews, batch_size, CPU), expected, 1e-5, "logits of a split")
    texts = TokenizedTexts(reviews.ids().to_pylist())
    assert_close(predict_logits(model, texts, batch_size, CPU), expected, 1e-5, "logits of texts")


def test_a_sample_of_a_split_is_evaluated_in_its_order(model_and_reviews):
    model, reviews = model_and_reviews
    sample = np.array([17, 3, 12, 0, 8])
    whole = evaluate(model, reviews, 7, CPU)
    result = evaluate(model, reviews, 2, CPU, sample=sample)
    np.testing.assert_allclose(result.probabilities, whole.probabilities[sample], atol=1e-6)
    assert result.accuracy == ((result.probabilities > 0.5) == reviews.labels[sample]).mean()


def test_autocast_computes_in_the_precision_asked_for(model_and_reviews):
    linear = model_and_reviews[0].backbone.model.transformer[0].linear
    with autocast("bf16", CPU):
        assert torch.is_autocast_enabled("cpu")
        assert linear(torch.zeros(1, 8)).dtype == torch.bfloat16
    with autocast("fp32", CPU):
        assert not torch.is_autocast_enabled("cpu")
        assert linear(torch.zeros(1, 8)).dtype == torch.float32
