"""robustness.py: the statistics against libraries and simulations, the measurement on small trained models."""

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import small_config
from scipy.stats import false_discovery_control

from analysis import robustness
from analysis.robustness import (
    Condition,
    TrainedModel,
    all_conditions,
    attack,
    compare,
    main,
    mark_changes,
    measure,
    turned,
)
from data import load_reviews
from perturbations import PERTURBATIONS, WORD
from train import run

# ---------------------------------------------------------------- comparisons


def test_a_comparison_by_hand():
    labels = np.array([1, 1, 0, 0, 1])
    before = np.array([0.9, 0.6, 0.2, 0.7, 0.3])
    after = np.array([0.8, 0.4, 0.1, 0.2, 0.3])
    found = compare(before, after, labels)
    assert (found["lost"], found["won"]) == (1, 1)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["drop"] == 0
    assert found["flip_rate"] == pytest.approx(2 / 5)
    assert found["probability_change"] == pytest.approx((-0.1 - 0.2 + 0.1 + 0.5 + 0.0) / 5)


def test_only_reviews_that_a_change_speaks_against_are_asked_whether_they_turned():
    labels = np.array([1, 1, 0, 0])
    before, after = np.array([0.9, 0.8, 0.2, 0.4]), np.array([0.3, 0.85, 0.6, 0.4])
    changed = np.array([True, True, True, False])
    assert turned(before, after, labels, changed, None) == {
        "asked": 3,
        "moved": pytest.approx(2 / 3),
        "turned": pytest.approx(2 / 3),
    }
    assert turned(before, after, labels, changed, 1) == {"asked": 1, "moved": 1.0, "turned": 1.0}
    assert turned(before, after, labels, ~changed, 1) == {"asked": 1, "moved": 0.0, "turned": 0.0}
    assert turned(before, after, labels, changed & False, None)["asked"] == 0


def test_changed_words_are_marked_in_both_texts():
    assert mark_changes("a good film, truly", "a godo film, very truly") == (
        "a [[good]] film, truly",
        "a [[godo]] film, [[very]] truly",
    )
    assert mark_changes("one two three", "one three") == ("one [[two]] three", "one three")
    assert mark_changes("all the same", "all the same") == ("all the same", "all the same")


def test_an_excerpt_begins_a_little_before_the_first_change():
    words = [f"w{i}" for i in range(60)]
    before, after = mark_changes(" ".join(words), " ".join([*words[:30], "new", *words[31:]]), lead=2, limit=30)
    assert before == "... w28 w29 [[w30]] w31 w32 w33 ..."
    assert after == "... w28 w29 [[new]] w31 w32 w33 ..."


# ---------------------------------------------------------------- trained models


@pytest.fixture(scope="module")
def trained(tmp_path_factory, review_files):
    """Run folders of two small trained models."""
    folders = []
    for experiment in ("1_lstm", "5_transformer_prenorm"):
        folders.append(tmp_path_factory.mktemp("robust") / experiment)
        run(small_config(experiment, review_files, folders[-1], "train.epochs=4", "train.learning_rate=0.01"))
    return folders


@pytest.fixture(scope="module")
def models(trained):
    return [TrainedModel(folder) for folder in trained]


@pytest.fixture(scope="module")
def reviews(trained):
    split = load_reviews(robustness.load_config(trained[0] / "config.yaml").data).train
    return split.texts, split.labels


def test_a_perturbation_that_changes_nothing_costs_nothing(models, reviews):
    conditions = [Condition(("qwerty",), 0.0), Condition(("lowercase",), 1.0), Condition(("spaces",), 0.8)]
    found = measure(models, *reviews, conditions)
    assert len(found["rows"]) == len(conditions) * len(models)
    for row in found["rows"]:
        assert row["drop"] == 0
        assert row["mcnemar_p"] == row["adjusted_p"] == 1
        assert row["flip_rate"] == row["probability_change"] == 0
    assert not found["examples"]


def test_rows_and_mechanisms_are_those_of_the_predictions(models, reviews):
    texts, labels = reviews
    condition = Condition(("homoglyph", "deletion"), 0.8)
    found = measure(models, texts, labels, [condition], seed=3)
    perturbed = robustness.perturb(texts, condition.names, 0.8, 3)
    for model, row in zip(models, found["rows"], strict=True):
        before, after = (model.probabilities(model.encode(t)) for t in (texts, perturbed))
        assert row["accuracy"] == ((after >= 0.5) == labels).mean()
        assert row["drop"] == pytest.approx(((before >= 0.5) == labels).mean() - row["accuracy"])
        assert row["model"] == model.label
    (mechanism,) = found["mechanisms"]
    tokens = models[0].tokenizer(perturbed)["input_ids"]
    ids = [i for row in tokens for i in row]
    assert mechanism["unknown_after"] == pytest.approx(ids.count(100) / len(ids))
    counts = [(set(WORD.findall(a)), set(WORD.findall(b))) for a, b in zip(texts, perturbed, strict=True)]
    assert 0 < mechanism["words_changed"] <= 1
    assert any(a - b for a, b in counts)
    adjusted = false_discovery_control([row["mcnemar_p"] for row in found["rows"]])
    assert [row["adjusted_p"] for row in found["rows"]] == pytest.approx(adjusted.tolist())


def test_the_control_makes_unknown_the_words_that_homoglyph_changes(reviews):
    texts, _ = reviews
    glyphs, unknown = (robustness.perturb(texts, name, 0.5, 1) for name in ("homoglyph", "unknown"))
    for text, one, other in zip(texts, glyphs, unknown, strict=True):
        for word, changed, control in zip(text.split(), one.split(), other.split(), strict=True):
            assert (word != changed) == (control == "[UNK]")


