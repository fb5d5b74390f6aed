"""The hub's real clients against a server on this machine: loading, its cache, wrong names, a server that is down."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import serve
from transformers import BertConfig, BertModel

from data import packaged_encoder
from helpers import make_texts

ROOT = Path(__file__).resolve().parents[1]
# Where no server listens: the discard port.
DOWN = "http://127.0.0.1:9"
HUB_SETTINGS = [
    "profile=yelp",
    "data.tokenizer=bert-base-uncased",
    "model.pretrained=bert-base-uncased",
    "data.max_train_samples=16",
    "data.max_eval_samples=8",
    "data.max_length=16",
    "train.epochs=2",
    "device=cpu",
    "train.precision=fp32",
]
LOAD_ALL = """
import sys
import datasets
from config import InputError, ModelConfig
from data import load_tokenizer, read_yelp
from models import build_model

datasets.disable_progress_bars()
for load in (
    lambda: load_tokenizer(sys.argv[1]),
    lambda: build_model(ModelConfig(backbone="bert", pretrained=sys.argv[1]), 10, 10),
    lambda: read_yelp(None),
    lambda: read_yelp("v9"),
):
    try:
        load()
        print("loaded")
    except InputError as error:
        print(error)
"""


def write_yelp(folder: Path) -> None:
    """Yelp Polarity in small: its file names and features, 0 for one star."""
    (folder / "plain_text").mkdir(parents=True)
    for seed, (split, count) in enumerate([("train", 48), ("test", 24)]):
        texts, labels = make_texts(count, seed)
        table = pa.Table.from_pandas(pd.DataFrame({"text": texts, "label": labels}))
        features = '{"info": {"features": {"text": {"dtype": "string", "_type": "Value"}, '
        features += '"label": {"names": ["1", "2"], "_type": "ClassLabel"}}}}'
        table = table.replace_schema_metadata({"huggingface": features})
        pq.write_table(table, folder / "plain_text" / f"{split}-00000-of-00001.parquet")


def write_bert(folder: Path) -> None:
    """A BERT of random weights with BERT's vocabulary, and its tokenizer."""
    config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    BertModel(config).save_pretrained(folder)
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(packaged_encoder() / name, folder)


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    write_yelp(folder / "datasets" / "fancyzhx" / "yelp_polarity")
    write_bert(folder / "models" / "google-bert" / "bert-base-uncased")
    return folder


def run_python(arguments: list, home: Path, endpoint: str) -> str:
    """Output and errors of a fresh Python process, whose hub is at `endpoint` and whose caches are in `home`."""
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


def train_minilm(home: Path, endpoint: str, name: str) -> str:
    folders = [f"run_dir={home / name}", f"data.cache_dir={home / name}-cache"]
    return run_python(["train.py", "configs/8_minilm.yaml", *HUB_SETTINGS, *folders], home, endpoint)


def test_reviews_and_encoder_come_from_the_hub_and_then_from_its_cache(hub_folder, tmp_path):
    with serve(hub_folder) as (endpoint, requests):
        output = train_minilm(tmp_path, endpoint, "online")
    assert any(request.startswith("HEAD /google-bert/bert-base-uncased/resolve/") for request in requests)
    assert any(request.endswith("plain_text/train-00000-of-00001.parquet") for request in requests)
    assert "test accuracy" in output
    assert "HTTP Request" not in output
    started = time.monotonic()
    assert "test accuracy" in train_minilm(tmp_path, DOWN, "offline")
    # Without a quick look first the clients ask for two minutes.
    assert time.monotonic() - started < 60
    online, offline = ((tmp_path / name / "test_predictions.csv").read_text() for name in ("online", "offline"))
    assert online == offline


def test_names_that_the_hub_does_not_have_are_said_to_be_wrong(hub_folder, tmp_path):
    with serve(hub_folder) as (endpoint, _):
        output = run_python(["-c", LOAD_ALL, "bert-bose-uncased"], tmp_path, endpoint)
    tokenizer, encoder, reviews, revision = output.splitlines()
    for line, key in ((tokenizer, "data.tokenizer"), (encoder, "model.pretrained")):
        assert line.startswith(f"{key}='bert-bose-uncased': no such folder, and the hub has no model of that name")
    assert reviews == "loaded"
    assert revision == (
        "data.source=yelp='fancyzhx/yelp_polarity': the hub has it, but no revision 'v9'; null is the newest"
    )


def test_hub_that_is_down_is_said_to_be_down(tmp_path):
    started = time.monotonic()
    lines = run_python(["-c", LOAD_ALL, "bert-base-uncased"], tmp_path, DOWN).splitlines()
    assert time.monotonic() - started < 60
    assert len(lines) == 4
    for line, key in zip(lines, ("data.tokenizer", "model.pretrained", "data.source", "data.source"), strict=True):
        assert line.startswith(key)
        assert f"could not be loaded ({DOWN} does not answer, and the cache {tmp_path} does not hold it" in line
    assert "'packaged' works without a network" in lines[0]
    assert "data.source=imdb and data.source=files need no network" in lines[2]
