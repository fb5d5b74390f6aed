"""Fixtures that several files share; no test reaches a network or a screen."""

import gc
import os
import signal
import socket
import sys
from functools import cache
from pathlib import Path

import pytest

from helpers import small_config, write_review_files

# Read when the hub's client and matplotlib are imported, which no import above does.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("cuda"):
            import torch

            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"))


def pytest_collection_finish():
    # What was imported stays: each run collects garbage, and needn't look through all modules for it.
    gc.freeze()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(self, address):
        # Processes of this machine talk to each other through Unix sockets.
        if self.family != socket.AF_UNIX:
            raise OSError(f"a test tried to connect to {address}")
        return connect(self, address)

    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def subnormal_numbers():
    """Subnormal numbers as they were: a command makes them 0 for the rest of its process."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(scope="session")
def review_files(tmp_path_factory):
    """Folder with train.csv (48 reviews), validation.csv (20) and test.csv (22), and a cache shared by all tests."""
    return write_review_files(tmp_path_factory.mktemp("reviews"))


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory, review_files):
    """`trained_run("4_lstm_attention")`: the folder of a small run, trained once for all tests; none changes it."""

    @cache
    def train(experiment: str) -> Path:
        from train import run

        folder = tmp_path_factory.mktemp("trained") / experiment
        run(small_config(experiment, review_files, folder, "train.epochs=4", "train.learning_rate=0.01"))
        return folder

    return train


@pytest.fixture
def make_config(review_files, tmp_path):
    """`make_config("5_transformer_prenorm", "train.epochs=2", ...)`: a small experiment on `review_files`."""
    return lambda experiment, *overrides: small_config(experiment, review_files, tmp_path / "run", *overrides)


@pytest.fixture
def stop_at(monkeypatch):
    """`stop_at(3, 5)`: SIGTERM in the middle of steps 3 and 5, counted over all runs from here on.

    Returns a list that gets an entry for each step that begins.
    """
    from training.trainer import TrainingStep

    stops, steps = {}, []

    def step(self, *arguments, **keywords):
        steps.append(None)
        if len(steps) in stops:
            os.kill(os.getpid(), stops[len(steps)])
        return original(self, *arguments, **keywords)

    def set_stops(*numbers: int, signum: int = signal.SIGTERM) -> list:
        steps.clear()
        stops.clear()
        stops.update(dict.fromkeys(numbers, signum))
        return steps

    original = TrainingStep.__call__
    monkeypatch.setattr(TrainingStep, "__call__", step)
    return set_stops
