"""What every command does to its process before torch computes: subnormal numbers, signals' stacks, waiting threads."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    *("train.py", "predict.py"),
    *(f"benchmarks/{name}.py" for name in ("contention", "gpu", "grouping", "memory", "peers", "profile", "speed")),
    *(f"analysis/{name}.py" for name in ("linear_baseline", "report", "robustness", "saliency", "sweep", "transfer")),
]

# The gradient of an LSTM over 250 steps of padding, from a loss so small that parts of it are subnormal.
COUNT_SUBNORMAL = """
import sys
import torch
from torch import nn
from training.command import run_command

def count():
    torch.set_num_threads(2)
    torch.manual_seed(0)
    layer = nn.LSTM(64, 64, batch_first=True)
    x = torch.randn(32, 250, 64, requires_grad=True)
    (layer(x)[0][:, -1].sum() * 1e-30).backward()
    grad = x.grad.abs()
    print(int(((grad > 0) & (grad < torch.finfo(torch.float32).tiny)).sum()), int((grad > 0).sum()))

run_command(count) if sys.argv[1] == "command" else count()
"""

# Runs a file, as a module where it stands in a package, until torch is about to be imported.
STOP_AT_TORCH = """
import os, pathlib, runpy, sys

class Finder:
    def find_spec(self, name, *arguments):
        if name == "torch":
            os.write(1, os.environ.get("GOMP_SPINCOUNT", "").encode())
            os._exit(0)

sys.meta_path.insert(0, Finder())
path = pathlib.Path(sys.argv[1])
if path.parts[0] == "analysis":
    runpy.run_module(".".join(path.with_suffix("").parts), run_name="__main__")
else:
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")
"""


def run_python(*arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", "PYTHONPATH": str(ROOT), **environment},
    )
    return result.stdout


def test_command_flushes_subnormal_gradients_in_all_threads():
    subnormal, normal = map(int, run_python("-c", COUNT_SUBNORMAL, "command").split())
    assert subnormal == 0
    assert normal > 1000
    # Without the command they are there: the assertion above can fail.
    assert int(run_python("-c", COUNT_SUBNORMAL, "bare").split()[0]) > 1000


def test_command_gives_signals_a_stack_of_their_own():
    code = """
import faulthandler
from training.command import run_command
print(faulthandler.is_enabled())
run_command(lambda: print(faulthandler.is_enabled()))
"""
    assert run_python("-c", code).split() == ["False", "True"]


@pytest.mark.parametrize("path", COMMANDS, ids=str)
def test_threads_of_every_command_are_told_to_wait_briefly_before_torch_is_imported(path):
    assert run_python("-c", STOP_AT_TORCH, path) == "1000"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({"OMP_WAIT_POLICY": "PASSIVE"}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({}, "1000")],
)
def test_users_own_waiting_policy_stays(environment, expected):
    code = "import training, sys, os; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    # Set after torch is imported, it would have no effect.
    assert run_python("-c", code, **environment).split() == [expected, "False"]
