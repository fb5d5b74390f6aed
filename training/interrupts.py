"""Ctrl-C and SIGTERM during training: the step ends, the state is saved, then the run stops."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class InterruptedRun(KeyboardInterrupt):
    """A run that was asked to stop, and has saved its state; `signum` is the signal's number."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


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
    """Collects SIGTERM and Ctrl-C for the time of a block; outside the main thread the handlers stay as they are."""
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
