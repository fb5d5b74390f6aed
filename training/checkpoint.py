"""The state of a run on disk: saved whole or not at all, checked before it is used, never pickle.

A checkpoint is a folder `checkpoints/step-00000012` of safetensors and JSON files. Its manifest holds the size and
sha256 of every file.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from config import InputError, read_json
from data import PARTIAL, atomic_path

FOLDER, MANIFEST, STATE = "checkpoints", "manifest.json", "state.json"
MAX_CHECKPOINTS = 2


# ---------------------------------------------------------------- checkpoints


def save_checkpoint(folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict) -> None:
    """Write a checkpoint.

    Args:
        folder: see `checkpoint_path`.
        tensors: of each file, without its ending, the tensors by name.
        state: everything else; JSON.

    Raises:
        RunError: the disk is full; what stood at `folder` before still stands there.
    """

    def write(partial: Path) -> None:
        for name, content in tensors.items():
            save_file({key: tensor.contiguous() for key, tensor in content.items()}, partial / f"{name}.safetensors")
        (partial / STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")

    write_folder(folder, write, num_bytes(*tensors.values()))


def load_checkpoint(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """Tensors and state of a checkpoint, after a check of every file.

    Raises:
        InputError: a file is missing, changed or unreadable.
    """
    verify_folder(folder, (*(f"{name}.safetensors" for name in names), STATE))
    tensors = {}
    for name in names:
        try:
            tensors[name] = load_file(folder / f"{name}.safetensors")
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{folder / name}.safetensors: {error}") from None
    return tensors, read_json(folder / STATE)


def checkpoint_path(run_dir: Path, step: int) -> Path:
    return run_dir / FOLDER / f"step-{step:08d}"


def best_path(run_dir: Path, step: int) -> Path:
    """Where the best model, that of `step`, is kept until the run is complete."""
    return run_dir / FOLDER / f"best-{step:08d}"


def checkpoints_of(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, newest first; what a killed process left half-written is not among them."""
    return sorted((run_dir / FOLDER).glob("step-*"), reverse=True)


def best_step_of(folder: Path) -> int | None:
    """The step of the best model to which a checkpoint refers."""
    best = read_json(folder / STATE)["record"]["best"]
    return best["step"] if best else None


def prune(run_dir: Path, current_best: int | None) -> None:
    """Remove all but the newest `MAX_CHECKPOINTS` and the best models that they, or the run now, refer to."""
    newest = checkpoints_of(run_dir)[:MAX_CHECKPOINTS]
    best_steps = {current_best, *map(best_step_of, newest)} - {None}
    wanted = {path.name for path in newest} | {best_path(run_dir, step).name for step in best_steps}
    for path in list((run_dir / FOLDER).iterdir()):
        if path.name not in wanted:
            _remove_folder(path)


def keep_last_state(run_dir: Path) -> None:
    """Leave of a complete run's checkpoints the newest, from which it can be trained further, and no best model."""
    newest = checkpoints_of(run_dir)[:1]
    for path in list((run_dir / FOLDER).iterdir()):
        if path not in newest:
            _remove_folder(path)


def remove_newer(run_dir: Path, folder: Path) -> None:
    """Remove the checkpoints newer than `folder`: they are damaged where the run resumes from it."""
    for path in checkpoints_of(run_dir):
        if path.name > folder.name:
            _remove_folder(path)


def _remove_folder(path: Path) -> None:
    """Remove a folder, which must not look like a checkpoint when it is half removed."""
    doomed = path.rename(path.with_name(PARTIAL + path.name.removeprefix(PARTIAL)))
    shutil.rmtree(doomed, ignore_errors=True)


# ---------------------------------------------------------------- folders with a manifest


def write_folder(target: Path, write: Callable[[Path], None], needed: int) -> None:
    """Make a folder that is there whole or not at all, whenever the process dies, with a manifest.

    Args:
        target: the folder; replaced where there is one.
        write: fills the (temporary) folder that it is given with files.
        needed: bytes of those files, roughly; for the error.

    Raises:
        RunError: the disk is full; what stood at `target` before still stands there.
    """
    with atomic_path(target, needed) as partial:
        partial.mkdir()
        write(partial)
        write_manifest(partial)


def write_manifest(folder: Path) -> None:
    """Name, size and sha256 of each file."""
    files = {path.name: describe_file(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n")


def verify_folder(folder: Path, needed: tuple[str, ...]) -> None:
    """Check every file of a folder against its manifest.

    Raises:
        InputError: a file is missing, was changed, or is not in the manifest though it is `needed`.
    """
    files = read_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict):
        raise InputError(f"{folder / MANIFEST}: no list of files")
    for name in needed:
        if name not in files:
            raise InputError(f"{folder / MANIFEST}: no entry for {name}")
    for name, expected in files.items():
        path = folder / name
        # A manifest from elsewhere could name any file of the machine.
        if Path(name).name != name or not path.is_file() or path.is_symlink():
            raise InputError(f"{path}: missing")
        actual = describe_file(path)
        if actual != expected:
            raise InputError(f"{path}: {actual['bytes']} bytes, sha256 {actual['sha256'][:12]}..; not what was written")


def describe_file(path: Path) -> dict:
    """A file's entry in the manifest."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def num_bytes(*tensors: dict[str, Tensor]) -> int:
    """Size of the tensors of several dictionaries."""
    return sum(tensor.nbytes for content in tensors for tensor in content.values())


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
