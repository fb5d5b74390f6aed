"""The eight experiments on fake CUDA tensors: what a GPU would refuse, and where the host would wait for one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import EXPERIMENTS

TESTS = Path(__file__).resolve().parents[1]
TORCH = Path(torch.__file__).parent

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++, which builds the pretended device"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="this build of torch has a CUDA device of its own"),
]


# In which an LSTM computes under each precision.
LSTM_DTYPES = {"bf16": "float32", "fp16": "float16"}
# fp16 adds a gradient scaler: one of each kind of model tells (4 has the LSTMs of 1 to 3, and attention).
CASES = [f"{name}:bf16" for name in EXPERIMENTS] + [f"{name}:fp16" for name in EXPERIMENTS if name[0] in "458"]


@pytest.fixture(scope="session")
def device(tmp_path_factory) -> Path:
    """The library that pretends to be a CUDA device."""
    library = tmp_path_factory.mktemp("fake_cuda") / "fake_cuda.so"
    source = TESTS / "fake_cuda.cpp"
    flags = ["-O0", "-shared", "-fPIC", "-std=c++20", f"-I{TORCH / 'include'}"]
    subprocess.run(["g++", *flags, source, "-o", library], check=True)
    return library


def test_steps_and_evaluation_run_on_cuda_without_a_host_wait(device):
    output = subprocess.run(
        [sys.executable, "-W", "error", TESTS / "fake_cuda.py", device, *CASES],
        env=os.environ | {"PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
    )
    reports = [json.loads(line) for line in output.stdout.splitlines()]
    assert [report["case"] for report in reports] == CASES, output.stderr
    for report in reports:
        case = report["case"]
        # A host wait and an operation on two devices are errors of fake tensors.
        assert report["errors"] == {}, f"{case}: " + "\n".join(report["errors"].values())
        assert report["copies"]["step"] == report["copies"]["micro_batches"] == [], case
        # The logits of a whole evaluation are read at once; what a step reads from a checkpoint comes from the host.
        assert report["copies"]["evaluation"] == ["cuda to cpu in evaluation.py:predict_logits"], case
        assert {copy[:11] for copy in report["copies"]["resumed_step"]} == {"cpu to cuda"}, case
        assert report["optimizer"] == ["cuda"], case
        expected = {
            "dtypes": [LSTM_DTYPES[case.partition(":")[2]]],
            "devices": ["cuda"],
            "contiguous_states": True,
            "one_chunk_of_weights": True,
            "autocast": False,
        }
        has_lstm = case[0] in "1234"
        assert report["lstm"] == ([expected] if has_lstm else []), case
        assert report["repeat_bias"] == (["float32"] if has_lstm else []), case
