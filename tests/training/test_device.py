"""The device: choosing it, its name, memory over training steps."""

import pytest
import torch

from config import InputError
from training import device
from training.device import WARMUP_STEPS, MemoryMeter, device_name, pick_device, prepare

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "has_cuda", "expected"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_auto_picks_cuda_where_there_is_one(monkeypatch, name, has_cuda, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert pick_device(name) == torch.device(expected)


def test_missing_cuda_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device=cuda: torch sees no CUDA device; use device=cpu or device=auto"):
        pick_device("cuda")


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_fp16_without_cuda_is_refused(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = f"train.precision=fp16 needs CUDA, and device={name} found none; use fp32 or bf16"
    with pytest.raises(InputError, match=message):
        pick_device(name, "fp16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto", "fp16") == torch.device("cuda")


def test_device_name_counts_the_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert device_name(CPU).endswith(", 1 thread")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert device_name(CPU).endswith(", 3 threads")


def test_steady_memory_leaves_out_the_warmup_steps():
    meter = MemoryMeter(CPU)
    meter.samples = [(1000, 0)] * WARMUP_STEPS + [(10, 0), (20, 0)]
    assert meter.result() == {"kind": "process_resident", "steady_bytes": 15, "peak_bytes": 1000}
    # A run of fewer steps has only those.
    meter.samples = [(10, 0), (30, 0)]
    assert meter.result()["steady_bytes"] == 20


def test_memory_meter_samples_the_process():
    meter = MemoryMeter(CPU)
    meter.sample()
    assert meter.result()["peak_bytes"] > 10**6


@pytest.mark.parametrize(("native", "warned"), [(True, False), (False, True)])
def test_emulated_bf16_is_warned_about(monkeypatch, caplog, native, warned):
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr(device, "device_name", lambda device: "Tesla T4")
    prepare(torch.device("cuda"), "bf16")
    expected = "Tesla T4 emulates bf16: train.precision=fp16 or fp32 is faster"
    assert caplog.messages == ([expected] if warned else [])
