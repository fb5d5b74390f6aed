"""predict.py: labels for new reviews, by command and by function."""

import csv

import numpy as np
import pytest

from config import InputError
from helpers import make_texts, small_config, write_csv
from predict import TrainedModel, main, predict, predicted_labels
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
    # Of a run, it is the folder that training makes that is missing.
    with pytest.raises(InputError, match=r"missing.best.model\.safetensors: no such file"):
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
    assert capsys.readouterr().err == f"error: --output {output}: expected a file in a folder that exists\n"


@pytest.mark.parametrize("arguments", [[], ["reviews.csv"], ["reviews.csv", "--text", "x"]])
def test_incomplete_or_contradictory_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", *arguments])
    assert stopped.value.code == 2
