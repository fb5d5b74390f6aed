"""Labels for new reviews, by command and by function."""

import csv

import numpy as np
import pytest
from conftest import make_texts, write_csv

from config import InputError
from predict import main, predict
from train import run


@pytest.fixture
def run_dir(make_config):
    config = make_config("2_lstm_dropout", "train.epochs=2", "train.learning_rate=0.01")
    run(config)
    return config.run_dir


def read(path) -> list[tuple[int, float]]:
    with path.open() as file:
        assert file.readline() == "label,probability\n"
        return [(int(label), float(probability)) for label, probability in csv.reader(file)]


def test_a_file_is_labelled_row_by_row_in_order(run_dir, tmp_path):
    texts, labels = make_texts(30, seed=9)
    source = write_csv(tmp_path / "reviews.csv", texts, labels)
    assert main([run_dir, str(source), "--output", str(tmp_path / "out.csv")]) == 0
    rows = read(tmp_path / "out.csv")
    alone = [predict(run_dir, [text])[0] for text in texts]
    assert [probability for _, probability in rows] == pytest.approx(alone, abs=2e-6)
    assert [label for label, _ in rows] == [int(p >= 0.5) for p in alone]
    assert len({round(p, 4) for p in alone}) > 10


def test_no_bar_is_drawn_without_a_terminal(run_dir, tmp_path, capfd):
    source = write_csv(tmp_path / "reviews.csv", *make_texts(4, seed=9))
    assert main([run_dir, str(source), "--output", str(tmp_path / "out.csv")]) == 0
    assert capfd.readouterr().err == ""


def test_reviews_without_labels_and_empty_ones_are_labelled_too(run_dir, tmp_path):
    source = tmp_path / "reviews.csv"
    source.write_text('text\n"great <br />food"\n""\n😀\n')
    assert main([run_dir, str(source), "--output", str(tmp_path / "out.csv")]) == 0
    rows = read(tmp_path / "out.csv")
    assert len(rows) == 3
    assert rows[0][1] == pytest.approx(predict(run_dir, ["great food"])[0], abs=1e-6)


def test_one_text_is_printed(run_dir, capsys):
    assert main([run_dir, "--text", "awful food"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header == "label,probability"
    label, probability = row.split(",")
    assert float(probability) == pytest.approx(predict(run_dir, ["awful food"])[0], abs=1e-6)
    assert int(label) == int(float(probability) >= 0.5)


def test_the_size_of_a_batch_changes_nothing(run_dir):
    texts, _ = make_texts(12, seed=4)
    np.testing.assert_allclose(predict(run_dir, texts, batch_size=5), predict(run_dir, texts), atol=1e-6)
    assert predict(run_dir, []).shape == (0,)


def test_a_folder_without_a_model_is_refused(tmp_path, capsys):
    with pytest.raises(InputError, match="model.safetensors: no such file; train the model first"):
        predict(tmp_path, ["good"])
    assert main([str(tmp_path), "--text", "good"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("arguments", [[], ["reviews.csv"], ["reviews.csv", "--text", "x"]])
def test_a_call_that_is_half_given_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", *arguments])
    assert stopped.value.code == 2
