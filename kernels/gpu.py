"""What the Triton backends share: where they run, and how their operands lie in memory."""

from functools import cache

import torch
import triton
from torch import Tensor

# Triton decides when a kernel is decorated, so this is fixed at import too.
INTERPRETED: bool = triton.knobs.runtime.interpret

DEVICE = "any" if INTERPRETED else "cuda"


def unavailable() -> str | None:
    """Why Triton kernels can never run here, or None."""
    if INTERPRETED:
        return None
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU that torch can use (TRITON_INTERPRET=1 emulates one, slowly)"
    if torch.version.hip is not None:
        return "was built and checked for NVIDIA GPUs only"
    if capability(torch.device("cuda")) < 80:
        return "needs a GPU of compute capability 8.0 or later"
    return None


@cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def capability(device: torch.device) -> int:
    """Compute capability of a device, 90 for 9.0; that of the A100 where kernels are emulated."""
    if INTERPRETED:
        return 80
    return _capability(torch.cuda.current_device() if device.index is None else device.index)


def aligned(tensor: Tensor) -> Tensor:
    """The elements in one stretch of memory that begins at a multiple of 16 bytes.

    Kernels that read 16 bytes at a time spill registers without it, and cost more than a copy.
    Storages begin at such an address, unless they are someone else's memory.
    """
    tensor = tensor.contiguous()
    begins = tensor.storage_offset() * tensor.element_size()
    return tensor if begins % 16 == 0 else tensor.clone()


def operand(rows: Tensor) -> Tensor:
    """[N, D] for the matrix kernels: every row begins at a multiple of 16 bytes.

    Where D is no such multiple, zeros follow, which change no product; ``without_padding`` takes
    their features off a gradient. A copy costs far less than the masks and the spilled registers of
    rows that lie otherwise.
    """
    missing = -rows.shape[1] % (16 // rows.element_size())
    return torch.nn.functional.pad(rows, (0, missing)) if missing else aligned(rows)


def without_padding(gradient: Tensor, dim: int) -> Tensor:
    """[..., D] of a gradient that may have the features of an ``operand``."""
    return gradient if gradient.shape[-1] == dim else gradient[..., :dim].contiguous()
