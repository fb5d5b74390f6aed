"""analysis/robustness.py: comparisons by hand, the measurement on small trained models, identity, resuming; plots."""

import dataclasses
import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy.stats import false_discovery_control

from analysis import robustness
from analysis.attack import attack
from analysis.robustness import (
    CONTROLS,
    UNTRAINED_REMOVED,
    Condition,
    Parts,
    Sample,
    Tokens,
    all_conditions,
    compare,
    compare_uncut,
    control_ids,
    directional_effect,
    encode,
    encode_once,
    load_models,
    main,
    mark_changes,
    measure,
    measure_controls,
    read_clean,
    window_changes,
)
from analysis.robustness_figures import amount_curves, attack_curves, control_points, heat_map
from config import InputError, load_config
from data import load_reviews
from helpers import small_config
from perturbations import PERTURBATIONS, WORD, WORD_EDITS, perturb
from train import run

ROOT = Path(robustness.__file__).resolve().parents[1]

# ---------------------------------------------------------------- comparisons


def test_compare_equals_values_by_hand():
    labels = np.array([1, 1, 0, 0, 1])
    before = np.array([0.9, 0.6, 0.2, 0.7, 0.3])
    after = np.array([0.8, 0.4, 0.1, 0.2, 0.3])
    row = compare(before, after, labels)
    assert (row["lost"], row["won"]) == (1, 1)
    assert row["accuracy"] == pytest.approx(3 / 5)
    assert row["drop"] == 0
    assert row["flip_rate"] == pytest.approx(2 / 5)
    assert row["probability_change"] == pytest.approx((-0.1 - 0.2 + 0.1 + 0.5 + 0.0) / 5)


def test_directional_effect_counts_only_changed_reviews_with_the_opposite_label():
    labels = np.array([1, 1, 0, 0])
    before, after = np.array([0.9, 0.8, 0.2, 0.4]), np.array([0.3, 0.85, 0.6, 0.4])
    changed = np.array([True, True, True, False])
    assert directional_effect(before, after, labels, changed, None) == {
        "num_targeted": 3,
        "share_lowered": pytest.approx(2 / 3),
        "share_flipped": pytest.approx(2 / 3),
    }
    praise = {"num_targeted": 1, "share_lowered": 1.0, "share_flipped": 1.0}
    assert directional_effect(before, after, labels, changed, 1) == praise
    unmoved = {"num_targeted": 1, "share_lowered": 0.0, "share_flipped": 0.0}
    assert directional_effect(before, after, labels, ~changed, 1) == unmoved
    none = {"num_targeted": 0, "share_lowered": None, "share_flipped": None}
    assert directional_effect(before, after, labels, changed & False, None) == none


def test_changed_words_are_marked_in_both_texts():
    assert mark_changes("a good film, truly", "a godo film, very truly") == (
        "a [[good]] film, truly",
        "a [[godo]] film, [[very]] truly",
    )
    assert mark_changes("one two three", "one three") == ("one [[two]] three", "one three")
    assert mark_changes("all the same", "all the same") == ("all the same", "all the same")


def test_excerpt_starts_shortly_before_the_first_change():
    words = [f"w{i}" for i in range(60)]
    changed = " ".join([*words[:30], "new", *words[31:]])
    before, after = mark_changes(" ".join(words), changed, num_before=2, max_characters=30)
    assert before == "... w28 w29 [[w30]] w31 w32 w33 ..."
    assert after == "... w28 w29 [[new]] w31 w32 w33 ..."


def test_every_condition_has_a_unique_name_and_a_kind():
    conditions = all_conditions()
    assert len({(c.label, c.amount) for c in conditions}) == len(conditions)
    assert {c.kind for c in conditions} == {p.kind for p in PERTURBATIONS.values()} - {"control"} | {"composition"}
    assert len(conditions) >= 3 * 30
    assert Condition(WORD_EDITS, 0.5).label == "all eight word edits"


# ---------------------------------------------------------------- trained models


@pytest.fixture(scope="module")
def trained(trained_run):
    """Run folders of two small trained models."""
    return [trained_run(experiment) for experiment in ("1_lstm", "5_transformer_prenorm")]


@pytest.fixture(scope="module")
def models(trained):
    return load_models(trained)