def test_a_perturbation_is_compared_with_its_control_on_the_same_reviews(models, reviews):
    texts, labels = reviews
    rows = robustness.controlled(models, texts, labels, [0.0, 0.8], seed=3)
    assert [(row["model"], row["amount"]) for row in rows] == [(m.label, a) for a in (0.0, 0.8) for m in models]
    for row in rows[: len(models)]:
        assert (row["drop"], row["flip_rate"], row["mcnemar_p"]) == (0, 0, 1)
    for model, row in zip(models, rows[len(models) :], strict=True):
        right = {
            name: (model.probabilities(model.encode(robustness.perturb(texts, name, 0.8, 3))) >= 0.5) == labels
            for name in ("homoglyph", "unknown")
        }
        assert row["accuracy"] == right["homoglyph"].mean()
        assert row["drop"] == pytest.approx(right["unknown"].mean() - right["homoglyph"].mean())


def test_the_search_hurts_at_least_as_much_as_chance_and_never_helps(models, reviews):
    texts, labels = reviews
    for model in models:
        found = attack(model, texts[:20], labels[:20], budget=3)
        assert len(found["greedy"]) == len(found["random"]) == 4
        assert found["greedy"][0] == found["random"][0]
        assert found["greedy"][3] <= found["random"][3]
        assert found["greedy"][3] < found["greedy"][0]


def test_every_condition_has_a_name_and_a_kind():
    conditions = all_conditions()
    assert len({(c.label, c.amount) for c in conditions}) == len(conditions)
    assert {c.kind for c in conditions} == {p.kind for p in PERTURBATIONS.values()} | {"composition"}
    assert len(conditions) >= 3 * 30


def test_the_command_writes_a_log_and_figures(trained, tmp_path, capsys):
    output = tmp_path / "robustness.json"
    arguments = [*map(str, trained), "--output", str(output), "--severities", "0.5", "--reviews", "16"]
    assert main([*arguments, "--attack", "4", "--budget", "1"]) == 0
    found = json.loads(output.read_text())
    assert found["reviews"] == 16
    assert len(found["rows"]) == 2 * len(all_conditions([0.5]))
    assert len(found["attacks"]) == 2
    for name in ("heat_map", "severity", "mechanisms", "attack"):
        assert plt.imread(tmp_path / f"robustness_{name}.png").std() > 0
    assert re.search(r"qwerty 0.5: [+-]", capsys.readouterr().out)


def test_a_measurement_that_was_killed_goes_on_where_it_was(trained, tmp_path, monkeypatch):
    options = ["--severities", "0.5", "--reviews", "16", "--attack", "4", "--budget", "1", "--output"]
    whole, killed = tmp_path / "whole.json", tmp_path / "killed.json"
    assert main([*map(str, trained), *options, str(whole)]) == 0
    measured, measure_one = [], robustness.measure_one

    def one_after_the_other(*arguments):
        if len(measured) == 9:
            raise KeyboardInterrupt
        measured.append(arguments)
        return measure_one(*arguments)

    monkeypatch.setattr(robustness, "measure_one", one_after_the_other)
    with pytest.raises(KeyboardInterrupt):
        main([*map(str, trained), *options, str(killed)])
    (part,) = tmp_path.glob("*.part.jsonl")
    with part.open("a") as file:
        file.write('{"half of a li')
    monkeypatch.setattr(robustness, "measure_one", lambda *arguments: measured.append(1) or measure_one(*arguments))
    assert main([*map(str, trained), *options, str(killed)]) == 0
    assert len(measured) == len(all_conditions([0.5]))
    assert killed.read_text() == whole.read_text()
    assert not part.exists()


def test_parts_of_another_measurement_are_not_taken(tmp_path):
    one, other = (robustness.Parts(tmp_path / "x.json", identity) for identity in (["a", "bc"], ["ab", "c"]))
    assert one.remember("part", lambda: {"value": 1}) == {"value": 1}
    assert other.remember("part", lambda: {"value": 2}) == {"value": 2}
    again = robustness.Parts(tmp_path / "x.json", ["a", "bc"])
    assert again.remember("part", lambda: {"value": 3}) == {"value": 1}


def test_tokens_beyond_the_cut_are_counted(models):
    texts = ["one two", "word " * 60, "☃ " * 60, ""]
    tokens = models[0].encode(texts)
    whole = models[0].tokenizer(texts)["input_ids"]
    assert tokens.lengths.tolist() == [len(ids) for ids in whole]
    assert tokens.unknown.tolist() == [ids.count(models[0].tokenizer.unk_token_id) for ids in whole]
    assert tokens.unknown[2] == 60 > models[0].max_length
    assert max(map(len, tokens.ids)) == models[0].max_length


def test_models_that_share_a_tokenizer_share_the_tokens(models, monkeypatch):
    asked = []
    encode = TrainedModel.encode
    monkeypatch.setattr(TrainedModel, "encode", lambda self, texts: asked.append(self.label) or encode(self, texts))
    tokens = robustness.encode_once([*models, *models], ["one two", "three"])
    assert len(asked) == len(tokens) == len({model.key for model in models}) == 1
    assert tokens[models[0].key].ids == models[0].encode(["one two", "three"]).ids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing/best/model.safetensors: no such file"),
        (["RUN", "--data", "x.csv"], "x.csv: no such file"),
    ],
)
def test_input_that_can_not_be_used_is_refused(trained, tmp_path, capsys, arguments, message):
    arguments = [str(trained[0]) if text == "RUN" else text for text in arguments]
    assert main([*arguments, "--output", str(tmp_path / "x.json")]) == 2
    assert message in capsys.readouterr().err
    assert not list(Path(tmp_path).iterdir())
