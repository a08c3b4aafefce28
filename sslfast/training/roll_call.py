"""Ranks called by name: which did not come, ended, hangs, or differs from the others.

What ranks tell each other when their collectives no longer work goes through a store (torchrun's,
which outlives any rank, or else rank 0's).
"""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from datetime import timedelta
from functools import cache
from typing import Any

import torch.distributed as dist

from sslfast.training.config import ConfigError

TIMEOUT_VARIABLE = "SSLFAST_RANK_TIMEOUT"
_SECONDS = 600.0  # that a rank waits for the others
_GRACE = 5.0  # in which all that live notice that one does not
_PAUSE = 0.2

Address = tuple[str, int]  # host and port
Facts = Mapping[str, Mapping[str, Any]]


class RankError(RuntimeError):
    """This rank cannot go on because of another one; the message names it."""


def patience() -> timedelta:
    """How long a rank waits for others: $SSLFAST_RANK_TIMEOUT seconds, or ten minutes.

    Raises:
        ConfigError: the variable holds no positive number.
    """
    given = os.environ.get(TIMEOUT_VARIABLE) or str(_SECONDS)
    with suppress(ValueError, OverflowError):
        if (waited := timedelta(seconds=float(given))) > timedelta():
            return waited
    raise ConfigError(f"{TIMEOUT_VARIABLE} must be a number of seconds, more than 0, got {given!r}")


def environment() -> tuple[int, int, Address]:
    """RANK and WORLD_SIZE, and MASTER_ADDR with MASTER_PORT.

    Raises:
        ConfigError: they are not all there.
    """
    try:
        rank, world_size, port = (
            int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")
        )
        return rank, world_size, (os.environ["MASTER_ADDR"], port)
    except (KeyError, ValueError):
        raise ConfigError(
            "RANK is set, but not all of WORLD_SIZE, MASTER_PORT (numbers) and MASTER_ADDR: start "
            "the ranks with torchrun, or unset RANK"
        ) from None


@cache  # rank 0's must outlive its first group: the other ranks may be at the next one already
def connect(address: Address, rank: int, world_size: int, wait: timedelta) -> dist.Store:
    """The store at an address: torchrun's, or one that rank 0 keeps.

    Raises:
        RankError: it does not come up.
    """
    where = "{}:{}".format(*address)
    ours = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    end = time.monotonic() + wait.total_seconds()
    # torch prints a page of C++ frames where nobody listens: it is asked once somebody does.
    while not ours and not _is_reachable(address):
        if time.monotonic() > end:
            raise RankError(f"rank 0 did not come to {where} within {_said(wait)}")
        time.sleep(_PAUSE)
    try:
        return dist.TCPStore(
            *address, world_size, ours, wait, wait_for_workers=False, multi_tenant=True
        )
    except dist.DistError as error:
        raise RankError(f"there is no store at {where}: {str(error).splitlines()[0]}") from error


def is_broken(error: BaseException) -> bool:
    """Whether an error is of a collective that another rank has left, or did not answer."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    )


def difference(everyone: Sequence[Facts]) -> str | None:
    """The first rank whose facts are not those of rank 0, and in what; None: all are the same."""
    first = everyone[0]
    for rank, facts in enumerate(everyone):
        for topic, own in facts.items():
            theirs = first[topic]
            changed = [
                f"{name} is {own.get(name)!r}, and {theirs.get(name)!r} on rank 0"
                for name in sorted(own.keys() | theirs.keys())
                if repr(own.get(name)) != repr(theirs.get(name))
            ]
            if changed:
                return f"rank {rank} has other {topic}: {'; '.join(changed)}"
    return None


class RollCall:
    """One rank's part in finding out who is missing.

    Args:
        store: that all ranks share; its keys are used by nobody else.
        rank: this one's.
        world_size: how many there are.
        address: where the store listens, if it does.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world_size: int,
        address: Address | None = None,
    ) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._address = address

    def begin(self, wait: timedelta) -> None:
        """Wait until all ranks are here.

        Raises:
            RankError: after ``wait``, with those that are not.
        """
        here = self._call("here", "", wait.total_seconds())
        missing = [rank for rank in range(self._world_size) if rank not in here]
        if missing:
            raise RankError(
                f"{_named(missing)} of {self._world_size} did not come within {_said(wait)}: did "
                "all start, with the same number of ranks? "
                f"({TIMEOUT_VARIABLE} says how many seconds to wait)"
            )

    def leave_word(self, error: BaseException) -> None:
        """Tell the others what ended this rank, before they notice that it is gone."""
        words = " ".join(str(error).split()) or type(error).__name__
        with suppress(dist.DistError, _StoreGoneError):  # nobody is left to be told
            self._say("end", words)

    def explain(self, error: BaseException) -> RankError:
        """Which rank is the cause of a broken collective.

        Takes a few seconds, in which every rank that lives notices it too and says so.
        """
        try:
            said = self._call("end", "", _GRACE)
        except (dist.DistError, _StoreGoneError):
            return RankError("rank 0 is gone, or the machine that torchrun was started on")
        causes = [f"rank {rank} ended: {words}" for rank, words in said.items() if words]
        silent = [rank for rank in range(self._world_size) if rank not in said]
        if causes:
            return RankError("; ".join(causes))
        what = f"{_named(silent)} ended without a word, or hangs (killed? out of memory?)"
        if not silent:
            what = "the connection broke, or this rank itself did not answer in time "
            what += f"({str(error).splitlines()[0]})"
        return RankError(f"{what}. The same command goes on from the last checkpoint")

    def _say(self, key: str, words: str) -> None:
        if self._address and not _is_reachable(self._address):
            raise _StoreGoneError
        line = json.dumps([self._rank, words]) + "\n"
        self._store.append(key, line)  # type: ignore[attr-defined]  # absent from torch's stubs

    def _call(self, key: str, words: str, seconds: float) -> dict[int, str]:
        """Say something under a key, and hear what others say until all have, or the time is up.

        Any rank's words, which tell the cause, end the waiting.
        """
        end = time.monotonic() + seconds
        self._say(key, words)
        while True:
            heard = dict(json.loads(line) for line in self._store.get(key).splitlines())
            if len(heard) == self._world_size or any(heard.values()) or time.monotonic() > end:
                return heard
            time.sleep(_PAUSE)


class _StoreGoneError(Exception):
    """Nobody listens any more: found out without torch, for the reason given in ``connect``."""


def _is_reachable(address: Address) -> bool:
    try:
        with closing(socket.create_connection(address, timeout=5)):
            return True
    except OSError:
        return False


def _named(ranks: Sequence[int]) -> str:
    listed = ", ".join(map(str, ranks[:16])) + ", ..." * (len(ranks) > 16)
    return f"rank{'s' * (len(ranks) > 1)} {listed}"


def _said(wait: timedelta) -> str:
    return f"{wait.total_seconds():g} seconds"