@pytest.fixture(scope="module")
def sample(trained):
    split = load_reviews(load_config(trained[0] / "config.yaml").data).train
    return Sample(split.texts, split.labels, seed=3)


@pytest.fixture(scope="module")
def other_seed(tmp_path_factory, review_files):
    """Another seed of the first model, hardly trained, so that its accuracy differs."""
    folder = tmp_path_factory.mktemp("robust") / "1_lstm"
    run(small_config("1_lstm", review_files, folder, "train.learning_rate=1e-6", "seed=1"))
    return folder


def test_perturbation_without_effect_on_the_tokens_costs_nothing(models, sample):
    conditions = [Condition(("qwerty",), 0.0), Condition(("lowercase",), 1.0), Condition(("spaces",), 0.8)]
    log = measure(models, sample, conditions)
    assert len(log["rows"]) == len(conditions) * len(models)
    for row in log["rows"]:
        assert row["drop"] == 0
        assert row["mcnemar_p"] == row["adjusted_p"] == 1
        assert row["flip_rate"] == row["probability_change"] == 0
    assert not log["examples"]


def test_rows_and_mechanisms_equal_those_computed_from_predictions(models, sample):
    condition = Condition(("homoglyph", "deletion"), 0.8)
    log = measure(models, sample, [condition])
    perturbed = perturb(sample.texts, condition.names, 0.8, sample.seed)
    for model, row in zip(models, log["rows"], strict=True):
        before, after = (model.trained.probabilities(texts) for texts in (sample.texts, perturbed))
        assert row["accuracy"] == ((after >= 0.5) == sample.labels).mean()
        assert row["drop"] == pytest.approx(((before >= 0.5) == sample.labels).mean() - row["accuracy"])
        assert row["model"] == model.name
    (mechanism,) = log["mechanisms"]
    tokens = models[0].trained.tokenizer(perturbed)["input_ids"]
    ids = [i for row in tokens for i in row]
    assert mechanism["unknown_after"] == pytest.approx(ids.count(100) / len(ids))
    words = [(set(WORD.findall(old)), set(WORD.findall(new))) for old, new in zip(sample.texts, perturbed, strict=True)]
    assert 0 < mechanism["words_changed"] <= 1
    assert any(old - new for old, new in words)
    adjusted = false_discovery_control([row["mcnemar_p"] for row in log["rows"]])
    assert [row["adjusted_p"] for row in log["rows"]] == pytest.approx(adjusted.tolist())


def test_log_has_the_format_of_the_committed_log(trained, models, sample):
    reference = json.loads((ROOT / "logs/reference/robustness.json").read_text())
    log = measure(models, sample, [Condition(("negation_added",), 0.8), Condition(("qwerty",), 0.8)])
    log["controls"] = measure_controls(models, sample, read_clean(models, sample), [0.8])
    assert [(model["model"], model["label"]) for model in log["models"]] == [
        ("1", "BiLSTM"),
        ("5", "Transformer 2L pre-norm"),
    ]
    for kind in ("directional", "word_edit"):
        rows, expected = ([row for row in part["rows"] if row["kind"] == kind] for part in (log, reference))
        assert set(rows[0]) == set(expected[0])
    for part in ("models", "mechanisms", "examples", "controls"):
        assert set(log[part][0]) == set(reference[part][0]), part


def test_unknown_control_replaces_the_words_that_homoglyph_changes(sample):
    homoglyphs, unknown = (perturb(sample.texts, name, 0.5, 1) for name in ("homoglyph", "homoglyph_unknown"))
    for text, one, other in zip(sample.texts, homoglyphs, unknown, strict=True):
        for word, changed, control in zip(text.split(), one.split(), other.split(), strict=True):
            assert (word != changed) == (control == "[UNK]")


@pytest.mark.parametrize(
    ("name", "control", "instead"),
    [
        ("homoglyph", "homoglyph_removed", ""),
        ("qwerty", "qwerty_unknown", "[UNK]"),
        ("qwerty", "qwerty_removed", ""),
        ("antonym", "antonym_removed", ""),
    ],
)
def test_control_changes_the_words_that_its_perturbation_changes(name, control, instead):
    text = "I expected a dull, boring film; it was good and funny, with a great cast and a weak end."
    perturbed, controlled = (perturb(text, which, 0.5, 2) for which in (name, control))
    pairs = list(zip(text.split(" "), perturbed.split(" "), strict=True))
    assert 1 < sum(old != new for old, new in pairs) < len(pairs)
    assert controlled == " ".join(old if old == new else re.sub(r"\w+", instead, old) for old, new in pairs)


