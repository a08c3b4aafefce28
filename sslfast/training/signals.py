"""Ctrl-C and other signals as a wish to stop, which the loop grants after the step."""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from sslfast.training.distributed import Ranks

logger = logging.getLogger("sslfast")

# Of a terminal, of torchrun and schedulers; the last two are those that one can ask Slurm for.
_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_SECONDS, _MOST_STEPS = 1.0, 10


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
    """Note SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 instead of dying of them, in a ``with``.

    After the first signal a SIGINT has its usual effect: Ctrl-C twice ends at once. (Not a second
    SIGTERM: torchrun sends one after the SIGINT of a terminal.) A SIGHUP that is ignored, as nohup
    has it, stays so. Outside of the main thread, where Python allows no handlers, signals keep
    their meaning.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _CAUGHT}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = number
        signal.signal(signal.SIGINT, end)
        logger.warning(
            "%s: stopping after this step, with a checkpoint (Ctrl-C again: at once, without)",
            signal.Signals(number).name,
        )

    def end(number: int, frame: FrameType | None) -> None:
        logger.warning("stopping at once: the run goes on from its last checkpoint, not from here")
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        signal.raise_signal(signal.SIGINT)

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopPoll:
    """Whether a signal has reached any rank: the same answer on all, after the same step.

    Ranks ask each other about once a second, on the host: neither does a device wait, nor does a
    signal wait for the next log entry. The step of the next question follows from the pace of the
    slowest rank, which they exchange with it, and is at most ten steps away.

    Args:
        ranks: this process and its peers; a single one is asked after every step.
        request: this rank's signal.
    """

    def __init__(self, ranks: Ranks, request: StopRequest) -> None:
        self._ranks, self._request = ranks, request
        self._next, self._asked, self._time = 0, 0, time.monotonic()

    def __call__(self, step: int) -> int:
        """The signal's number, or 0; to be called after every step, on every rank."""
        if self._ranks.world_size == 1:
            return self._request.signal
        if step < self._next:
            return 0
        pace = (time.monotonic() - self._time) / max(1, step - self._asked)
        number, pace = self._ranks.largest(self._request.signal, pace)
        steps = min(_MOST_STEPS, int(_SECONDS / pace) if pace else _MOST_STEPS)
        self._next, self._asked, self._time = step + max(1, steps), step, time.monotonic()
        return int(number)
