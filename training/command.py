"""What every command does with an error: one line on stderr and an exit status, no traceback for bad input."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from config import InputError, RunError
from data import disk_full_error, is_disk_full
from training.device import prepare_process
from training.interrupts import InterruptedRun


def run_command(action: Callable[[], None]) -> int:
    """Run a command's work.

    Returns:
        The exit status: 0 done; 1 it can't continue (a non-finite loss, no memory, no disk space); 2 unusable input;
        130 and 143 stopped by Ctrl-C and SIGTERM.
    """
    prepare_process()
    try:
        action()
    except InputError as error:
        return _report(error, 2)
    except (FloatingPointError, RunError) as error:
        return _report(error, 1)
    except OSError as error:
        if is_disk_full(error):
            return _report(disk_full_error(Path(error.filename or "output")), 1)
        if error.filename is None:
            # Libraries name the file in the message, if at all.
            return _report(" ".join(str(error).split()) or type(error).__name__, 2)
        return _report(f"{error.filename}: {error.strerror}; give another path, or mend this one", 2)
    except InterruptedRun as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def check_output(path: Path, *inputs: Path) -> None:
    """Refuse (`InputError`) a file that can't be written, or that is one of the inputs; called before the work."""
    if path.is_dir():
        raise InputError(f"{path}: a folder; expected a file to write")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: a device or pipe, which would be replaced; expected a file to write")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it, or give another path")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path}: not writable; give another path")
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise InputError(f"{path}: is an input as well, which would be lost; give another path")


def check_folder(path: Path, key: str) -> None:
    """Refuse (`InputError`) a folder that can't be made, or in which nothing can be written; called before the work.

    Args:
        path: of the folder.
        key: the setting that names it.
    """
    name = f"{key}={path}"
    for existing in (path.absolute(), *path.absolute().parents):
        try:
            existing.lstat()
            break
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{name}: {reason}; give another {key}") from None
    if existing.is_symlink() and not existing.exists():
        target = os.readlink(existing)
        raise InputError(f"{name}: {existing} is a link to {target}, which does not exist; give another {key}")
    if not existing.is_dir():
        raise InputError(f"{name}: {existing} is a file; expected a folder; give another {key}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{name}: {existing} is not writable; give another {key}")


def _report(error: Exception | str, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status