def test_controls_are_compared_on_the_same_reviews(models, sample):
    clean = read_clean(models, sample)
    rows = measure_controls(models, sample, clean, [0.0, 0.8])
    pairs = [(name, control) for name, controls in CONTROLS.items() for control in controls]
    assert Counter((r["condition"], r["control"], r["amount"], r["model"]) for r in rows) == Counter(
        (*pair, amount, model.name) for pair in pairs for amount in (0.0, 0.8) for model in models
    )
    for row in rows:
        if row["amount"] == 0 and row["control"] != UNTRAINED_REMOVED:
            assert (row["drop"], row["flip_rate"], row["mcnemar_p"]) == (0, 0, 1)
    by_name = {model.name: model.trained for model in models}
    for row in rows:
        if row["amount"] == 0.8 and row["control"] != UNTRAINED_REMOVED:
            accuracy = {
                name: (by_name[row["model"]].probabilities(perturb(sample.texts, name, 0.8, sample.seed)) >= 0.5)
                == sample.labels
                for name in (row["condition"], row["control"])
            }
            assert row["accuracy"] == accuracy[row["condition"]].mean()
            assert row["drop"] == pytest.approx(accuracy[row["control"]].mean() - row["accuracy"])


def test_untrained_tokens_are_those_of_no_training_review(models):
    trained_on = Sample(["good film", "bad film"], np.array([1, 0]), training_texts=["good film", "bad film"])
    clean = read_clean(models, trained_on)
    tokenizer = models[0].trained.tokenizer
    (ids,) = clean.trained_ids.values()
    assert ids == set(tokenizer("good bad film")["input_ids"])
    read = encode(models[0].trained, ["good awful film"])
    controlled = control_ids(UNTRAINED_REMOVED, models, trained_on, clean, {models[0].tokenization: read}, 0.5)
    assert controlled[models[0].tokenization] == [tokenizer("good film")["input_ids"]]
    changes = window_changes(encode(models[0].trained, ["good film"]), read, ids)
    assert (changes["untrained_before"], changes["untrained_after"]) == (0, 1 / 5)


def test_tokens_pushed_out_of_the_window_are_told_from_those_edited_away():
    def tokens(ids):
        cut = [[1, *row[:4], 2] for row in ids]
        rest = [row[4:] for row in ids]
        return Tokens(cut, rest, np.array([len(row) + 2 for row in ids]), np.zeros(len(ids)), 6)

    # 12 becomes 21, 22 and pushes 14 behind the limit; in the second row 32 is left out and lets in 35.
    before, after = tokens([[11, 12, 13, 14], [31, 32, 33, 34, 35]]), tokens([[11, 21, 22, 13, 14], [31, 33, 34, 35]])
    assert window_changes(before, after, frozenset(range(21))) == {
        "tokens_lost": 3 / 12,
        "pushed_out": 1 / 12,
        "tokens_new": 3 / 12,
        "let_in": 1 / 12,
        "untrained_before": 4 / 12,
        "untrained_after": 6 / 12,
    }
    assert (before.is_whole.tolist(), after.is_whole.tolist()) == ([True, False], [False, True])


def test_uncut_reviews_are_compared_apart():
    labels = np.array([1, 1, 0, 0])
    before, after = np.array([0.9, 0.8, 0.2, 0.6]), np.array([0.3, 0.85, 0.6, 0.4])
    uncut = compare_uncut(before, after, labels, np.array([True, True, False, True]))
    assert (uncut["reviews"], uncut["accuracy"], uncut["drop"]) == (3, pytest.approx(2 / 3), 0)
    assert uncut["drop_interval"] == compare(before[[0, 1, 3]], after[[0, 1, 3]], labels[[0, 1, 3]])["drop_interval"]
    none = {"reviews": 0, "accuracy": None, "drop": None, "drop_interval": None}
    assert compare_uncut(before, after, labels, np.zeros(4, dtype=bool)) == none


def test_models_compute_in_the_precision_of_their_run(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "bf16")
    config = (folder / "config.yaml").read_text().replace("device: cpu", "device: auto")
    for precision, expected in (("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp32")):
        (folder / "config.yaml").write_text(config.replace("precision: fp32", f"precision: {precision}"))
        (model,) = load_models([folder])
        assert model.trained.precision == (precision if torch.cuda.is_available() else expected)


