"""What comes from the Hugging Face hub, or from its cache where it does not answer; errors that say which failed."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from config import InputError

# Seconds to wait for an answer. The clients themselves ask a hub that is down again and again, for minutes.
TIMEOUT = 5
# The HTTP library of the hub's client, by version: its line for each request would fill the output.
HTTP_LOGGERS = ("httpx", "httpx2")

Loaded = TypeVar("Loaded")


def load(
    name: str,
    key: str,
    loader: Callable[[bool], Loaded],
    instead: str,
    kind: str = "model",
    revision: str | None = None,
) -> Loaded:
    """Something of a repository on the hub, or of a folder.

    Args:
        name: of the repository, such as bert-base-uncased, or the folder.
        key: the setting that names it, for the error.
        loader: loads it; its argument says whether to do without the network.
        instead: what works without the hub, for the error.
        kind: of the repository: model or dataset.
        revision: a commit, branch or tag; None is the newest.

    Raises:
        InputError: there is no such folder or repository, the hub does not answer and its cache does not hold it, or it
            can't be loaded; what `loader` raises as one.
    """
    is_folder = Path(name).is_dir()
    answers = not is_folder and _answers(name, key, kind, revision)
    try:
        return loader(not answers)
    except InputError:
        raise
    except Exception as error:  # the libraries of tokenizers and data sets raise nothing more special
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if not is_folder and not answers:
            why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
            reason = f"{why}, and the cache {constants.HF_HOME} does not hold it: {type(error).__name__}"
        raise InputError(f"{key}={name!r} could not be loaded ({reason}); {instead}") from None


def _answers(name: str, key: str, kind: str, revision: str | None) -> bool:
    """Whether the hub answers that it has the repository; it does not where it is down, or not to be asked."""
    for logger in map(logging.getLogger, HTTP_LOGGERS):
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)
    try:
        huggingface_hub.HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT)
    except HFValidationError:
        raise InputError(f"{key}={name!r}: no such folder, and not a name on the hub") from None
    except RevisionNotFoundError:
        raise InputError(f"{key}={name!r}: the hub has it, but no revision {revision!r}; null is the newest") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{key}={name!r}: no such folder, and the hub has no {kind} of that name, or a private one; check the "
            "name, or log in with `hf auth login`"
        ) from None
    except Exception:  # each HTTP library has its own for a hub that is down
        return False
    return True
