"""A first-in-first-out bank of past embeddings, the queue of MoCo (He et al. 2020)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MemoryBank(nn.Module):
    """Keeps the last ``size`` embeddings; saved with the state, unlike lightly's.

    Args:
        size: (number of embeddings, their dimension), as in lightly.

    Attributes:
        bank: float32 [size, dim], random unit vectors at first.
        bank_ptr: int64 [1], where the next embeddings go.

    Raises:
        ValueError: a size that is not two positive integers.
    """

    bank: Tensor
    bank_ptr: Tensor

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        if len(size) != 2 or min(size) < 1:
            raise ValueError(
                f"memory_bank_size must be 0 or (number of embeddings, dimension), got {size!r}"
            )
        self.register_buffer("bank", F.normalize(torch.randn(*size), dim=1))
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor) -> None:
        """Replace the oldest entries by ``embeddings`` [N, D]; the end of the bank wraps around."""
        size = len(self.bank)
        embeddings = embeddings[-size:].to(self.bank.dtype)
        # The pointer stays on the device: reading it would wait for the GPU.
        places = torch.arange(len(embeddings), device=self.bank.device) + self.bank_ptr
        self.bank.index_copy_(0, places % size, embeddings)
        self.bank_ptr.add_(len(embeddings)).remainder_(size)