def test_attack_lowers_accuracy_more_than_random_edits(models, sample):
    for model in models:
        accuracies = attack(model.trained, sample.texts[:20], sample.labels[:20], budget=3)
        assert len(accuracies["greedy"]) == len(accuracies["random"]) == 4
        assert accuracies["greedy"][0] == accuracies["random"][0]
        assert accuracies["greedy"][3] <= accuracies["random"][3]
        assert accuracies["greedy"][3] < accuracies["greedy"][0]


def test_attack_tells_how_many_of_its_words_stand_at_the_start(models):
    texts = [" ".join(f"word{i}" for i in range(40)), "good film"]
    log = attack(models[0].trained, texts, np.array([1, 1]), budget=40)
    # All words of both, as far as the model can see: 32 of the first's, and the other's two.
    seen = min(40, models[0].trained.max_length) + 2
    assert log["share_at_start"] == pytest.approx(min(seen, 34) / seen)
    assert log["random_share_at_start"] == pytest.approx(34 / 42)


def test_attack_leaves_reviews_without_words_unchanged(models):
    accuracies = attack(models[0].trained, ["...", ""], np.array([0, 1]), budget=2)
    assert len(set(accuracies["greedy"] + accuracies["random"])) == 1


# ---------------------------------------------------------------- tokens


def test_tokens_after_the_cut_are_counted(models):
    model = models[0].trained
    texts = ["one two", "word " * 60, "☃ " * 60, ""]
    tokens = encode(model, texts)
    uncut = model.tokenizer(texts)["input_ids"]
    assert tokens.lengths.tolist() == [len(ids) for ids in uncut]
    assert tokens.num_unknown.tolist() == [ids.count(model.tokenizer.unk_token_id) for ids in uncut]
    assert tokens.num_unknown[2] == 60 > model.max_length
    assert tokens.ids == model.token_ids(texts)


def test_models_with_the_same_tokenizer_share_the_tokens(models, monkeypatch):
    encoded = []
    monkeypatch.setattr(robustness, "encode", lambda model, texts: encoded.append(model) or encode(model, texts))
    tokens = encode_once([*models, *models], ["one two", "three"])
    assert len(encoded) == len(tokens) == len({model.tokenization for model in models}) == 1
    assert tokens[models[0].tokenization].ids == models[0].trained.token_ids(["one two", "three"])


# ---------------------------------------------------------------- identity of runs


def test_two_seeds_of_one_experiment_keep_their_own_clean_accuracies(trained, other_seed, sample):
    seeds = [trained[0], other_seed]
    together = measure(load_models(seeds), sample, [Condition(("qwerty",), 0.5)])
    assert [model["model"] for model in together["models"]] == ["1 seed 0", "1 seed 1"]
    assert [row["model"] for row in together["rows"]] == ["1 seed 0", "1 seed 1"]
    alone = [measure(load_models([folder]), sample, [Condition(("qwerty",), 0.5)]) for folder in seeds]
    assert [log["models"][0]["model"] for log in alone] == ["1", "1"]
    accuracies = [log["models"][0]["accuracy"] for log in alone]
    assert accuracies[0] != accuracies[1]
    assert [model["accuracy"] for model in together["models"]] == accuracies
    assert [row["drop"] for row in together["rows"]] == [log["rows"][0]["drop"] for log in alone]


def test_runs_with_the_same_key_and_seed_are_refused(trained, tmp_path):
    copy = shutil.copytree(trained[0], tmp_path / "copy")
    with pytest.raises(InputError, match=r"both 1 with seed 0: they can't be told apart"):
        load_models([trained[0], copy])


# ---------------------------------------------------------------- the command


