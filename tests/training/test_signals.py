import logging
import os
import signal
from typing import Any

import pytest
import torch

from sslfast.training import signals
from sslfast.training.distributed import Ranks
from sslfast.training.signals import StopPoll, StopRequest, catch_signals

ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


@pytest.mark.parametrize("number", ALL)
def test_signals_are_noted_and_their_handlers_put_back(
    number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    before = [signal.getsignal(other) for other in ALL]
    with catch_signals() as request:
        assert request.signal == 0
        os.kill(os.getpid(), number)
        assert request.signal == number
    assert f"{number.name}: stopping after this step, with a checkpoint" in caplog.text
    assert [signal.getsignal(other) for other in ALL] == before


def test_a_second_interrupt_says_what_it_does(caplog: pytest.LogCaptureFixture) -> None:
    def interrupt_twice() -> None:
        # Programs in a background are started with Ctrl-C ignored.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            twice()
        finally:
            signal.signal(signal.SIGINT, before)

    def twice() -> None:
        with catch_signals():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # torchrun's, after that of the terminal
            assert "at once: the run" not in caplog.text
            signal.raise_signal(signal.SIGINT)

    with caplog.at_level(logging.WARNING, "sslfast"), pytest.raises(KeyboardInterrupt):
        interrupt_twice()
    assert "stopping at once: the run goes on from its last checkpoint" in caplog.text


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catch_signals() as request:
            signal.raise_signal(signal.SIGHUP)
            assert request.signal == 0
    finally:
        signal.signal(signal.SIGHUP, before)


class Peers:
    """Two ranks, of which the other one takes ``seconds`` a step, and may have got a signal."""

    world_size, signal = 2, 0

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.questions = 0

    def largest(self, number: float, pace: float) -> list[float]:
        self.questions += 1
        return [max(number, self.signal), max(pace, self.seconds)]


@pytest.mark.parametrize(("seconds", "every"), [(0.001, 10), (0.3, 3), (4.0, 1)])
def test_ranks_ask_each_other_about_once_a_second(
    seconds: float, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals.time, "monotonic", lambda: 0.0)
    peers: Any = Peers(seconds)
    poll = StopPoll(peers, StopRequest())
    assert not any(poll(step) for step in range(1, 31))
    assert peers.questions == 30 // every
    peers.signal = signal.SIGTERM
    assert [step for step in range(31, 31 + every) if poll(step)] == [31]


def test_a_single_process_asks_nobody() -> None:
    request = StopRequest()
    poll = StopPoll(Ranks(torch.device("cpu")), request)
    assert poll(1) == 0
    request.signal = signal.SIGINT
    assert poll(2) == signal.SIGINT
