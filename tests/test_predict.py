"""predict.py: labels for new reviews, by command and by function."""

import csv
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

import predict as predict_module
from config import InputError
from helpers import make_texts, small_config, write_csv, write_file
from predict import TrainedModel, classification_metrics, main, predict, predicted_labels
from train import run


@pytest.fixture(scope="module")
def run_dir(review_files, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run(small_config("2_lstm_dropout", review_files, folder, "train.epochs=2", "train.learning_rate=0.01"))
    return str(folder)


def read(path) -> list[tuple[int, float]]:
    with path.open() as file:
        assert file.readline() == "label,probability\n"
        return [(int(label), float(probability)) for label, probability in csv.reader(file)]


def test_file_is_labelled_row_by_row_in_order(run_dir, tmp_path):
    texts, labels = make_texts(30, seed=9)
    source = write_csv(tmp_path / "reviews.csv", texts, labels)
    assert main([run_dir, str(source), "--output", str(tmp_path / "out.csv")]) == 0
    rows = read(tmp_path / "out.csv")
    alone = [predict(run_dir, [text])[0] for text in texts]
    assert [probability for _, probability in rows] == pytest.approx(alone, abs=2e-6)
    assert [label for label, _ in rows] == [int(p >= 0.5) for p in alone]
    assert len({round(p, 4) for p in alone}) > 10


def test_no_progress_bar_without_a_terminal(run_dir, tmp_path, capfd):
    source = write_csv(tmp_path / "reviews.csv", *make_texts(4, seed=9))
    assert main([run_dir, str(source), "--output", str(tmp_path / "out.csv")]) == 0
    assert capfd.readouterr().err == ""


def test_unlabelled_and_empty_reviews_are_labelled(run_dir, tmp_path):
    source = tmp_path / "reviews.csv"
    source.write_text('text\n"great <br />food"\n""\n😀\n')
    assert main([run_dir, str(source), "--output", str(tmp_path / "out.csv")]) == 0
    rows = read(tmp_path / "out.csv")
    assert len(rows) == 3
    assert rows[0][1] == pytest.approx(predict(run_dir, ["great food"])[0], abs=1e-6)


def test_label_of_one_text_is_printed(run_dir, capsys):
    assert main([run_dir, "--text", "awful food"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header == "label,probability"
    label, probability = row.split(",")
    assert float(probability) == pytest.approx(predict(run_dir, ["awful food"])[0], abs=1e-6)
    assert int(label) == int(float(probability) >= 0.5)


def test_probabilities_do_not_depend_on_the_batch_size(run_dir):
    texts, _ = make_texts(12, seed=4)
    np.testing.assert_allclose(predict(run_dir, texts, batch_size=5), predict(run_dir, texts), atol=1e-6)
    assert predict(run_dir, []).shape == (0,)


def test_probability_of_one_half_is_positive():
    labels = predicted_labels(np.array([0.0, np.nextafter(0.5, 0), 0.5, 1.0]))
    assert labels.tolist() == [0, 0, 1, 1]
    assert labels.dtype == np.int64
    assert predicted_labels(np.array([])).shape == (0,)


def test_trained_model_predicts_texts_and_their_ids_alike(run_dir):
    texts = ["great food", "awful <br />food", ""]
    model = TrainedModel(run_dir)
    probabilities = model.probabilities(texts)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(model.probabilities_of_ids(model.token_ids(texts)), probabilities, atol=1e-6)
    # `predict` cleans its texts, a trained model takes them as they are.
    np.testing.assert_allclose(predict(run_dir, texts)[[0, 2]], probabilities[[0, 2]], atol=1e-6)
    assert abs(predict(run_dir, texts)[1] - probabilities[1]) > 1e-6


def test_token_ids_are_cut_to_the_tokens_of_training(run_dir):
    model = TrainedModel(run_dir)
    ids = model.token_ids(["food " * 100, ""])
    assert (len(ids[0]), model.max_length) == (24, 24)
    assert ids[1] == [model.tokenizer.cls_token_id, model.tokenizer.sep_token_id]
    assert model.token_ids([]) == []


def test_run_folder_and_its_model_folder_give_the_same_model(run_dir):
    texts, _ = make_texts(5, seed=4)
    assert predict(f"{run_dir}/best", texts).tolist() == predict(run_dir, texts).tolist()


def test_folder_without_a_model_is_refused(tmp_path, capsys):
    with pytest.raises(InputError, match="model.safetensors: no such file; train the model first"):
        predict(tmp_path, ["good"])
    assert main([str(tmp_path), "--text", "good"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(InputError, match=r"missing: no such folder; expected that of a run or of a saved model"):
        predict(tmp_path / "missing", ["good"])


def test_missing_file_of_reviews_is_refused(run_dir, tmp_path, capsys):
    assert main([run_dir, str(tmp_path / "missing.csv"), "--output", str(tmp_path / "out.csv")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'missing.csv'}: no such file\n"
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("name", [".", "missing/out.csv"])
def test_output_that_can_not_be_written_is_refused(run_dir, tmp_path, capsys, name):
    source = write_csv(tmp_path / "reviews.csv", *make_texts(4, seed=9))
    output = tmp_path / name
    assert main([run_dir, str(source), "--output", str(output)]) == 2
    assert re.match(rf"error: {re.escape(str(output))}: (a folder|there is no folder)", capsys.readouterr().err)


def test_output_that_is_the_input_is_refused_and_kept(run_dir, tmp_path, capsys):
    source = write_csv(tmp_path / "reviews.csv", *make_texts(4, seed=9))
    before = source.read_bytes()
    (tmp_path / "same.csv").symlink_to(source)
    for output in (source, tmp_path / "same.csv"):
        assert main([run_dir, str(source), "--output", str(output)]) == 2
        assert "is an input as well" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_output_is_checked_before_the_model_is_loaded(tmp_path, capsys):
    source = write_csv(tmp_path / "reviews.csv", *make_texts(4, seed=9))
    for more in ([], ["--evaluate"]):
        assert main([str(tmp_path / "no run"), str(source), "--output", str(tmp_path / "no" / "out"), *more]) == 2
        assert f"there is no folder {tmp_path / 'no'}" in capsys.readouterr().err


def test_device_as_output_is_refused(run_dir, tmp_path, capsys):
    source = write_csv(tmp_path / "reviews.csv", *make_texts(4, seed=9))
    assert main([run_dir, str(source), "--output", "/dev/null"]) == 2
    assert capsys.readouterr().err.startswith("error: /dev/null: a device or pipe")
    assert not Path("/dev/null").is_file()


def test_bad_row_is_refused_before_the_computing_and_keeps_the_old_output(run_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(TrainedModel, "probabilities", lambda *arguments: pytest.fail("computed"))
    source, output = (
        write_file(tmp_path, "a.csv", "text\n" + "good\n" * 20 + "a, b\n"),
        write_file(tmp_path, "o.csv", "old"),
    )
    assert main([run_dir, str(source), "--output", str(output)]) == 2
    assert f"{source}, row 21: 2 columns" in capsys.readouterr().err
    assert output.read_text() == "old"


def test_failure_in_the_middle_keeps_the_old_output(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_module, "CHUNK_SIZE", 8)
    probabilities = TrainedModel.probabilities

    def fail_later(self, texts):
        if len(texts) < 8:
            raise RuntimeError("no more memory")
        return probabilities(self, texts)

    monkeypatch.setattr(TrainedModel, "probabilities", fail_later)
    source = write_csv(tmp_path / "reviews.csv", *make_texts(20, seed=9))
    output = write_file(tmp_path, "out.csv", "old")
    with pytest.raises(RuntimeError, match="no more memory"):
        main([run_dir, str(source), "--output", str(output)])
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "reviews.csv"]


def test_file_is_labelled_chunk_by_chunk(run_dir, tmp_path, monkeypatch):
    """So that memory does not grow with the file; the probabilities are those of all texts at once."""
    texts, labels = make_texts(30, seed=9)
    source = write_csv(tmp_path / "reviews.csv", texts, labels)
    expected = predict(run_dir, texts)
    chunks, token_ids = [], TrainedModel.token_ids
    monkeypatch.setattr(TrainedModel, "token_ids", lambda self, part: chunks.append(len(part)) or token_ids(self, part))
    monkeypatch.setattr(predict_module, "CHUNK_SIZE", 8)
    assert main([run_dir, str(source), "--output", str(tmp_path / "out.csv")]) == 0
    assert chunks == [8, 8, 8, 6]
    assert [probability for _, probability in read(tmp_path / "out.csv")] == pytest.approx(expected, abs=2e-6)
    np.testing.assert_allclose(predict(run_dir, texts), expected, atol=1e-6)
    assert max(chunks) == 8


def test_texts_of_standard_input_are_labelled(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"text\ngreat food\nawful food\n")))
    assert main([run_dir, "-", "--output", str(tmp_path / "out.csv")]) == 0
    expected = predict(run_dir, ["great food", "awful food"])
    assert [probability for _, probability in read(tmp_path / "out.csv")] == pytest.approx(expected, abs=2e-6)


def test_column_of_the_command_line_is_labelled(run_dir, tmp_path, capsys):
    source = write_file(tmp_path, "reviews.csv", "text,body\nawful food,great food\n")
    arguments = [run_dir, str(source), "--output", str(tmp_path / "out.csv"), "--text-column"]
    assert main([*arguments, "body"]) == 0
    assert read(tmp_path / "out.csv")[0][1] == pytest.approx(predict(run_dir, ["great food"])[0], abs=2e-6)
    assert main([*arguments, "Body"]) == 2
    assert "data.text_column is 'Body'; there are the columns ['text', 'body']" in capsys.readouterr().err


# ---------------------------------------------------------------- what `predict` takes

TEXTS = ["great food", "awful food", "a place on a monday"]


@pytest.mark.parametrize(
    "kind",
    [
        tuple,
        iter,
        pd.Series,
        lambda texts: pd.Series(texts, index=[7, 7, 2]),
        lambda texts: pd.DataFrame({"text": texts})["text"].astype("category"),
        np.array,
        lambda texts: np.array(texts, dtype=object),
        lambda texts: Dataset.from_dict({"text": texts})["text"],
        lambda texts: dict(enumerate(texts)).values(),
    ],
    ids=["tuple", "iterator", "series", "index", "category", "array", "objects", "column", "values"],
)
def test_every_sequence_of_strings_is_taken(run_dir, kind):
    np.testing.assert_array_equal(predict(run_dir, kind(TEXTS)), predict(run_dir, TEXTS))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("I loved it", r"texts is a string; expected a list of strings: predict\(run_dir, \[text\]\)"),
        (np.str_("good"), "texts is a string; "),
        (
            pd.DataFrame({"text": TEXTS}),
            r"texts is a DataFrame; expected a list of strings, or the column .* table\['text'\]",
        ),
        ({"text": TEXTS}, "texts is a dict; expected a list"),
        ({"good", "bad"}, "texts is a set; expected a list"),
        (np.array([TEXTS]), "texts is a ndarray; expected a list"),
        (np.array("good"), "texts is a ndarray; expected a list"),
        (None, "texts is None; expected a list of strings"),
        (7, "texts is 7; expected a list of strings"),
        (["good", None], r"texts\[1\]: the text is None; expected a string"),
        (pd.Series(["good", "bad", float("nan")], index=[5, 6, 7]), r"texts\[2\]: the text is nan; expected a string"),
        (pd.Series(["good", pd.NA], dtype="string"), r"texts\[1\]: the text is <NA>; expected a string"),
        (np.array(["good", 3], dtype=object), r"texts\[1\]: the text is 3; expected a string"),
        (b"good", r"texts\[0\]: the text is 103; expected a string"),
        ([["good"]], r"texts\[0\]: the text is \['good'\]; expected a string"),
        (["good", "so \ud83d"], r"texts\[1\]: the lone surrogate U\+D83D at character 4 is not UTF-8"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("texts") else "",
)
def test_texts_that_are_no_list_of_strings_are_refused_with_the_position(run_dir, texts, message):
    with pytest.raises(InputError, match="^" + message):
        predict(run_dir, texts)
    with pytest.raises(InputError, match="^" + message):
        TrainedModel(run_dir).probabilities(texts)


# ---------------------------------------------------------------- evaluation


def test_metrics_of_probabilities_are_those_of_the_definitions():
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    probabilities = np.array([0.02, 0.08, 0.61, 0.69, 0.95, 1.0, 0.45, 0.5])
    metrics = classification_metrics(labels, probabilities)
    assert metrics["confusion_matrix"] == [[2, 2], [1, 3]]
    assert (metrics["reviews"], metrics["positive"], metrics["accuracy"]) == (8, 4, 5 / 8)
    assert metrics["f1"] == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))
    # Wilson's interval, written out.
    p, n, z = 5 / 8, 8, 1.959963984540054
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    ends = [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]
    assert metrics["accuracy_interval"] == pytest.approx(ends)
    # Bins 0-0.1, 0.4-0.5, 0.5-0.6, 0.6-0.7, 0.9-1: reviews, mean probability, share of positive.
    bins = [(2, 0.05, 0.0), (1, 0.45, 1.0), (1, 0.5, 0.0), (2, 0.65, 0.5), (2, 0.975, 1.0)]
    assert [tuple(b.values()) for b in metrics["calibration"]] == [pytest.approx(b) for b in bins]
    error = sum(count * abs(mean - share) for count, mean, share in bins) / 8
    assert metrics["expected_calibration_error"] == pytest.approx(error)


def test_labelled_file_is_evaluated_and_written_as_json(run_dir, tmp_path, capsys):
    texts, labels = make_texts(31, seed=9)
    rows = "".join(f"{text},{5 if label else 1}\n" for text, label in zip(texts, labels, strict=True))
    source, output = write_file(tmp_path, "reviews.csv", "body,stars\nso so,3\n" + rows), tmp_path / "out.json"
    columns = ["--text-column", "body", "--label-column", "stars", "--labels", "{1: 0, 3: null, 5: 1}"]
    assert main([run_dir, str(source), "--evaluate", "--output", str(output), *columns]) == 0
    metrics = json.loads(output.read_text())
    expected = classification_metrics(np.array(labels), predict(run_dir, texts))
    assert metrics == {"run": run_dir, "data": str(source), **expected}
    lines = capsys.readouterr().out.splitlines()
    low, high = (100 * end for end in metrics["accuracy_interval"])
    assert lines[:3] == [
        "31 reviews: 16 negative, 15 positive",
        f"accuracy {100 * metrics['accuracy']:.1f}% (95% CI {low:.1f}% to {high:.1f}%)",
        f"F1 of positive {metrics['f1']:.3f}",
    ]
    assert [line.split() for line in lines[4:6]] == [
        [name, *map(str, row)] for name, row in zip(("negative", "positive"), metrics["confusion_matrix"], strict=True)
    ]
    assert lines[6] == f"expected calibration error {metrics['expected_calibration_error']:.3f} (10 bins)"
    assert len(lines) == 8 + len(metrics["calibration"])


def test_evaluation_prints_without_an_output(run_dir, tmp_path, capsys, caplog):
    source = write_csv(tmp_path / "reviews.csv", *make_texts(8, seed=9))
    assert main([run_dir, str(source), "--evaluate"]) == 0
    assert capsys.readouterr().out.startswith("8 reviews: 4 negative, 4 positive\n")
    assert f"warning: {source} has 4 negative and 4 positive reviews; with fewer than 30" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.csv"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\ngood\n", "no column of labels among ['text']"),
        ("text,label\ngood,1\nfine,1\n", "all 2 reviews are positive; both classes are needed"),
        ("text,label\ngood,1\nbad,9\n", "row 2: label '9'"),
    ],
)
def test_file_that_can_not_be_evaluated_is_refused(run_dir, tmp_path, capsys, content, message):
    source = write_file(tmp_path, "reviews.csv", content)
    assert main([run_dir, str(source), "--evaluate"]) == 2
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["reviews.csv"],
        ["reviews.csv", "--text", "x"],
        ["--evaluate"],
        ["--text", "x", "--evaluate"],
        ["--text", "x", "--output", "out.csv"],
    ],
)
def test_incomplete_or_contradictory_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", *arguments])
    assert stopped.value.code == 2