def test_command_writes_the_log_and_the_plots(trained, tmp_path, capsys):
    output = tmp_path / "first.json"
    (tmp_path / "second_heat_map.png").write_text("of another log")
    arguments = [*map(str, trained), "--output", str(output), "--amounts", "0.5", "--reviews", "16"]
    assert main([*arguments, "--attack", "4", "--budget", "1"]) == 0
    log = json.loads(output.read_text())
    assert log["reviews"] == 16
    assert len(log["rows"]) == 2 * len(all_conditions([0.5]))
    assert [(attack["model"], attack["reviews"], attack["budget"]) for attack in log["attacks"]] == [
        ("1", 4, 1),
        ("5", 4, 1),
    ]
    names = {f"first_{name}.png" for name in ("heat_map", "amounts", "mechanisms", "controls", "attack")}
    assert {path.name for path in tmp_path.iterdir()} == {"first.json", "second_heat_map.png", *names}
    assert (tmp_path / "second_heat_map.png").read_text() == "of another log"
    for name in names:
        assert plt.imread(output.parent / name).std() > 0
    assert re.search(
        r"qwerty, amount 0\.5: points of accuracy lost by model 1: -?\d+\.\d, 5: -?\d", capsys.readouterr().out
    )


def test_killed_measurement_resumes_with_the_same_log(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "write_figures", lambda log, folder: None)
    options = ["--amounts", "0.5", "--reviews", "16", "--attack", "4", "--budget", "1", "--output"]
    uninterrupted, resumed = tmp_path / "uninterrupted.json", tmp_path / "resumed.json"
    assert main([*map(str, trained), *options, str(uninterrupted)]) == 0
    measured, measure_condition = [], robustness.measure_condition

    def interrupt_after_nine(*arguments):
        if len(measured) == 9:
            raise KeyboardInterrupt
        measured.append(arguments)
        return measure_condition(*arguments)

    monkeypatch.setattr(robustness, "measure_condition", interrupt_after_nine)
    assert main([*map(str, trained), *options, str(resumed)]) == 130
    assert not resumed.exists()
    (part,) = tmp_path.glob("*.part.jsonl")
    with part.open("a") as file:
        file.write('{"half of a li')
    monkeypatch.setattr(
        robustness, "measure_condition", lambda *arguments: measured.append(1) or measure_condition(*arguments)
    )
    assert main([*map(str, trained), *options, str(resumed)]) == 0
    assert len(measured) == len(all_conditions([0.5]))
    assert resumed.read_text() == uninterrupted.read_text()
    assert not part.exists()


def test_damaged_parts_are_measured_again(tmp_path, caplog):
    parts = Parts(tmp_path / "x.json", ["a"])
    assert (parts("one", lambda: {"value": 1}), parts("two", lambda: {"value": 2})) == ({"value": 1}, {"value": 2})
    lines = parts.path.read_bytes().splitlines()
    parts.path.write_bytes(b"\n".join([b"\xff{" + lines[0], lines[1], b"[]"]) + b"\n")
    again = Parts(tmp_path / "x.json", ["a"])
    assert "2 damaged lines; what they held is measured again" in caplog.text
    assert (again("two", lambda: {"value": 4}), again("one", lambda: {"value": 3})) == ({"value": 2}, {"value": 3})
    whole = Parts(tmp_path / "x.json", ["a"])
    assert whole("one", lambda: {"value": 5}) == {"value": 3}


def test_sample_is_balanced_seeded_and_in_order():
    labels = np.array([1] * 60 + [0] * 40)
    reviews = Sample([f"{i}" for i in range(100)], labels, seed=1)
    sample = robustness.balanced_sample(reviews, 20)
    numbers = [int(text) for text in sample.texts]
    assert np.bincount(sample.labels).tolist() == [10, 10]
    assert numbers == sorted(numbers)
    assert labels[numbers].tolist() == sample.labels.tolist()
    assert numbers[:10] != list(range(10))
    assert robustness.balanced_sample(reviews, 20).texts == sample.texts
    assert robustness.balanced_sample(dataclasses.replace(reviews, seed=2), 20).texts != sample.texts
    # As many as the smaller class allows.
    assert np.bincount(robustness.balanced_sample(reviews, 100).labels).tolist() == [40, 40]


def test_attack_reads_a_balanced_sample_of_sorted_reviews(models, monkeypatch):
    attacked = []
    monkeypatch.setattr(robustness, "attack", lambda model, texts, labels, *_: attacked.append(labels) or {})
    reviews = Sample([f"{i}" for i in range(40)], np.array([0] * 20 + [1] * 20))
    log = robustness._measure_attacks(models, reviews, 10, 1, lambda name, compute: compute())
    assert [entry["reviews"] for entry in log] == [10, 10]
    assert [np.bincount(labels).tolist() for labels in attacked] == [[5, 5], [5, 5]]
    assert robustness._measure_attacks(models, reviews, 0, 1, None) == []


