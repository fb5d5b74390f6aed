"""Cached outputs of frozen layers: equal results, their time and disk space."""

import errno
import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from config import RunError
from data import load_reviews
from helpers import read_metrics, without_timings
from models import build_model
from train import run
from training.frozen_features import FrozenFeatures


def test_cached_frozen_features_give_the_same_metrics(make_config, monkeypatch, tmp_path):
    """But for rounding: padding, and so the order of sums, differs. A second run reads the file."""
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    config = make_config("8_minilm", cache, "model.dropout=0", "train.learning_rate=0.0003")
    run(config)
    computed = without_timings(read_metrics(config.run_dir))
    cached = replace(config, overwrite=True, train=replace(config.train, cache_frozen_features="fp32"))
    run(cached)
    for line, expected in zip(without_timings(read_metrics(config.run_dir)), computed, strict=True):
        assert line == pytest.approx(expected, abs=1e-4)
    assert len(list((tmp_path / "cache").glob("*.frozen"))) == 2
    monkeypatch.setattr(FrozenFeatures, "make", lambda *arguments: pytest.fail("computed again"))
    run(cached)


@pytest.mark.parametrize("size", [0, 4_000, 10_000_000])
def test_damaged_frozen_features_are_made_again_with_a_warning(make_config, caplog, tmp_path, size):
    config = make_config("8_minilm", f"data.cache_dir={tmp_path}")
    model, reviews = build_model(config.model, 30522, 24).eval(), load_reviews(config.data).validation
    whole = FrozenFeatures(reviews, model.backbone, tmp_path, "bf16", batch_size=6)
    content, indices = whole.path.read_bytes(), np.arange(5)
    expected = whole[indices]["hidden_states"]
    whole.path.write_bytes((content * 10)[:size])
    caplog.clear()
    again = FrozenFeatures(reviews, model.backbone, tmp_path, "bf16", batch_size=6)
    assert torch.equal(again[indices]["hidden_states"], expected)
    assert whole.path.read_bytes() == content
    sizes = f"{min(size, 10 * len(content))} bytes, expected {len(content)}"
    assert caplog.messages == [f"warning: {whole.path}: the cached features are damaged ({sizes}) and made again"]


def test_time_to_cache_frozen_features_counts_as_training(make_config, monkeypatch, tmp_path):
    def slowly(*arguments):
        time.sleep(1.5)
        return make(*arguments)

    make = FrozenFeatures.make
    monkeypatch.setattr(FrozenFeatures, "make", slowly)
    config = make_config("8_minilm", f"data.cache_dir={tmp_path}", "train.cache_frozen_features=fp32", "train.epochs=1")
    assert run(config)["train_seconds"] > 3
    assert read_metrics(config.run_dir)[0]["train_seconds"] > 3


def test_disk_full_for_frozen_features_names_the_setting(make_config, monkeypatch, tmp_path):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    cache = [f"data.cache_dir={tmp_path / 'cache'}", "train.cache_frozen_features=fp32"]
    config = make_config("8_minilm", "model.pretrained=MiniLM", *cache)
    size = load_reviews(config.data).train.lengths.sum() * 384 * 4
    with pytest.raises(RunError, match=rf"{size / 1e6:.1f} MB are needed.*train.cache_frozen_features=bf16"):
        run(config)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith("partial")]


def test_damaged_frozen_features_are_computed_again(make_config, tmp_path):
    config = make_config("8_minilm")
    model = build_model(config.model, 30522, 24).eval()
    reviews = load_reviews(config.data).validation
    path = FrozenFeatures(reviews, model.backbone, tmp_path, "bf16", batch_size=6).path
    content = path.read_bytes()
    path.write_bytes(content[:-1000])
    FrozenFeatures(reviews, model.backbone, tmp_path, "bf16", batch_size=6)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_model_without_frozen_layers_ignores_cache_frozen_features(make_config):
    """A profile may set it for all eight."""
    assert run(make_config("1_lstm", "train.cache_frozen_features=fp32", "train.epochs=1"))["completed"]


def test_cached_frozen_features_are_near_the_computed_ones(make_config, tmp_path):
    """In fp32 to rounding, in bf16 to 8 bits at half the size."""
    config = make_config("8_minilm", "model.pretrained=MiniLM", f"data.cache_dir={tmp_path}")
    model = build_model(config.model, 30522, 24).eval()
    reviews = load_reviews(config.data).validation
    indices = np.array([3, 0, 7])
    batch = reviews[indices]
    states = model.backbone.frozen_states(batch["input_ids"], batch["attention_mask"])
    expected = states * batch["attention_mask"][..., None]
    sizes = {}
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 0.02)):
        features = FrozenFeatures(reviews, model.backbone, tmp_path, precision, batch_size=6)
        cached = features[indices]
        torch.testing.assert_close(cached["hidden_states"].float(), expected, rtol=tolerance, atol=tolerance)
        assert torch.equal(cached["labels"], batch["labels"])
        sizes[precision] = features.path.stat().st_size
    assert sizes["fp32"] == 2 * sizes["bf16"] == reviews.lengths.sum() * 384 * 4
