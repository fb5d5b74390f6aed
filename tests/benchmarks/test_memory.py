"""benchmarks/memory.py: the bytes that it counts, on models small enough to count by hand."""

import pytest
import torch
from torch import nn

from config import Config, DataConfig, TrainConfig
from helpers import load_benchmark
from models import ReviewClassifier, ReviewConfig


def settings(num_reviews: int, num_tokens: int, precision: str = "fp32") -> Config:
    train = TrainConfig(batch_size=num_reviews, precision=precision)
    return Config(data=DataConfig(max_length=num_tokens), train=train)


@pytest.fixture(scope="module")
def memory():
    return load_benchmark("memory")


class Mean(nn.Module):
    """An embedding, and the mean of the sines of its vectors."""

    def __init__(self, output_size: int = 4):
        super().__init__()
        self.output_size = output_size
        self.embedding = nn.Embedding(30522, output_size)

    def forward(self, input_ids, attention_mask):
        return self.embedding(input_ids).sin().mean(dim=1)


def test_saved_activations_are_counted_once_and_without_weights(memory):
    reviews, tokens, width = 7, 11, 53
    model = ReviewClassifier(ReviewConfig(), Mean(width))
    saved = memory.saved_bytes(model, settings(reviews, tokens))
    ids = 8 * reviews * tokens
    # Ids for the embedding, its vectors for the sine, their mean for the linear layer; the loss keeps log-probabilities
    # (2 a review), labels and its weight.
    vectors, means, log_probabilities = 4 * reviews * tokens * width, 4 * reviews * width, 4 * reviews * 2
    assert saved == pytest.approx(ids + vectors + means + log_probabilities + 8 * reviews, abs=64)
    # The tolerance is for scalars: the linear layer's weight would exceed it.
    assert model.classifier.weight.nbytes > 4 * 64


def test_saved_bytes_grow_in_proportion_to_the_batch(memory):
    model = ReviewClassifier(ReviewConfig(), Mean())
    one, three = (memory.saved_bytes(model, settings(n, 50)) for n in (10, 30))
    assert three / one == pytest.approx(3, rel=0.01)


def test_frozen_backbone_saves_no_activations(memory):
    model = ReviewClassifier(ReviewConfig(), Mean())
    model.backbone.requires_grad_(False)
    assert memory.saved_bytes(model, settings(7, 50)) < 4 * 7 * 50
    assert torch.is_grad_enabled()


class Square(nn.Module):
    """An embedding, squared by a matrix product."""

    output_size = 8

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30522, 8)

    def forward(self, input_ids, attention_mask):
        vectors = self.embedding(input_ids)
        return (vectors @ vectors.transpose(1, 2) @ vectors).mean(dim=1)


def test_bf16_saves_less_for_matrix_products(memory):
    full, half = (
        memory.saved_bytes(ReviewClassifier(ReviewConfig(), Square()), settings(7, 53, p)) for p in ("fp32", "bf16")
    )
    assert half < 0.7 * full
