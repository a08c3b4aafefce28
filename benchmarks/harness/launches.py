"""Triton launches without a GPU: what backends would launch, recorded, and compiled in parallel.

Backends run as they are, on tensors of torch's "meta" device, which have sizes and no memory, and
Triton is told of a GPU that is not there. What it would compile is noted instead: signature,
constants, alignment and options are those of the launch itself, so that what is compiled here is
what a GPU will find in Triton's cache on disk.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

H100_MULTIPROCESSORS = 132


@dataclass(frozen=True)
class Launch:
    """A kernel as it was to be launched.

    Attributes:
        name: of the case that launched it, and of the kernel.
        kernel: the ``triton.jit`` function.
        source: what Triton compiles.
        options: the compiler's.
        architecture: compute capability, 90 for 9.0.
    """

    name: str
    kernel: JITFunction
    source: ASTSource
    options: dict[str, Any]
    architecture: int

    @property
    def constants(self) -> dict[str, Any]:
        """The constexpr arguments, by name."""
        return {self.kernel.arg_names[at]: c for (at, *_), c in self.source.constants.items()}

    def compiled(self) -> CompiledKernel:
        """From Triton's cache on disk, where it is put otherwise."""
        target = GPUTarget("cuda", self.architecture, 32)
        return triton.compile(self.source, target=target, options=self.options)


class _Driver:
    """As much of Triton's driver as compiling asks for."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_device(self) -> int:
        # Triton keeps what it found for a device: every architecture is a device of its own.
        return _device(self.architecture)

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


def _device(architecture: int) -> int:
    return 10_000 + architecture  # no index of a real GPU, since answers about those are kept


@contextmanager
def recording(
    architecture: int, multiprocessors: int = H100_MULTIPROCESSORS, gpu: str = ""
) -> Iterator[Callable[[str], list[Launch]]]:
    """Within it nothing is launched; call what it gives for what would have been since then.

    Args:
        architecture: compute capability of the GPU that is supposed.
        multiprocessors: as many as it has.
        gpu: its name, by which measured tiles are found.
    """
    found: list[tuple[JITFunction, ASTSource, dict[str, Any]]] = []

    def note(
        self: Any, key: Any, signature: Any, device: Any, constants: Any, options: Any, attrs: Any,
        warmup: bool,
    ) -> None:  # fmt: skip
        source = ASTSource(self, signature, constants, attrs)
        found.append((self, source, dict(options.__dict__)))

    def since(name: str) -> list[Launch]:
        launches = [
            Launch(f"{name}: {kernel.fn.__name__}", kernel, source, options, architecture)
            for kernel, source, options in found
        ]
        found.clear()
        return launches

    properties = mock.Mock(multi_processor_count=multiprocessors, total_memory=80 << 30)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(JITFunction, "_do_compile", note))
        stack.enter_context(mock.patch.object(driver, "_active", _Driver(architecture)))
        for name, answer in {
            "is_available": True,  # to ask a real GPU would spoil CUDA in processes forked later
            "current_device": _device(architecture),
            "get_device_capability": divmod(architecture, 10),
            "get_device_properties": properties,
            "get_device_name": gpu,
        }.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, a=answer: a))
        yield since


def distinct(launches: Sequence[Launch]) -> list[Launch]:
    """Each compilation once, under the name of the first that asked for it."""
    found: dict[tuple[Any, ...], Launch] = {}
    for launch in launches:
        key = launch.source.hash(), str(sorted(launch.options.items())), launch.architecture
        found.setdefault(key, launch)
    return list(found.values())


def in_parallel(
    launches: Sequence[Launch],
    work: Callable[[Launch], Any],
    processes: int | None = None,
) -> Iterator[tuple[Launch, Any]]:
    """``work`` on each launch in processes of their own, results as they come.

    What raises gives the exception as its result. Processes are forked, so that sources need no
    pickling; this one must not have used CUDA before.
    """
    global _shared
    _shared = launches, work
    count = min(processes or len(os.sched_getaffinity(0)), max(len(launches), 1))
    with multiprocessing.get_context("fork").Pool(count) as pool:
        for n, result in pool.imap_unordered(_one, range(len(launches))):
            yield launches[n], result


_shared: tuple[Sequence[Launch], Callable[[Launch], Any]] = (), Launch.compiled


def _one(n: int) -> tuple[int, Any]:
    launches, work = _shared
    try:
        return n, work(launches[n])
    except Exception as error:  # any: it is a result, and the others go on
        return n, RuntimeError(f"{type(error).__name__}: {error}")
