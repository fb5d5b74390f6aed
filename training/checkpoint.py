"""What lets a run be killed at any moment: folders that are whole or not there, states in them, a lock, signals.

A checkpoint is a folder `checkpoints/step-00000012` of safetensors and JSON files, never pickle. Its manifest, with the
size and sha256 of every file, is written last, then the folder is renamed into place. No file is held open and no link
is made, so that a folder on a mounted drive serves as well.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from config import InputError, RunError

log = logging.getLogger(__name__)

FOLDER, MANIFEST, STATE = "checkpoints", "manifest.json", "state.json"
PARTIAL = "partial-"
KEPT = 2
# A lock's file is touched every so many seconds, and counts as left behind after so many.
BEAT_SECONDS, STALE_SECONDS, TORN_SECONDS = 15, 120, 2


class DamagedError(ValueError):
    """A folder that is not what its manifest says; the message names the file."""


class InterruptedRun(KeyboardInterrupt):
    """A run that was asked to stop, and has saved its state; `signum` is the signal's number."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


# ---------------------------------------------------------------- folders


def write_folder(target: Path, write: Callable[[Path], None], needed: int) -> None:
    """Make a folder that is there whole or not at all, whenever the process dies.

    Args:
        target: the folder; replaced where there is one.
        write: fills the (temporary) folder that it is given with files.
        needed: bytes of those files, roughly; for the error.

    Raises:
        RunError: no space is left; what stood at `target` before still stands there.
    """
    partial = target.with_name(PARTIAL + target.name)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        write_manifest(partial)
        replace_folder(partial, target)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if no_space(error):
            free = shutil.disk_usage(target.parent).free
            raise RunError(
                f"{target}: no space left: it needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; what was "
                "saved before is untouched: free some space and start the same command again"
            ) from error
        raise


