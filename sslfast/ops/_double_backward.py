"""Second derivatives, which no op here has."""

from collections.abc import Sequence

from torch import Tensor


def refuse_double_backward(gradients: Sequence[Tensor | None]) -> None:
    """Raise RuntimeError if anything comes from above for what a backward pass returned."""
    if any(gradient is not None for gradient in gradients):
        raise RuntimeError(
            "sslfast: this loss has no second derivative; "
            "call backward() without create_graph=True, or use a loss written in plain PyTorch"
        )
