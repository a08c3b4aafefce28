"""Every op by every backend under pytest-benchmark: the quick look while a kernel is worked on.

    pytest benchmarks/ --benchmark-only                          all, in about two minutes on a CPU
    pytest benchmarks/ --benchmark-only -k similarity_softmax    one op
    pytest benchmarks/ --benchmark-only --benchmark-autosave     kept, for --benchmark-compare

A group is a size of an op and a pass, a line of it a backend. What is in the tables of the pages
comes from the programs beside this file, which time peers and floors too, in turns.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
import torch

import sslfast
from benchmarks.harness.timing import Run, synchronize
from benchmarks.op_cases import CASES
from sslfast.kernels import registry

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def calls() -> Iterator[object]:
    """Every pass of every case by every backend, the oracle left out."""
    for op, cases in CASES.items():
        for case in cases(DEVICE):
            for name, make in case.passes.items():
                for backend in registry.candidates(op):
                    if backend.name != "reference":
                        group = f"{op}: {case.size}, {name}"
                        yield pytest.param(group, backend.name, make, id=f"{group}, {backend.name}")


@pytest.fixture(autouse=True)
def _automatic_backend() -> Iterator[None]:
    """No benchmark leaves a backend forced for the next."""
    yield
    sslfast.use_backend("auto")


@pytest.mark.parametrize(("group", "backend", "make"), list(calls()))
def test_op(
    benchmark: "BenchmarkFixture", group: str, backend: str, make: Callable[[], Run]
) -> None:
    """One call by one backend; skipped, with its reason, where the backend refuses."""
    torch.manual_seed(0)
    run, turns = make(), itertools.count()
    sslfast.use_backend(backend)
    try:
        run(0)
    except registry.BackendError as reason:
        pytest.skip(str(reason))

    def call() -> None:
        run(next(turns))
        synchronize(DEVICE)

    benchmark.group, benchmark.name = group, backend
    benchmark(call)