def no_space(error: BaseException) -> bool:
    """Whether an error says that the disk is full; safetensors says it in words only."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or (isinstance(error, SafetensorError) and "No space left" in str(error))


def write_manifest(folder: Path) -> None:
    """Name, size and sha256 of each file, after all of them are on the disk."""
    files = {}
    for path in sorted(folder.iterdir()):
        flush(path)
        files[path.name] = describe_file(path)
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n")
    flush(folder / MANIFEST)
    flush(folder)


def describe_file(path: Path) -> dict:
    """A file's entry in the manifest."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def replace_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`; a folder that stood there is moved aside first, since no rename replaces it."""
    aside = target.with_name(f"{PARTIAL}old-{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.rename(aside)
    source.rename(target)
    flush(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk (where the system can say so)."""
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def verify_folder(folder: Path, needed: tuple[str, ...]) -> None:
    """Check every file of a folder against its manifest.

    Raises:
        DamagedError: a file is missing, was changed, or is not in the manifest though it is `needed`.
    """
    files = read_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict):
        raise DamagedError(f"{folder / MANIFEST}: no list of files")
    for name in needed:
        if name not in files:
            raise DamagedError(f"{folder / MANIFEST}: no entry for {name}")
    for name, expected in files.items():
        path = folder / name
        # A manifest from elsewhere could name any file of the machine.
        if Path(name).name != name or not path.is_file() or path.is_symlink():
            raise DamagedError(f"{path}: missing")
        found = describe_file(path)
        if found != expected:
            raise DamagedError(f"{path}: {found['bytes']} bytes, sha256 {found['sha256'][:12]}..; not what was written")


def read_json(path: Path) -> dict:
    """The object in a JSON file, all its numbers finite; `DamagedError` where it can't be had."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_float=finite, parse_constant=finite)
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise DamagedError(f"{path}: found a {type(content).__name__}; expected an object")
    return content


def finite(text: str) -> float:
    """The number that a text stands for; ValueError where that is infinite or nan, which JSON has no word for."""
    number = float(text)
    if not np.isfinite(number):
        raise ValueError(f"{text} is no number of JSON")
    return number


# ---------------------------------------------------------------- checkpoints


def checkpoint_path(run_dir: Path, step: int) -> Path:
    return run_dir / FOLDER / f"step-{step:08d}"


def best_path(run_dir: Path, step: int) -> Path:
    """Where the best model, found at `step`, is kept until the run is complete."""
    return run_dir / FOLDER / f"best-{step:08d}"


def save_checkpoint(folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict) -> None:
    """Write a checkpoint.

    Args:
        folder: see `checkpoint_path`.
        tensors: of each file, without its ending, the tensors by name.
        state: everything else; JSON.
    """

    def write(partial: Path) -> None:
        for name, content in tensors.items():
            save_file({key: tensor.contiguous() for key, tensor in content.items()}, partial / f"{name}.safetensors")
        (partial / STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")

    write_folder(folder, write, bytes_of(*tensors.values()))


def bytes_of(*tensors: dict[str, Tensor]) -> int:
    """Size of the tensors of several dictionaries."""
    return sum(tensor.nbytes for content in tensors for tensor in content.values())


def load_checkpoint(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """Tensors and state of a checkpoint, after a look at every file.

    Raises:
        DamagedError: a file is missing, changed or unreadable.
    """
    verify_folder(folder, (*(f"{name}.safetensors" for name in names), STATE))
    tensors = {}
    for name in names:
        try:
            tensors[name] = load_file(folder / f"{name}.safetensors")
        except (SafetensorError, OSError, ValueError) as error:
            raise DamagedError(f"{folder / name}.safetensors: {error}") from None
    return tensors, read_json(folder / STATE)


def checkpoints_of(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, newest first; what a killed process left half-written is not among them."""
    return sorted((run_dir / FOLDER).glob("step-*"), reverse=True)


def prune(run_dir: Path, best_steps: Callable[[Path], int | None], current_best: int | None) -> None:
    """Remove all but the newest `KEPT` checkpoints and the best models that they, or the run now, refer to."""
    kept = checkpoints_of(run_dir)[:KEPT]
    wanted = {path.name for path in kept}
    for step in [current_best, *map(best_steps, kept)]:
        wanted |= set() if step is None else {best_path(run_dir, step).name}
    for path in list((run_dir / FOLDER).iterdir()):
        if path.name not in wanted:
            remove_folder(path)


def remove_newer(run_dir: Path, folder: Path) -> None:
    """Remove the checkpoints newer than `folder`, which are damaged where the run goes on from it."""
    for path in checkpoints_of(run_dir):
        if path.name > folder.name:
            remove_folder(path)


def remove_folder(path: Path) -> None:
    """Remove a folder, which must not look like a checkpoint when it is half removed."""
    doomed = path.rename(path.with_name(PARTIAL + path.name.removeprefix(PARTIAL)))
    shutil.rmtree(doomed, ignore_errors=True)


# ---------------------------------------------------------------- states


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict]]:
    """An optimiser's tensors as `3.exp_avg`, and its groups, for JSON."""
    state = optimizer.state_dict()
    tensors = {f"{number}.{key}": tensor for number, part in state["state"].items() for key, tensor in part.items()}
    return tensors, state["param_groups"]


def set_optimizer_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict]) -> None:
    """The inverse of `optimizer_state`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = tensor
    # JSON has no tuples.
    groups = [{**group, "betas": tuple(group["betas"])} for group in groups]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def random_states() -> tuple[dict[str, Tensor], dict]:
    """Of all generators that this process may draw from: torch's, those of its CUDA device, numpy's and Python's."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        tensors["cuda"] = torch.cuda.get_rng_state()
    name, keys, *rest = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    return tensors, {"numpy": [name, keys.tolist(), *rest], "python": [version, list(internal), gauss]}


def set_random_states(tensors: dict[str, Tensor], state: dict) -> None:
    """The inverse of `random_states`; a state of CUDA's is left out where there is no such device."""
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


# ---------------------------------------------------------------- one process a folder


class RunLock:
    """Keeps a second process out of a run folder; a context manager.

    The lock is a small file that names its process. One that was killed leaves it behind: on the same machine the
    process is looked up; for another machine the file's age tells, as a living process touches it again and again.

    Args:
        folder: the run folder; made where it is missing.

    Raises:
        InputError: on entering, another process works in the folder.
    """

    def __init__(self, folder: Path):
        self.path = folder / "run.lock"
        started = psutil.Process().create_time()
        self.owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": started, "id": uuid.uuid4().hex}
        self.done = threading.Event()

    def __enter__(self) -> "RunLock":
        self.made = not self.path.parent.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self.take():
            self.remove_stale()
        self.beater = threading.Thread(target=self.beat, daemon=True)
        self.beater.start()
        return self

    def __exit__(self, *_) -> None:
        self.done.set()
        self.beater.join()
        if self.holder() == self.owner:
            self.path.unlink(missing_ok=True)
        if self.made:
            with contextlib.suppress(OSError):
                # A run that never began leaves no empty folder.
                self.path.parent.rmdir()

    def take(self) -> bool:
        """Make the file, if there is none."""
        try:
            with self.path.open("x") as file:
                json.dump(self.owner, file)
        except FileExistsError:
            return False
        return True

    def holder(self) -> dict:
        """Who holds the lock; empty where it can't be told."""
        try:
            return read_json(self.path)
        except DamagedError:
            return {}

    def remove_stale(self) -> None:
        """Take a lock away whose process is gone; `InputError` where it lives."""
        holder = self.holder()
        try:
            age = time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return
        if self.lives(holder, age):
            raise InputError(
                f"{self.path}: another process works in this folder (process {holder.get('pid', 'unknown')} on "
                f"{holder.get('host', 'unknown')}); wait for it, stop it, or give another run_dir. If that machine is "
                f"gone, try again in {max(1, STALE_SECONDS - age):.0f} s"
            )
        # Renamed first: of two processes that find it stale only one can.
        aside = self.path.with_name(f"{self.path.name}.{self.owner['id']}")
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(aside)
            aside.unlink()

    def lives(self, holder: dict, age: float) -> bool:
        """Whether the lock's process is still there."""
        if not holder:
            # Made, and not yet written, or never to be: the writer needs a moment.
            return age < TORN_SECONDS
        if holder.get("host") != self.owner["host"]:
            return age < STALE_SECONDS
        try:
            return abs(psutil.Process(int(holder["pid"])).create_time() - float(holder["started"])) < 1
        except (psutil.Error, KeyError, TypeError, ValueError):
            return False

    def beat(self) -> None:
        while not self.done.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.path)


# ---------------------------------------------------------------- signals


class StopRequest:
    """Whether, and by which signal, the run was asked to stop."""

    def __init__(self):
        self.signum = 0

    def note(self, signum: int, frame: FrameType | None) -> None:
        """The handler: the first signal waits for the step's end, a second Ctrl-C does not."""
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = self.signum or signum


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Collects SIGTERM and Ctrl-C for the time of a block; elsewhere than in the main thread nothing is changed."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {signum: signal.signal(signum, request.note) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
