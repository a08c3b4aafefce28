"""The emulated CUDA kernels of the similarity softmax behind the functions of a backend."""

import ctypes
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import torch
from torch import Tensor

from sslfast.kernels.similarity_softmax import Pairing

ROOT = Path(__file__).resolve().parents[2]
ELEMENTS = ("bfloat16", "float16", "tf32", "ieee")  # in the order of similarity.cpp
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


def build(folder: Path) -> ctypes.CDLL | None:
    """Compile the emulation; None without a C++ compiler."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        return None
    path, source = folder / "emulation.so", ROOT / "tests" / "emulation" / "similarity.cpp"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    options = ["-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", *warnings]
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
        addresses = (ctypes.c_void_p * 4)(
            *(None if t is None else t.data_ptr() for t in statistics)
        )
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
