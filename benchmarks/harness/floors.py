"""What a timing is compared with: torch's own matrix products and copies on the same device.

Neither is a limit: a product is torch's, of the fewest known operations, and ours may be faster.
"""

import torch

from benchmarks.harness.timing import Run

PRODUCTS, COPY = "floor: torch.mm", "floor: copy"  # as providers in results
SHOWN = {PRODUCTS: "torch.mm alone", COPY: "copy alone"}


def shown(provider: str) -> str:
    """A provider's name on pages and plots."""
    return SHOWN.get(provider, provider)


def product_of(side: int, dtype: torch.dtype, device: torch.device) -> tuple[Run, float]:
    """A square product on random data (zeros are multiplied faster), and its FLOP."""
    pairs = [torch.randn(2, side, side, device=device).to(dtype) for _ in range(2)]
    out = torch.empty(side, side, dtype=dtype, device=device)

    def run(turn: int) -> None:
        torch.mm(pairs[turn % 2][0], pairs[turn % 2][1], out=out)

    return run, 2.0 * side**3


def copy_of(moved: float, device: torch.device) -> Run:
    """A copy that moves so many bytes, half of them read and half written."""
    source = torch.randn(int(moved) // 8, device=device)
    target = torch.empty_like(source)
    return lambda turn: target.copy_(source)
