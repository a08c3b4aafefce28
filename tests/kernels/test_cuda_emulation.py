"""The CUDA kernels of the similarity softmax, thread by thread on an emulated GPU.

The code that nvcc compiles (csrc/include/sslfast/similarity_*.h) runs here as plain C++ over
tests/emulation: every index, mask, pipeline stage and split, with the matrix units' documented
layouts. What it cannot see is said in docs/performance.md.
"""

import ctypes
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sslfast.kernels.similarity_softmax import Pairing
from sslfast.kernels.similarity_softmax import reference as oracle

ROOT = Path(__file__).resolve().parents[2]
ELEMENTS = ("bfloat16", "float16", "tf32", "ieee")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
ROUNDING = {"bfloat16": 2.0**-9, "float16": 2.0**-11, "tf32": 2.0**-11, "ieee": 0.0}  # of weights
H200 = (132, 227 << 10)
L40 = (142, 99 << 10)
SENTINEL = 12345.0

Side = tuple[Tensor, Tensor] | None


class EmulatedProblem(ctypes.Structure):
    """``Problem`` of tests/emulation/similarity.cpp."""

    _fields_ = (
        [("element", ctypes.c_int64), ("x", ctypes.c_void_p), ("y", ctypes.c_void_p)]
        + [(name, ctypes.c_int64) for name in ("m", "n", "dim")]
        + [("scale", ctypes.c_void_p)]
        + [
            (name, ctypes.c_int64)
            for name in ("length", "shift", "row_base", "column_base", "leave_out_self")
        ]
        + [(name, ctypes.c_int64) for name in ("processors", "shared", "seed", "eager")]
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    path = tmp_path_factory.mktemp("emulation") / "emulation.so"
    source = ROOT / "tests" / "emulation" / "similarity.cpp"
    options = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command = [compiler, *options, "-I", ROOT / "csrc/include", source, "-o", path]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(path))
    loaded.bfloat16_bits.argtypes = loaded.float16_bits.argtypes = [ctypes.c_float]
    loaded.float16_value.restype = ctypes.c_float
    return loaded


class Emulated:
    """The functions of a backend over the emulation; the GPU and the order of events vary."""

    def __init__(self, library: ctypes.CDLL, element: str, gpu: tuple[int, int], seed: int) -> None:
        self.library, self.element, self.gpu, self.seed = library, element, gpu, seed

    def _problem(self, x: Tensor, y: Tensor, scale: Tensor, pairing: Pairing) -> EmulatedProblem:
        self._alive = x, y, scale
        return EmulatedProblem(
            ELEMENTS.index(self.element), x.data_ptr(), y.data_ptr(), len(x), len(y), x.shape[1],
            scale.data_ptr(), *astuple(pairing), *self.gpu, self.seed, self.seed % 2,
        )  # fmt: skip

    def _call(self, function: Callable[..., int], *arguments: object) -> None:
        error = ctypes.create_string_buffer(200)
        if function(*arguments, error, len(error)):
            raise RuntimeError(error.value.decode())

    @staticmethod
    def _guarded(*shape: int) -> tuple[Tensor, Tensor]:
        """NaN to be written, and the sentinels behind."""
        size = math.prod(shape)
        memory = torch.full((size + 64,), math.nan)
        memory[size:] = SENTINEL
        return memory[:size].view(shape), memory[size:]

    def forward(
        self, x: Tensor, y: Tensor, scale: Tensor, pairing: Pairing
    ) -> tuple[Tensor, Tensor]:
        (lse, behind), (positive, behind_too) = self._guarded(len(x)), self._guarded(len(x))
        problem = self._problem(x, y, scale, pairing)
        addresses = [ctypes.c_void_p(t.data_ptr()) for t in (lse, positive)]
        self._call(self.library.emulate_forward, ctypes.byref(problem), *addresses)
        assert (torch.cat((behind, behind_too)) == SENTINEL).all()
        return lse, positive

    def backward(
        self, x: Tensor, y: Tensor, scale: Tensor, pairing: Pairing, row: Side, column: Side
    ) -> Tensor:
        u, behind = self._guarded(*x.shape)
        statistics = [t for side in (row, column) for t in (side or (None, None))]
        addresses = (ctypes.c_void_p * 4)(*[t.data_ptr() if t is not None else None for t in statistics])
        problem = self._problem(x, y, scale, pairing)
        self._call(
            self.library.emulate_backward, ctypes.byref(problem), addresses,
            ctypes.c_void_p(u.data_ptr()),
        )  # fmt: skip
        assert (behind == SENTINEL).all()
        return u

    def plan(self, m: int, n: int, dim: int, backward: bool) -> tuple[int, ...]:
        empty = torch.empty(0)
        problem = self._problem(empty.view(0, 1), empty.view(0, 1), empty, Pairing(0))
        problem.m, problem.n, problem.dim = m, n, dim
        fields = (ctypes.c_int * 8)()
        self._call(self.library.plan_of, ctypes.byref(problem), int(backward), fields)
        return tuple(fields)


