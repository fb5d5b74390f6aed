"""benchmarks/gpu.py, tried on a CPU: its rows, and what becomes of a failed test."""

import argparse
import json
import math
from types import ModuleType

import pytest
import torch

from config import CONFIGS, RunError
from data import load_reviews
from helpers import load_benchmark


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return load_benchmark("gpu")


def test_row_has_speed_memory_and_losses(gpu, make_config):
    reviews = load_reviews(make_config("1_lstm").data)
    row = gpu.step_row(CONFIGS / "1_lstm.yaml", "bf16", reviews, torch.device("cpu"), num_steps=2)
    assert (row["experiment"], row["precision"]) == ("1_lstm", "bf16")
    assert row["reviews_per_second"] == pytest.approx(32 / row["seconds_per_step"])
    assert row["memory"]["peak_bytes"] > 0
    assert math.isfinite(row["first_loss"] + row["last_loss"])


@pytest.mark.parametrize("status", [0, 1])
def test_failed_tests_end_in_an_error_after_all_is_written(gpu, monkeypatch, tmp_path, status):
    monkeypatch.setattr(gpu, "run_tests", lambda: {"status": status, "summary": "54 passed"})
    monkeypatch.setattr(gpu, "run_steps", lambda device, num_steps: [{"steps": num_steps}])
    monkeypatch.setattr(gpu, "run_speed", lambda device: [{"ratio": 2.0}])
    path = tmp_path / "gpu.json"
    options = argparse.Namespace(device="cpu", steps=7, skip_speed=False, output=path)
    if status:
        with pytest.raises(RunError, match="the tests marked cuda ended with status 1"):
            gpu.measure(options)
    else:
        gpu.measure(options)
    written = json.loads(path.read_text())
    assert written["tests"] == {"status": status, "summary": "54 passed"}
    assert (written["steps"], written["speed"]) == ([{"steps": 7}], [{"ratio": 2.0}])
    assert written["torch"] == torch.__version__
