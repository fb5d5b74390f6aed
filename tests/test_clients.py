"""A saved run in the hands of other libraries: transformers' Auto classes, pipeline and Trainer; captum; TextAttack."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    TrainingArguments,
    pipeline,
)
from transformers import Trainer as HuggingFaceTrainer

from config import InputError, load_config
from data import load_reviews
from helpers import small_config
from models import ReviewClassifier, as_plain_bert, load_model
from predict import predict
from train import run

EXPERIMENTS = ("4_lstm_attention", "5_transformer_prenorm", "8_minilm")
TEXTS = ["good good", "bad", "A fine film, good from the first minute to the last. " * 9, "nothing of it is good"]


@pytest.fixture(scope="module", params=EXPERIMENTS)
def saved(request, trained_run) -> Path:
    """The folder of a small run's best model."""
    return trained_run(request.param) / "best"


def test_auto_model_and_tokenizer_load_a_run(saved):
    model = AutoModelForSequenceClassification.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert isinstance(model, ReviewClassifier)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert json.loads((saved / "config.json").read_text())["architectures"] == ["ReviewClassifier"]
    weights = load_file(saved / "model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    batch = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape[1] == tokenizer.model_max_length == model.config.max_tokens
    with torch.inference_mode():
        probabilities = model(**batch).logits.softmax(dim=1)[:, 1]
        unmasked = model(batch["input_ids"]).logits.softmax(dim=1)[:, 1]
    np.testing.assert_allclose(probabilities, predict(saved.parent, TEXTS), atol=1e-5)
    assert torch.equal(unmasked, probabilities)


def test_pipeline_gives_the_probabilities_of_predict(saved):
    classify = pipeline("text-classification", str(saved), device="cpu", top_k=None)
    expected = predict(saved.parent, TEXTS)
    for scores, probability in zip(classify(TEXTS, truncation=True), expected, strict=True):
        by_label = {score["label"]: score["score"] for score in scores}
        assert by_label == pytest.approx({"positive": probability, "negative": 1 - probability}, abs=1e-5)


def test_trainer_of_transformers_takes_a_step(saved, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    encoded = tokenizer(TEXTS, truncation=True)
    reviews = Dataset.from_dict({**encoded, "labels": [1, 0, 1, 0]})
    before = model.classifier.weight.detach().clone()
    trainer = HuggingFaceTrainer(
        model,
        TrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=4, use_cpu=True, report_to="none", disable_tqdm=True
        ),
        train_dataset=reviews,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    assert np.isfinite(trainer.train().training_loss)
    assert not torch.equal(model.classifier.weight, before)
    predicted = trainer.predict(reviews)
    assert predicted.predictions.shape == (4, 2)
    trainer.save_model(tmp_path / "again")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(again.classifier.weight, model.classifier.weight)


def test_evaluation_by_trainer_gives_the_metrics_of_the_run(saved, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(saved)
    split = load_reviews(load_config(saved.parent / "config.yaml").data).validation

    def metrics(predicted: EvalPrediction) -> dict[str, float]:
        labels = predicted.predictions.argmax(axis=1)
        return {
            "accuracy": accuracy_score(predicted.label_ids, labels),
            "f1": f1_score(predicted.label_ids, labels),
        }

    result = HuggingFaceTrainer(
        AutoModelForSequenceClassification.from_pretrained(saved),
        TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True),
        eval_dataset=Dataset.from_dict({**tokenizer(list(split.texts), truncation=True), "labels": split.labels}),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=metrics,
    ).evaluate()
    lines = map(json.loads, (saved.parent / "metrics.jsonl").read_text().splitlines())
    best = min(lines, key=lambda line: (-line["validation_accuracy"], line["validation_loss"]))
    for name in ("loss", "accuracy", "f1"):
        assert result[f"eval_{name}"] == pytest.approx(best[f"validation_{name}"], abs=1e-5), name


def test_tuple_instead_of_an_output_object(saved):
    model = AutoModelForSequenceClassification.from_pretrained(saved)
    ids = torch.tensor([[101, 2204, 102]])
    (logits,) = model(ids, return_dict=False)
    loss, same = model(ids, labels=torch.tensor([1]), return_dict=False)
    assert torch.equal(logits, same)
    assert loss.item() == pytest.approx(-logits.log_softmax(dim=1)[0, 1].item(), abs=1e-6)


def test_call_sequence_of_textattack(saved):
    """What its HuggingFaceModelWrapper does, padded to the limit, and what its white-box attacks need, whose package is
    not installed here: it asks for versions that exclude each other with the project's."""
    model = AutoModelForSequenceClassification.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    inputs = tokenizer(
        TEXTS,
        add_special_tokens=True,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).to(next(model.parameters()).device)
    with torch.no_grad():
        outputs = model(**inputs)
    assert not isinstance(outputs[0], str)
    probabilities = outputs.logits.softmax(dim=1)[:, 1].numpy()
    np.testing.assert_allclose(probabilities, predict(saved.parent, TEXTS), atol=1e-5)
    embedding = model.get_input_embeddings()
    embedding.weight.requires_grad_(True)
    if saved.parent.name != "8_minilm":
        model.train()(**inputs, labels=torch.tensor([1, 0, 1, 0])).loss.backward()
        rows = embedding.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()
        assert set(rows) <= set(inputs["input_ids"].flatten().tolist())
        assert rows


def test_integrated_gradients_of_captum_sum_to_the_difference_of_the_logits(saved):
    """Completeness (Sundararajan et al. 2017, section 3) on one review, and the word that decides."""
    attr = pytest.importorskip("captum.attr", reason="the extra explain is not installed")
    model = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    if saved.parent.name == "8_minilm":
        pytest.skip("its frozen layers compute without gradients")
    tokenizer = AutoTokenizer.from_pretrained(saved)
    batch = tokenizer(["it is a good film"], return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    unknown = torch.full_like(ids, tokenizer.unk_token_id)
    difference = lambda ids, mask: model(ids, mask).logits @ torch.tensor([-1.0, 1.0])  # noqa: E731
    gradients = attr.LayerIntegratedGradients(difference, model.get_input_embeddings())
    attributions = gradients.attribute(ids, unknown, additional_forward_args=(mask,), n_steps=200).sum(dim=-1)
    with torch.no_grad():
        expected = difference(ids, mask) - difference(unknown, mask)
    assert attributions.sum().item() == pytest.approx(expected.item(), abs=0.02 * max(0.05, abs(expected.item())))


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_run_8_is_a_plain_bert_read_at_cls_or_in_the_mean(pooling, review_files, tmp_path):
    run(small_config("8_minilm", review_files, tmp_path / "run", "train.epochs=1", f"model.pooling={pooling}"))
    model, tokenizer, _ = load_model(tmp_path / "run" / "best")
    as_plain_bert(model).save_pretrained(tmp_path / "plain")
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path / "plain")
    assert type(plain).__module__.startswith("transformers.")
    batch = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        logits, expected = plain(**batch).logits, model(**batch).logits
    weights = batch["attention_mask"][:, :, None]
    pooled = logits[:, 0] if pooling == "first" else (logits * weights).sum(dim=1) / weights.sum(dim=1)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    assert plain.config.id2label == {0: "negative", 1: "positive"}


def test_other_backbones_are_no_plain_bert(saved):
    if saved.parent.name != "8_minilm":
        with pytest.raises(InputError, match="is no plain BERT; expected bert with first or mean"):
            as_plain_bert(load_model(saved)[0])
