"""Ctrl-C and SIGTERM as a wish to stop, which the loop grants after the step."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

logger = logging.getLogger("sslfast")


class TrainingStopped(Exception):
    """A signal ended the run after a checkpoint; the message says how to go on.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, number: int, step: int, out: Path) -> None:
        super().__init__(
            f"stopped at step {step}, which is saved in {out}: run the same command to go on"
        )
        self.signal = number


class StopRequest:
    """Holds the number of the signal that asked for the end; 0 as long as none did."""

    signal: int = 0


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM instead of dying of them, for a ``with`` block.

    After the first signal a SIGINT has its usual effect: Ctrl-C twice ends at once. (Not a second
    SIGTERM: torchrun sends one after the SIGINT of a terminal.) Outside of the main thread, where
    Python allows no handlers, signals keep their meaning.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = number
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        logger.warning("stopping after this step, with a checkpoint (Ctrl-C again: at once)")

    for caught in (signal.SIGINT, signal.SIGTERM):
        before[caught] = signal.getsignal(caught)
    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
