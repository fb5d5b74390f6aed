"""analysis/linear_baseline.py: TF-IDF + logistic regression on the tests' small reviews."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from analysis import linear_baseline
from analysis.linear_baseline import INVERSE_REGULARISATIONS, main, ngram_features, run_baseline, tokens_as_text
from analysis.logs import load_run, load_runs, read_predictions
from config import InputError
from data import TokenizedReviews, load_reviews
from helpers import small_config


@pytest.fixture(scope="module")
def config(review_files):
    return small_config("1_lstm", review_files, Path("unused"), "data.max_length=12")


@pytest.fixture(scope="module")
def reviews(config):
    return load_reviews(config.data)


@pytest.mark.parametrize("whole", [False, True])
def test_baseline_leaves_a_run_folder_like_any_run(config, reviews, tmp_path, whole, caplog):
    summary = run_baseline(config, reviews, whole, tmp_path / "folder")
    # Where the splits are small, their reader has said so.
    assert not any("warning" in message for message in caplog.messages)
    run = load_run(tmp_path / "folder")
    assert run.summary == json.loads(json.dumps(summary))
    assert run.label == ("0w linear baseline, whole reviews" if whole else "0 linear baseline")
    assert summary["name"] == ("linear_baseline_whole_reviews" if whole else "linear_baseline")
    rows, labels, probabilities = read_predictions(tmp_path / "folder" / "test_predictions.csv")
    assert rows.tolist() == reviews.test.rows.tolist()
    assert labels.tolist() == reviews.test.labels.tolist()
    assert summary["test_accuracy"] == ((probabilities >= 0.5) == labels).mean()
    accuracies = [line["validation_accuracy"] for line in run.metrics]
    assert len(accuracies) == len(INVERSE_REGULARISATIONS)
    assert summary["best_validation_accuracy"] == max(accuracies)
    assert summary["best_validation_step"] == 1 + int(np.argmax(accuracies))
    assert summary["train_accuracy"] > 0.9
    assert summary["test_seconds"] > 0


def test_parameters_are_a_weight_per_feature_and_a_bias(config, reviews, tmp_path):
    vectorizer, _ = ngram_features(reviews, whole=False)
    assert run_baseline(config, reviews, False, tmp_path / "run")["parameters"] == len(vectorizer.vocabulary_) + 1


def test_baseline_reads_the_same_tokens_as_the_models_or_whole_reviews(reviews):
    cut, whole = (tokens_as_text(reviews, "train", which) for which in (False, True))
    ids = reviews.train.dataset["input_ids"]
    assert [list(map(int, text.split())) for text in cut] == [list(tokens) for tokens in ids]
    assert max(len(text.split()) for text in cut) <= 12
    assert whole[3] == " ".join(map(str, reviews.tokenizer(reviews.train.texts[3])["input_ids"][1:-1]))


def test_vocabulary_comes_from_the_training_reviews_only(reviews):
    vectorizer, matrices = ngram_features(reviews, whole=False)
    assert {name: matrix.shape for name, matrix in matrices.items()} == {
        name: (len(getattr(reviews, name)), len(vectorizer.vocabulary_)) for name in ("train", "validation")
    }
    texts = tokens_as_text(reviews, "train", whole=False)
    pairs = {" ".join(pair) for text in texts for pair in zip(text.split(), text.split()[1:], strict=False)}
    assert {term for term in vectorizer.vocabulary_ if " " in term} <= pairs


def test_command_writes_both_baselines_beside_run_dir(config, reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(linear_baseline, "load_reviews", lambda data: reviews)
    assert main(["profile=tiny", f"run_dir={tmp_path / 'logs' / 'x'}"]) == 0
    folders = {path.name for path in (tmp_path / "logs").iterdir()}
    assert folders == {"0_linear_baseline", "0w_linear_baseline_whole_reviews"}
    assert [run.key for run in load_runs(tmp_path / "logs")] == ["0", "0w"]


def test_key_makes_a_variant_of_the_first_baseline(config, reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(linear_baseline, "load_reviews", lambda data: reviews)
    words = ["profile=tiny", "key=0d", "name=baseline_512", "architecture=linear baseline, 512 tokens"]
    assert main([*words, f"run_dir={tmp_path / 'logs' / 'x'}"]) == 0
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["0d_baseline_512"]
    (run,) = load_runs(tmp_path / "logs")
    assert (run.label, run.summary["experiment"]) == ("0d linear baseline, 512 tokens", 0)


def test_unknown_profile_is_refused(capsys):
    assert main(["profile=nothing"]) == 2
    assert "there is no 'nothing'" in capsys.readouterr().err


def test_second_baseline_with_other_settings_is_refused_unless_overwritten(
    config, reviews, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(linear_baseline, "load_reviews", lambda data: reviews)
    arguments = ["profile=tiny", f"run_dir={tmp_path / 'x'}"]
    assert main(arguments) == 0
    summary = tmp_path / "0w_linear_baseline_whole_reviews" / "summary.json"
    first = summary.read_bytes()
    monkeypatch.setattr(linear_baseline, "_fit", lambda *_: pytest.fail("something was computed"))
    # The same again is kept; settings of a network make no difference.
    assert main([*arguments, "train.epochs=7"]) == 0
    assert main([*arguments, "data.max_length=11"]) == 2
    error = capsys.readouterr().err
    assert "0_linear_baseline holds a complete run with other settings (data.max_length: " in error
    assert "overwrite=true" in error
    assert summary.read_bytes() == first
    monkeypatch.undo()
    monkeypatch.setattr(linear_baseline, "load_reviews", lambda data: reviews)
    assert main([*arguments, "data.max_length=11", "overwrite=true"]) == 0
    assert summary.read_bytes() != first
    assert main([*arguments, "data.max_length=11"]) == 0


def test_split_of_one_class_is_refused(config, reviews, tmp_path):
    positive = TokenizedReviews(reviews.test.dataset.filter(lambda review: review["label"] == 1))
    with pytest.raises(InputError, match="test split: none of the 11 reviews is negative; both classes are needed"):
        run_baseline(config, dataclasses.replace(reviews, test=positive), False, tmp_path / "run")
    assert not (tmp_path / "run").exists()
