"""baseline.py: the linear floor on the tests' small reviews."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import small_config

from analysis import linear_baseline
from analysis.facts import load_run, read_predictions
from data import load_reviews


@pytest.fixture(scope="module")
def config(review_files):
    return small_config("1_lstm", review_files, Path("unused"), "data.max_length=12")


@pytest.fixture(scope="module")
def reviews(config):
    return load_reviews(config.data)


@pytest.mark.parametrize("whole", [False, True])
def test_a_floor_is_a_run_like_another(config, reviews, tmp_path, whole):
    summary = linear_baseline.run_floor(config, reviews, whole, tmp_path / "0_bag")
    run = load_run(tmp_path / "0_bag")
    assert run.summary == json.loads(json.dumps(summary))
    assert (run.key, summary["name"]) == ("0", "bag")
    rows, labels, probabilities = read_predictions(tmp_path / "0_bag" / "test_predictions.csv")
    assert rows.tolist() == reviews.test.rows.tolist()
    assert labels.tolist() == reviews.test.labels.tolist()
    assert summary["test_accuracy"] == ((probabilities >= 0.5) == labels).mean()
    accuracies = [line["validation_accuracy"] for line in run.metrics]
    assert len(accuracies) == len(linear_baseline.STRENGTHS)
    assert summary["best_validation_accuracy"] == max(accuracies)
    assert summary["best_validation_step"] == 1 + int(np.argmax(accuracies))
    assert summary["train_accuracy"] > 0.9


def test_the_floor_reads_what_the_models_read_or_the_whole_reviews(reviews):
    cut, whole = (linear_baseline.tokens_as_text(reviews, "train", which) for which in (False, True))
    ids = reviews.train.dataset["input_ids"]
    assert [list(map(int, text.split())) for text in cut] == [list(tokens) for tokens in ids]
    assert max(len(text.split()) for text in cut) <= 12
    assert whole[3] == " ".join(map(str, reviews.tokenizer(reviews.train.texts[3])["input_ids"][1:-1]))


def test_the_vocabulary_is_that_of_the_training_reviews(reviews):
    vectorizer, matrices = linear_baseline.bags(reviews, whole=False)
    assert {name: matrix.shape for name, matrix in matrices.items()} == {
        name: (len(getattr(reviews, name)), len(vectorizer.vocabulary_)) for name in linear_baseline.SPLITS
    }
    texts = linear_baseline.tokens_as_text(reviews, "train", whole=False)
    pairs = {" ".join(pair) for text in texts for pair in zip(text.split(), text.split()[1:], strict=False)}
    assert {term for term in vectorizer.vocabulary_ if " " in term} <= pairs


def test_settings_that_can_not_be_used_are_refused(capsys):
    assert linear_baseline.main(["profile=nothing"]) == 2
    assert "there is no 'nothing'" in capsys.readouterr().err
