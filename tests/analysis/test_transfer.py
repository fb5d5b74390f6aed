"""transfer.py: trained models on other reviews."""

import json

import pytest
from conftest import small_config

from analysis.transfer import main
from predict import predict
from train import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, review_files):
    folder = tmp_path_factory.mktemp("transfer") / "1_lstm"
    run(small_config("1_lstm", review_files, folder, "train.epochs=1"))
    return folder


def test_accuracy_on_other_reviews(trained, tmp_path, capsys):
    texts = ["good good good", "bad bad bad", "good bad", "fine"]
    (tmp_path / "other.csv").write_text("text,label\n" + "".join(f"{t},{i % 2}\n" for i, t in enumerate(texts)))
    assert main([str(trained), "--data", str(tmp_path / "other.csv"), "--output", str(tmp_path / "x.json")]) == 0
    found = json.loads((tmp_path / "x.json").read_text())
    positive = predict(trained, texts) >= 0.5
    model = found["models"]["1"]
    assert (found["data"], found["reviews"], found["positive"]) == ("other.csv", 4, 0.5)
    assert model["accuracy"] == sum(p == i % 2 for i, p in enumerate(positive)) / 4
    assert model["called_positive"] == positive.mean()
    low, high = model["interval"]
    assert 0 <= low <= model["accuracy"] <= high <= 1
    assert f"1 lstm: {100 * model['accuracy']:.1f}%" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["run", "data"])
def test_what_is_missing_is_named(trained, tmp_path, capsys, missing):
    (tmp_path / "other.csv").write_text("text,label\nfine,1\nbad,0\n")
    run_dir = tmp_path / "none" if missing == "run" else trained
    data = tmp_path / ("none.csv" if missing == "data" else "other.csv")
    assert main([str(run_dir), "--data", str(data), "--output", str(tmp_path / "x.json")]) == 2
    assert "none" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()
