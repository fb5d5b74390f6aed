"""What benchmarks share; imported before torch, see `training`. It makes the project of this folder importable."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_FOLDER = ROOT / "benchmarks"
# This folder comes last: its profile.py has the name of a module of Python's own.
sys.path[:] = [str(ROOT), *(path for path in sys.path if Path(path).resolve() not in (ROOT, _FOLDER)), str(_FOLDER)]

import training  # noqa: E402, F401


def in_a_fresh_process(function: Callable, *arguments: Any, environment: Mapping[str, str | None]) -> Any:
    """What the function returns in a new interpreter with these environment variables; None removes one."""
    before = dict(os.environ)
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        os.environ.clear()
        os.environ.update(before)
