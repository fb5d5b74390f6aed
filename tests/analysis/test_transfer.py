"""analysis/transfer.py: zero-shot accuracy of trained models on other reviews."""

import gzip
import json

import pytest

from analysis import transfer
from analysis.transfer import main
from helpers import small_config
from predict import predict
from train import run

TEXTS = ["good good good", "bad bad bad", "good bad", "fine"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, review_files):
    """Two seeds of one experiment, by folder names that say nothing of them."""
    folder = tmp_path_factory.mktemp("transfer")
    for seed, name in enumerate(("first", "second")):
        run(small_config("1_lstm", review_files, folder / name, "train.epochs=1", f"seed={seed}"))
    return folder


@pytest.fixture
def other_reviews(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("text,label\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(TEXTS)))
    return path


def test_accuracy_is_measured_on_the_reviews_of_the_file(trained, other_reviews, tmp_path, capsys, caplog):
    output = tmp_path / "x.json"
    assert main([str(trained / "first"), "--data", str(other_reviews), "--output", str(output)]) == 0
    counts = f"{other_reviews} has 2 negative and 2 positive reviews"
    assert f"warning: {counts}; with fewer than 30 of a class, its metrics are rough" in caplog.messages
    log = json.loads(output.read_text())
    positive = predict(trained / "first", TEXTS) >= 0.5
    model = log["models"]["1"]
    assert (log["data"], log["reviews"], log["positive"]) == ("other.csv", 4, 0.5)
    assert model["label"] == "BiLSTM"
    assert model["accuracy"] == sum(p == i % 2 for i, p in enumerate(positive)) / 4
    assert model["share_predicted_positive"] == positive.mean()
    low, high = model["interval"]
    assert 0 <= low <= model["accuracy"] <= high <= 1
    assert f"1 BiLSTM: {100 * model['accuracy']:.1f}%" in capsys.readouterr().out


def test_two_seeds_of_one_experiment_both_appear(trained, other_reviews, tmp_path, capsys):
    folders = [str(trained / name) for name in ("first", "second")]
    assert main([*folders, "--data", str(other_reviews), "--output", str(tmp_path / "x.json")]) == 0
    models = json.loads((tmp_path / "x.json").read_text())["models"]
    assert list(models) == ["1 seed 0", "1 seed 1"]
    for folder, model in zip(folders, models.values(), strict=True):
        assert model["share_predicted_positive"] == (predict(folder, TEXTS) >= 0.5).mean()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["1 seed 0 BiLSTM", "1 seed 1 BiLSTM"]


def test_one_run_given_twice_is_refused(trained, other_reviews, tmp_path, capsys):
    folder = str(trained / "first")
    assert main([folder, folder, "--data", str(other_reviews), "--output", str(tmp_path / "x.json")]) == 2
    assert "are both 1 with seed 0" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("missing", ["run", "data"])
def test_missing_run_or_data_is_refused_by_name(trained, other_reviews, tmp_path, capsys, missing):
    run_dir = tmp_path / "none" if missing == "run" else trained / "first"
    data = tmp_path / "none.csv" if missing == "data" else other_reviews
    assert main([str(run_dir), "--data", str(data), "--output", str(tmp_path / "x.json")]) == 2
    assert "none" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("form", ["folder", "csv.gz", "TSV"])
def test_reviews_may_be_in_any_form(trained, tmp_path, form):
    data = tmp_path / f"reviews.{form}"
    if form == "folder":
        for i, text in enumerate(TEXTS):
            path = data / ("neg", "pos")[i % 2] / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    elif form == "csv.gz":
        data.write_bytes(gzip.compress(b"review,sentiment\ngood,pos\nbad,NEG\nbad bad,neg\ngood bad,Pos\n"))
    else:
        data.write_text("label\ttext\n1\tgood, good\n0\tbad\n1\tgood bad\n0\tfine\n")
    assert main([str(trained / "first"), "--data", str(data), "--output", str(tmp_path / "x.json")]) == 0
    log = json.loads((tmp_path / "x.json").read_text())
    assert (log["reviews"], log["positive"]) == (4, 0.5)


def test_reviews_of_one_class_give_no_accuracy(trained, tmp_path, capsys):
    data = tmp_path / "positive.csv"
    data.write_text("text,label\ngood,1\nfine,1\n")
    assert main([str(trained / "first"), "--data", str(data), "--output", str(tmp_path / "x.json")]) == 2
    assert "both classes are needed" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("other.csv", "other.csv: is an input as well"),
        ("none/x.json", "there is no folder"),
        ("folder", "a folder; expected a file"),
        ("RUN/summary.json", "summary.json: is an input as well"),
    ],
)
def test_output_is_checked_before_the_models_are_loaded(
    trained, other_reviews, tmp_path, capsys, monkeypatch, output, message
):
    monkeypatch.setattr(transfer, "zero_shot_transfer", lambda *_: pytest.fail("something was computed"))
    (tmp_path / "folder").mkdir()
    path = trained / "first" / "summary.json" if output.startswith("RUN") else tmp_path / output
    assert main([str(trained / "first"), "--data", str(other_reviews), "--output", str(path)]) == 2
    assert message in capsys.readouterr().err
