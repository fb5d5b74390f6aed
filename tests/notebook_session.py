"""main.ipynb as a reader on Colab runs it: an empty folder, Drive, an interruption, the next day.

    python tests/notebook_session.py

A fresh kernel executes the notebook on seconds' worth of data: interrupted while it trains; then from top to bottom,
where it resumes; then once more up to the training, where all runs are kept. `google.colab` is a stub, the repository a
clone of the last commit. What is not as it should be raises.
"""

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty

import nbformat
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel

ROOT = Path(__file__).resolve().parents[1]
SET_UP = "set_up(PROFILE, TRAIN)"
SECONDS_A_CELL = 300
DRIVE_STUB = """
from pathlib import Path

def mount(path):
    (Path(path) / "MyDrive").mkdir(parents=True, exist_ok=True)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        cells = prepare(home)
        training = next(i for i, cell in enumerate(cells) if "session.train" in cell)
        runs = home / "drive" / "MyDrive" / "review-models" / "logs" / "tiny"
        with kernel(home) as (manager, client):
            for cell in cells[:training]:
                execute(client, cell)
            text, error = execute(client, cells[training], manager, interrupt_at=r"2_lstm_dropout: 2 .*step +2")
            assert error in ("InterruptedRun", "KeyboardInterrupt"), error
        assert (runs / "1_lstm" / "summary.json").is_file()
        assert len(list(runs.glob("*/summary.json"))) < 8
        with kernel(home) as (_, client):
            for number, cell in enumerate(cells):
                text, error = execute(client, cell)
                assert error is None, f"code cell {number}: {error}\n{text}"
                if number == training:
                    assert "1_lstm: already complete" in text, text
        assert len(list(runs.glob("*/summary.json"))) == 8
        with kernel(home) as (_, client):
            for cell in cells[: training + 1]:
                text, error = execute(client, cell)
                assert error is None, error
        assert text.count("already complete, kept as it is") == 8, text
    print("main.ipynb: interrupted, resumed and run again")


def prepare(home: Path) -> list[str]:
    """An empty folder to work in and a stub of Colab beside it; returns the code cells."""
    (home / "content").mkdir()
    colab = home / "packages" / "google" / "colab"
    colab.mkdir(parents=True)
    (colab.parent / "__init__.py").touch()
    (colab / "__init__.py").touch()
    (colab / "drive.py").write_text(DRIVE_STUB)
    notebook = nbformat.read(ROOT / "main.ipynb", as_version=4)
    first, *others = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    repository = next(line for line in first.splitlines() if line.startswith("REPOSITORY = "))
    assert SET_UP in first
    first = first.replace(repository, f"REPOSITORY = {str(ROOT)!r}")
    first = first.replace(SET_UP, f"{SET_UP[:-1]}, drive=Path({str(home / 'drive')!r}))")
    return [first, *others]


@contextmanager
def kernel(home: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A fresh kernel in the folder `content`, which sees the stub and not this folder's modules."""
    environment = os.environ | {"PYTHONPATH": str(home / "packages"), "MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1"}
    environment |= {"REVIEWS_PROFILE": "tiny", "REVIEWS_TRAIN": "1"}
    manager, client = start_new_kernel(cwd=str(home / "content"), env=environment, kernel_name="python3")
    try:
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def execute(
    client: BlockingKernelClient, source: str, manager: KernelManager | None = None, interrupt_at: str = ""
) -> tuple[str, str | None]:
    """Run a cell; interrupt it once its output matches a pattern.

    Returns:
        What it printed, and the name of the exception that ended it.
    """
    request, text, error, started = client.execute(source), "", None, time.monotonic()
    while time.monotonic() - started < SECONDS_A_CELL:
        try:
            message = client.get_iopub_msg(timeout=1)
        except Empty:
            continue
        if message["parent_header"].get("msg_id") != request:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            text += content["text"]
        if kind == "error":
            error, text = content["ename"], text + "\n".join(content["traceback"])
        if kind == "status" and content["execution_state"] == "idle":
            return text, error
        if manager is not None and re.search(interrupt_at, text, re.DOTALL):
            manager.interrupt_kernel()
            manager = None
    raise TimeoutError(f"a cell took more than {SECONDS_A_CELL} s:\n{source}\n{text}")


if __name__ == "__main__":
    main()
