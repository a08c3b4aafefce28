"""The compiled module sslfast._C, and what the CPU backends need to call it."""

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

NOT_BUILT = (
    "needs the compiled extension sslfast._C, which was not built: install a C++ compiler with "
    "OpenMP and run pip install again"
)


@cache
def extension() -> ModuleType | None:
    """sslfast._C, or None where it was not built."""
    try:
        return import_module("sslfast._C")
    except ModuleNotFoundError as error:
        if error.name != "sslfast._C":
            raise
        return None


def loaded() -> ModuleType:
    """sslfast._C, for backends that the registry has found available."""
    module = extension()
    if module is None:
        raise ImportError(f"this backend {NOT_BUILT}")
    return module


def address(tensor: Tensor | None) -> int:
    """Where a tensor lies, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def cpu_unavailable() -> str | None:
    """Why the compiled CPU kernels cannot run, or None."""
    return NOT_BUILT if extension() is None else None


def cuda_unavailable() -> str | None:
    """Why the compiled CUDA kernels cannot run, or None."""
    module = extension()
    if module is None:
        return NOT_BUILT
    if not module.CUDA_ARCHITECTURES:
        return "sslfast._C was built without CUDA: install nvcc and run pip install again"
    return None if torch.cuda.is_available() else "no CUDA device is available to torch"
