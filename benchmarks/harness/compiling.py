"""Triton kernels compiled by many processes, into Triton's own cache on disk."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from triton import knobs

from benchmarks.harness.launches import Launch, in_parallel


def compile_one(launch: Launch) -> tuple[str, bool]:
    """The kernel's hash, and whether it had to be compiled."""
    hits = []

    def listen(*, cache_hit: bool, **_: object) -> None:
        hits.append(cache_hit)

    knobs.compilation.listener = listen
    kernel = launch.compiled()
    return kernel.metadata.hash, not hits[-1]


def load_one(launch: Launch) -> tuple[str, bool]:
    """The same, and the kernel is put on the GPU, with the code that launches it."""
    found = compile_one(launch)
    torch.cuda.init()
    _ = launch.compiled().run
    return found


@dataclass
class Outcome:
    """What became of many kernels.

    Attributes:
        hashes: of those that there are now.
        compiled: how many of these were not there before.
        failed: errors, by names.
    """

    hashes: set[str]
    compiled: int
    failed: dict[str, str]


def compile_all(
    launches: Sequence[Launch], processes: int | None = None, load: bool = False
) -> Outcome:
    """Compile kernels, and ``load`` them where there is a GPU."""
    outcome = Outcome(set(), 0, {})
    for launch, result in in_parallel(launches, load_one if load else compile_one, processes):
        if isinstance(result, Exception):
            outcome.failed[launch.name] = str(result)
            print(f"FAILED {launch.name}: {result}", flush=True)
        else:
            outcome.hashes.add(result[0])
            outcome.compiled += result[1]
    return outcome
