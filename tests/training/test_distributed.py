"""Several processes train as one: the same batches, gradients over reviews, every review evaluated once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from data import load_reviews
from train import run, to_yaml
from training import distributed


def curve(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "reviews_seen", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    return [line[key] for line in lines for key in keys]


def launch(*arguments: str, launcher: str, port: int = 29517) -> subprocess.CompletedProcess:
    """`train.py` in two processes on this CPU."""
    commands = {
        "torchrun": ["torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"],
        # What --multi_gpu means to accelerate is torch's launcher; on a CPU the processes meet through gloo.
        "accelerate": [
            *("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", f"--main_process_port={port}"),
            *("--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"),
        ],
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *commands[launcher], "train.py", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_two_processes_train_as_one(make_config, tmp_path, launcher):
    """Batches of 7 of 48 reviews, the last of 6; 20 validation reviews in batches of 7: nothing divides."""
    settings = ["train.epochs=2", "train.batch_size=7", "train.eval_batch_size=7", "model.dropout=0"]
    configs = [
        make_config(name, *settings, f"run_dir={tmp_path / name}") for name in ("1_lstm", "7_transformer_postnorm")
    ]
    expected, files = [], []
    for config in configs:
        folder = Path(config.run_dir)
        run(config)
        expected.append((curve(folder), (folder / "validation_predictions.csv").read_text().splitlines()))
        folder.rename(folder.with_name(folder.name + "-alone"))
        files.append(tmp_path / f"{config.name}.yaml")
        files[-1].write_text(to_yaml(config))
    result = launch(*map(str, files), launcher=launcher)
    assert result.returncode == 0, result.stderr[-3000:]
    for config, (alone, predictions) in zip(configs, expected, strict=True):
        folder = Path(config.run_dir)
        assert curve(folder) == pytest.approx(alone, abs=1e-5)
        found = (folder / "validation_predictions.csv").read_text().splitlines()
        assert [line.split(",")[:2] for line in found] == [line.split(",")[:2] for line in predictions]
        assert json.loads((folder / "summary.json").read_text())["processes"] == 2


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_a_batch_is_dealt_out_whole(make_config, monkeypatch, processes):
    """The reviews of all processes' shares are those of the batch, also where it has fewer than processes."""
    config = make_config("1_lstm")
    reviews = load_reviews(config.data)
    model = train.build_model(config.model, 30522, 24)
    trainer = train.Trainer(config, model, reviews, torch.device("cpu"), Path(config.run_dir))
    batches = [np.array([5, 2, 9, 4]), np.array([40]), np.array([7, 1])]
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    shares = []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append([batch for _, batch in trainer.shares(batches)])
    for number, batch in enumerate(batches):
        texts = []
        for share in shares:
            if share[number] is not None:
                ids, mask = share[number]["input_ids"], share[number]["attention_mask"]
                texts += [tuple(row[keep == 1].tolist()) for row, keep in zip(ids, mask, strict=True)]
        whole = reviews.train[batch]
        expected = [tuple(r[k == 1].tolist()) for r, k in zip(whole["input_ids"], whole["attention_mask"], strict=True)]
        assert sorted(texts) == sorted(expected)


def test_one_process_is_a_group_of_its_own():
    values = torch.tensor([1.0, 2.0])
    assert (distributed.rank(), distributed.world_size(), distributed.is_main_process()) == (0, 1, True)
    assert distributed.all_reduce_sum(values) is values
    assert distributed.all_gather(values) == [values]
    assert distributed.shard([3, 1, 2]) == [3, 1, 2]
    assert distributed.any_process(True, False, device=torch.device("cpu")) == [True, False]