def test_parts_of_another_measurement_are_not_reused(tmp_path):
    one, other = (Parts(tmp_path / "x.json", identity) for identity in (["a", "bc"], ["ab", "c"]))
    assert one("part", lambda: {"value": 1}) == {"value": 1}
    assert other("part", lambda: {"value": 2}) == {"value": 2}
    again = Parts(tmp_path / "x.json", ["a", "bc"])
    assert again("part", lambda: {"value": 3}) == {"value": 1}


def test_identity_depends_on_weights_names_texts_labels_and_seed(models, sample):
    changes = {
        "nothing": (models, sample),
        "order": (models[::-1], sample),
        "name": ([dataclasses.replace(models[0], name="x"), models[1]], sample),
        "weights": ([dataclasses.replace(models[0], weights="x"), models[1]], sample),
        "tokenization": ([dataclasses.replace(models[0], tokenization="x"), models[1]], sample),
        "texts": (models, dataclasses.replace(sample, texts=[*sample.texts[:-1], "x"])),
        "labels": (models, dataclasses.replace(sample, labels=1 - sample.labels)),
        "seed": (models, dataclasses.replace(sample, seed=4)),
    }
    identities = {name: robustness._identity(*arguments) for name, arguments in changes.items()}
    for name, identity in identities.items():
        others = [other for key, other in identities.items() if key != name]
        assert identity not in others, name
    assert identities["nothing"] == robustness._identity(models, sample)


