"""The device that computes: choosing and setting it up, reading time and memory on it."""

import faulthandler
import logging
import platform
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from config import InputError

log = logging.getLogger(__name__)

# Steps whose memory is not averaged: allocators and optimiser states still grow in them.
WARMUP_STEPS = 5


def pick_device(name: str, precision: str = "fp32") -> torch.device:
    """The device of that name; `auto` is CUDA where there is one.

    Raises:
        InputError: CUDA is asked for, or needed for the precision, and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("device=cuda: torch sees no CUDA device; use device=cpu or device=auto")
    device = torch.device("cuda" if name != "cpu" and available else "cpu")
    if precision == "fp16" and device.type == "cpu":
        raise InputError(f"train.precision=fp16 needs CUDA, and device={name} found none; use fp32 or bf16")
    return device


def prepare_process() -> None:
    """What a process needs before torch computes in it: every command calls this, and so does the notebook.

    Subnormal numbers become 0 on a CPU: Intel's processors take a hundred times as long for them, and the gradient of
    an LSTM over long padding is full of them. Threads inherit that from the one that starts them.

    Signals get a stack of their own. In torch 2.11 a kernel of oneDNN uses the stack register for data (oneDNN's issue
    4845); without that, Ctrl-C or SIGTERM inside of it kills the process instead of saving the run.

    cuDNN's attention is left out on a GPU: it plans anew for each length of a batch. On an H200 that made the first 100
    steps of experiment 5 under bf16 eight times as long as under fp32, for which it is not used.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.set_flush_denormal(True)
    if not faulthandler.is_enabled():
        faulthandler.enable(sys.__stderr__)


def prepare(device: torch.device, precision: str) -> None:
    """TF32 for float32 products on CUDA; a warning where the precision asked for is only emulated."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bf16" and not native:
            log.warning("%s emulates bf16: train.precision=fp16 or fp32 is faster", device_name(device))


def now(device: torch.device) -> float:
    """Wall-clock seconds, after the device has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class MemoryMeter:
    """Memory over training steps, in bytes.

    On CUDA what torch has allocated, and reserved; on a CPU the resident memory of the process, which also
    holds the interpreter, the libraries and what earlier runs in the process left.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.samples: list[tuple[int, int]] = []
        self.process = psutil.Process()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def sample(self) -> None:
        """Note the memory after a step."""
        if self.device.type == "cuda":
            used = (torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device))
        else:
            used = (self.process.memory_info().rss, 0)
        self.samples.append(used)

    def result(self) -> dict:
        """`kind`, steady (mean after the first `WARMUP_STEPS` steps) and peak."""
        steady = np.array(self.samples[WARMUP_STEPS:] or self.samples).mean(axis=0)
        if self.device.type == "cuda":
            return {
                "kind": "cuda_allocated",
                "steady_bytes": int(steady[0]),
                "peak_bytes": torch.cuda.max_memory_allocated(self.device),
                "steady_reserved_bytes": int(steady[1]),
                "peak_reserved_bytes": torch.cuda.max_memory_reserved(self.device),
            }
        peak = max(used for used, _ in self.samples)
        return {"kind": "process_resident", "steady_bytes": int(steady[0]), "peak_bytes": peak}


def device_name(device: torch.device) -> str:
    """The card's name, or the processor's with the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread" + "s" * (threads != 1)