def rows_of(element: str, count: int, dim: int, generator: torch.Generator) -> Tensor:
    """Unit rows as elements; in float32 memory, those of TF32 have 10 bits of fraction."""
    x = F.normalize(torch.randn(count, dim, generator=generator), dim=1)
    if element == "tf32":
        return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
    return x.to(DTYPES.get(element, torch.float32))


def check(
    backend: Emulated,
    m: int,
    n: int | None,
    dim: int,
    scale: float,
    pairing: Pairing,
    generator: torch.Generator,
    sides: tuple[str, ...] = ("both", "rows", "columns"),
) -> None:
    """Compare with float64; n None: the symmetric form."""
    x = rows_of(backend.element, m, dim, generator)
    y = x if n is None else rows_of(backend.element, n, dim, generator)
    s = torch.tensor(scale)
    x64, y64, s64 = x.double(), y.double(), s.double()
    lse, positive, lse_columns = oracle.forward(x64, y64, s64, pairing, True)
    tolerance = 2.0**-22 * (abs(scale) + 10)  # float32: exponents of up to |scale|, sums
    for got, want in zip(backend.forward(x, y, s, pairing), (lse, positive), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance)
    row = lse, torch.randn(m, generator=generator).double()
    column = lse_columns, torch.randn(len(y), generator=generator).double()
    chosen: dict[str, tuple[Side, Side]] = {
        "both": (row, column),
        "rows": (row, None),
        "columns": (None, column),
    }
    logits, _, _ = oracle._logits(x64, y64, s64, pairing)
    for name in sides:
        given = [None if p is None else (p[0].float(), p[1].float()) for p in chosen[name]]
        u = backend.backward(x, y, s, pairing, *given)
        v = oracle.backward(x64, y64, s64, pairing, *chosen[name])
        sizes = [None if p is None else (p[0], p[1].abs()) for p in chosen[name]]
        total = oracle.backward(
            torch.cat((x64, torch.ones(m, 1)), 1), torch.cat((y64, torch.zeros(len(y), 1)), 1),
            s64, pairing, *sizes,
        )  # fmt: skip
        del total
        weights = torch.zeros_like(logits)
        for side, axis in zip(sizes, (1, 0), strict=True):
            if side is not None:
                weights += ((logits - side[0].unsqueeze(axis)).exp().nan_to_num()) * side[1].unsqueeze(axis)
        bound = (tolerance + ROUNDING[backend.element]) * weights.sum(1)
        bound += 2.0**-36 * len(y)  # weights at the bottom of the range of float16
        assert ((u - v).norm(dim=1) <= bound).all(), (name, ((u - v).norm(dim=1) / bound).max())


def ntxent(m: int) -> Pairing:
    return Pairing(m, m // 2, leave_out_self=True)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize(
    ("m", "n", "dim", "pairing"),
    [
        (252, None, 123, ntxent(252)),  # rows that are not aligned
        (130, 200, 64, Pairing(120, 37, 7, 70)),
        (70, 150, 200, Pairing(70, 0, 0, 40, leave_out_self=True)),
        (40, 40, 300, Pairing(40)),  # several panels of gradients
    ],
)
@pytest.mark.parametrize("gpu", [H200, L40])
def test_against_float64(library, element, m, n, dim, pairing, gpu, generator) -> None:
    seed = int(torch.randint(2**31, (), generator=generator))
    check(Emulated(library, element, gpu, seed), m, n, dim, 10.0, pairing, generator, ("both",))
