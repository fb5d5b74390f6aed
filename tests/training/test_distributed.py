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
from config import InputError
from data import load_reviews
from helpers import read_metrics, write_config
from models import build_model
from train import run
from training import distributed
from training.trainer import Trainer

METRICS = ("step", "reviews_seen", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")


def metrics_of(run_dir: Path) -> list[float]:
    return [line[key] for line in read_metrics(run_dir) for key in METRICS]


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
    command = [sys.executable, "-m", *commands[launcher], train.__file__, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize(("launcher", "experiment"), [("accelerate", "1_lstm"), ("torchrun", "7_transformer_postnorm")])
def test_two_processes_train_as_one(make_config, launcher, experiment):
    """Batches of 7 of 48 reviews, the last of 6; 20 validation reviews in batches of 7: nothing divides."""
    settings = ["train.epochs=2", "train.batch_size=7", "train.eval_batch_size=7", "model.dropout=0"]
    config = make_config(experiment, *settings)
    folder = Path(config.run_dir)
    run(config)
    alone, predictions = metrics_of(folder), (folder / "validation_predictions.csv").read_text().splitlines()
    folder.rename(folder.with_name("alone"))
    result = launch(str(write_config(config)), launcher=launcher)
    assert result.returncode == 0, result.stderr[-3000:]
    assert metrics_of(folder) == pytest.approx(alone, abs=1e-5)
    together = (folder / "validation_predictions.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in together] == [line.split(",")[:2] for line in predictions]
    assert json.loads((folder / "summary.json").read_text())["world_size"] == 2


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_shares_of_all_processes_make_the_batch(make_config, monkeypatch, world_size):
    """Also where a batch has fewer reviews than there are processes."""
    config = make_config("1_lstm")
    reviews = load_reviews(config.data)
    model = build_model(config.model, 30522, 24)
    trainer = Trainer(config, model, reviews, torch.device("cpu"), Path(config.run_dir))
    batches = [np.array([5, 2, 9, 4]), np.array([40]), np.array([7, 1])]
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)
    shares = []
    for rank in range(world_size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append([batch for _, batch in trainer.shares(batches)])
    for number, indices in enumerate(batches):
        dealt = [text for share in shares if share[number] is not None for text in token_ids(share[number])]
        assert sorted(dealt) == sorted(token_ids(reviews.train[indices])), f"batch {number}"


def token_ids(batch: dict[str, torch.Tensor]) -> list[tuple[int, ...]]:
    """The ids of each review without its padding."""
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [tuple(ids[mask == 1].tolist()) for ids, mask in rows]


@pytest.mark.parametrize(
    ("device", "local_rank", "backend", "gpu"), [("cpu", "5", "gloo", None), ("cuda", "1", "cpu:gloo,cuda:nccl", 1)]
)
def test_process_takes_a_gpu_only_to_compute_there(launched, device, local_rank, backend, gpu):
    launched.setenv("LOCAL_RANK", local_rank)
    calls = []
    launched.setattr(torch.cuda, "set_device", lambda number: calls.append(number))
    launched.setattr(torch.distributed, "init_process_group", lambda name: calls.append(name))
    launched.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with distributed.process_group(torch.device(device)):
        assert calls == ([backend] if gpu is None else [gpu, backend])


def test_more_processes_than_gpus_are_refused(launched):
    launched.setenv("LOCAL_RANK", "2")
    message = "process 2 of this machine has no GPU: torch sees 2; start at most 2 processes a machine, or give device="
    with pytest.raises(InputError, match=message), distributed.process_group(torch.device("cuda")):
        pass


@pytest.fixture
def launched(monkeypatch):
    """The environment of one of several processes on a machine with two GPUs."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return monkeypatch


def test_single_process_is_a_world_of_its_own():
    values = torch.tensor([1.0, 2.0])
    assert (distributed.rank(), distributed.world_size(), distributed.is_main_process()) == (0, 1, True)
    assert distributed.all_reduce_sum(values) is values
    assert distributed.all_gather(values) == [values]
    assert distributed.shard([3, 1, 2]) == [3, 1, 2]
    assert distributed.any_process(True, False) == [True, False]