def test_identity_depends_on_the_code(models, sample):
    code = [(ROOT / path).read_text() for path in ("analysis/robustness.py", "analysis/attack.py", "perturbations.py")]
    assert set(code) <= set(robustness._identity(models, sample))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing/summary.json: not a log of a complete run"),
        (["RUN", "NO_SUMMARY"], "no_summary/summary.json: not a log of a complete run"),
        (["RUN", "NO_MODEL"], "no_model/best/model.safetensors: no such file"),
        (["RUN", "RUN"], "they can't be told apart"),
        (["RUN", "--data", "x.csv"], "x.csv: no such file"),
        (["RUN", "--amounts", "0.5", "1.5"], "--amounts: found 1.5; expected shares from 0 to 1"),
        (["RUN", "--amounts", "0.5", "0.5"], "--amounts: found [0.5, 0.5]; expected every amount once"),
        (["RUN", "--amounts", "nan"], "--amounts: found nan"),
        (["RUN", "--seed", "-1"], "--seed: found -1; expected an integer of at least 0"),
        (["RUN", "--reviews", "1"], "--reviews: found 1; expected an integer of at least 2"),
        (["RUN", "--attack", "1"], "--attack: found 1; expected 0 for no attack, or at least 2"),
        (["RUN", "--data", "POSITIVE"], "both classes are needed"),
        (["RUN", "--output", "POSITIVE", "--data", "POSITIVE"], "positive.csv: is an input as well"),
        (["RUN", "--output", "SUMMARY"], "summary.json: is an input as well"),
        (["RUN", "--output", "none/x.json"], "none/x.json: there is no folder none"),
        (["RUN", "--output", "FIGURE"], "y_heat_map.png: a folder; expected a file to write"),
    ],
)
def test_unusable_input_is_refused_before_anything_is_computed(
    trained, tmp_path, capsys, monkeypatch, arguments, message
):
    folders = {"RUN": trained[0], "POSITIVE": tmp_path / "positive.csv", "FIGURE": tmp_path / "y.json"}
    folders["SUMMARY"] = trained[0] / "summary.json"
    folders["POSITIVE"].write_text("text,label\ngood,1\nfine,1\n")
    (tmp_path / "y_heat_map.png").mkdir()
    for name, missing in (("NO_SUMMARY", "summary.json"), ("NO_MODEL", "best")):
        folders[name] = shutil.copytree(trained[1], tmp_path / name.lower(), ignore=shutil.ignore_patterns(missing))
    monkeypatch.setattr(robustness, "measure", lambda *_: pytest.fail("something was computed"))
    arguments = [str(folders.get(text, text)) for text in arguments]
    before = sorted(tmp_path.iterdir())
    assert main(["--output", str(tmp_path / "x.json"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


# ---------------------------------------------------------------- plots


@pytest.fixture
def reference():
    return json.loads((ROOT / "logs/reference/robustness.json").read_text())


def test_plots_name_models_by_key_and_short_name(reference):
    names = [f"{model['model']} {model['label']}" for model in reference["models"]]
    assert "4 LSTM encoder-decoder + attention" in names
    axis = heat_map(reference).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == names
    for figure in (amount_curves(reference, ["qwerty"]), attack_curves(reference)):
        assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    plt.close("all")


def test_attack_curves_show_the_accuracies_with_intervals(reference):
    axis = attack_curves(reference).axes[0]
    for attacked, curve in zip(reference["attacks"], axis.containers, strict=True):
        line, _, (bars,) = curve
        percents = [100 * accuracy for accuracy in attacked["greedy"]]
        assert line.get_ydata().tolist() == pytest.approx(percents)
        for percent, ((_, low), (_, high)) in zip(percents, bars.get_segments(), strict=True):
            # Half the width of a Wald interval is near that of Wilson's, away from 0 and 1.
            half = 196 * math.sqrt(percent / 100 * (1 - percent / 100) / attacked["reviews"])
            assert low <= percent <= high
            if 10 < percent < 90:
                assert (high - low) / 2 == pytest.approx(half, rel=0.02)
    plt.close("all")


def test_heat_map_shows_the_drops_with_a_true_minus_sign(reference):
    next(row for row in reference["rows"] if row["amount"] == 0.4)["drop"] = -0.0003
    figure = heat_map(reference, amount=0.4)
    drops = [100 * row["drop"] for row in reference["rows"] if row["amount"] == 0.4]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(float(text.rstrip("*").replace("−", "-")) for text in texts) == pytest.approx(
        sorted(drops), abs=0.051
    )
    assert any(text.startswith("−") for text in texts)
    assert not any("-" in text or text.startswith("−0.0") for text in texts)
    significant = [row for row in reference["rows"] if row["amount"] == 0.4 and row["adjusted_p"] < 0.05]
    assert sum(text.endswith("*") for text in texts) == len(significant)
    plt.close("all")


def test_amount_curves_start_from_the_clean_accuracy(reference):
    axis = amount_curves(reference, ["homoglyph"]).axes[0]
    assert len(axis.lines) == len(reference["models"])
    for line, model in zip(axis.lines, reference["models"], strict=True):
        rows = [r for r in reference["rows"] if (r["condition"], r["model"]) == ("homoglyph", model["model"])]
        assert line.get_xdata().tolist() == [0, *(row["amount"] for row in rows)]
        accuracies = [model["accuracy"], *(row["accuracy"] for row in rows)]
        assert line.get_ydata().tolist() == pytest.approx([100 * accuracy for accuracy in accuracies])
    plt.close("all")


def test_controls_have_a_panel_each_with_every_model_at_every_amount(reference):
    figure = control_points(reference)
    pairs = dict.fromkeys((row["condition"], row["control"]) for row in reference["controls"])
    titles = [f"{condition} − {control}".replace("_", " ") for condition, control in pairs]
    assert [axis.get_title() for axis in figure.axes] == titles
    points = [container[0].get_ydata() for container in figure.axes[0].containers]
    condition, control = next(iter(pairs))
    for values, model in zip(points, reference["models"], strict=True):
        rows = [row for row in reference["controls"] if row["model"] == model["model"]]
        rows = [row for row in rows if (row["condition"], row["control"]) == (condition, control)]
        assert values == pytest.approx([100 * row["drop"] for row in rows])
        assert len(values) == 3
    plt.close("all")


def test_few_reviews_of_a_class_in_a_file_are_warned_of(trained, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(robustness, "all_conditions", lambda amounts: [Condition(("qwerty",), 0.5)])
    monkeypatch.setattr(robustness, "write_figures", lambda log, output: None)
    reviews = tmp_path / "few.csv"
    reviews.write_text("text,label\ngood,1\nbad,0\nfine,1\n")
    arguments = [str(trained[0]), "--data", str(reviews), "--output", str(tmp_path / "x.json")]
    assert main([*arguments, "--amounts", "0.5", "--attack", "0"]) == 0
    counts = f"{reviews} has 1 negative and 2 positive reviews"
    assert f"warning: {counts}; with fewer than 30 of a class, its metrics are rough" in caplog.messages
