"""What every command does with an error: one line on stderr and an exit status, never a traceback for bad input."""

import signal
import sys
from collections.abc import Callable

from config import InputError, RunError
from training.checkpoint import InterruptedRun, no_space


def run_command(action: Callable[[], None]) -> int:
    """Run a command's work.

    Returns:
        The exit status: 0 done; 1 it can't continue (a non-finite loss, no memory, no disk space); 2 unusable input;
        130 and 143 stopped by Ctrl-C and SIGTERM.
    """
    try:
        action()
    except InputError as error:
        return report(error, 2)
    except (FloatingPointError, RunError) as error:
        return report(error, 1)
    except OSError as error:
        if not no_space(error):
            raise
        return report(
            f"{error.filename}: no space left on the disk; what was saved before is untouched: free some space and run "
            "the same command again",
            1,
        )
    except InterruptedRun as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def report(error: object, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status
