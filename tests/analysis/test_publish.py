"""analysis/publish.py: the folder loads where the project is not installed; what the card says; the upload."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from analysis import publish
from analysis.publish import main
from helpers import small_config
from predict import predict
from train import run

ROOT = Path(publish.__file__).resolve().parents[1]
TEXTS = ["good good", "bad", "A fine film, good from the first minute to the last. " * 9]
# What somebody who has the folder alone runs: no module of the project can be imported.
CLIENT = """
import json, sys
sys.path = [path for path in sys.path if "-packages" in path or path and not path.startswith(sys.argv[2])]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
try:
    import lstm
except ImportError:
    pass
else:
    sys.exit("the project can be imported: this test shows nothing")
from transformers import pipeline
classify = pipeline("text-classification", sys.argv[1], trust_remote_code=True, device="cpu", top_k=None)
scores = classify(json.loads(sys.argv[3]), truncation=True)
print(json.dumps([{s["label"]: s["score"] for s in of_text}["positive"] for of_text in scores]))
"""


@pytest.fixture(scope="module")
def trained(trained_run) -> Path:
    return trained_run("4_lstm_attention")


@pytest.mark.parametrize("experiment", ["2_lstm_dropout", "8_minilm"])
def test_published_folder_loads_where_the_project_is_not_installed(experiment, review_files, tmp_path):
    run_dir, folder = tmp_path / "run", tmp_path / "my-model"
    run(small_config(experiment, review_files, run_dir, "train.epochs=1"))
    assert main([str(run_dir), "--to", str(folder)]) == 0
    command = [sys.executable, "-c", CLIENT, str(folder), str(ROOT), json.dumps(TEXTS)]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    client = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert client.returncode == 0, client.stderr[-2000:]
    np.testing.assert_allclose(json.loads(client.stdout.splitlines()[-1]), predict(run_dir, TEXTS), atol=1e-5)
    # predict.py takes the folder, too.
    np.testing.assert_allclose(predict(folder, TEXTS), predict(run_dir, TEXTS), atol=1e-7)


def test_card_has_the_metrics_of_the_run_and_says_how_to_load_it(trained, tmp_path):
    assert main([str(trained), "--to", str(tmp_path / "my-model")]) == 0
    summary = json.loads((trained / "summary.json").read_text())
    card = ModelCard.load(tmp_path / "my-model" / "README.md")
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"accuracy": round(summary["test_accuracy"], 4), "f1": round(summary["test_f1"], 4)}
    assert (card.data.license, card.data.pipeline_tag) == ("mit", "text-classification")
    assert f"| accuracy | {summary['test_accuracy']:.1%} (95% interval" in card.text
    assert 'from_pretrained("my-model", trust_remote_code=True)' in card.text
    assert "48 training reviews, from the publisher's own files" in card.text
    settings = (tmp_path / "my-model" / "training_config.yaml").read_text()
    assert settings == (trained / "config.yaml").read_text()


def test_folder_that_holds_something_is_refused_and_kept(trained, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main([str(trained), "--to", str(tmp_path)]) == 2
    assert f"{tmp_path}: holds something already; expected an empty folder, or none" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main([str(tmp_path / "gone"), "--to", str(tmp_path / "out")]) == 2
    assert "gone/summary.json: not a log of a complete run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_push_uploads_the_folder(trained, tmp_path, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, name, exist_ok):
            calls.append((name, exist_ok))

        def upload_folder(self, folder_path, repo_id, commit_message):
            calls.append((folder_path, repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr(publish, "HfApi", Hub)
    folder = tmp_path / "my-model"
    assert main([str(trained), "--to", str(folder), "--push", "me/my-model"]) == 0
    assert calls[0] == ("me/my-model", True)
    assert calls[1][:2] == (folder, "me/my-model")
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json", "classifier.py"} <= set(calls[1][2])
