"""What every command does with an error: one line on stderr and an exit status, no traceback for bad input."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

from config import InputError, RunError
from data import disk_full_error, is_disk_full
from training.interrupts import InterruptedRun


def run_command(action: Callable[[], None]) -> int:
    """Run a command's work.

    Returns:
        The exit status: 0 done; 1 it can't continue (a non-finite loss, no memory, no disk space); 2 unusable input;
        130 and 143 stopped by Ctrl-C and SIGTERM.
    """
    try:
        action()
    except InputError as error:
        return _report(error, 2)
    except (FloatingPointError, RunError) as error:
        return _report(error, 1)
    except OSError as error:
        if not is_disk_full(error):
            raise
        return _report(disk_full_error(Path(error.filename or "output")), 1)
    except InterruptedRun as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _report(error: Exception, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status
