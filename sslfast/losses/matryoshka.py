"""Any loss over prefixes of the embedding dimension."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from sslfast._arguments import checked
from sslfast.kernels.unit_rows.op import unit_rows


class MatryoshkaLoss(nn.Module):
    """Weighted sum of a loss over prefixes of its embeddings: sum_m c_m L(x[:, :m], y[:, :m], ...).

    Matryoshka representation learning (Kusupati et al. 2022, arXiv:2205.13147, equation 1): the
    first m numbers of an embedding are an embedding themselves. Every floating-point argument of
    two or more dimensions is cut along its last one: both views, both towers, negative keys, and a
    weight matrix [V, D] of classes (the paper's MRL-E). Labels, scales and biases pass as they are.

    NTXentLoss, InfoNCE with in-batch keys and ClipLoss compute all prefixes in one sweep on a CPU:
    the inner products of a prefix are partial sums of the longest one's, so that these take the
    products of the longest alone. Other losses, losses over several ranks or with a memory bank,
    and other devices run prefix after prefix.

    Args:
        loss: any of this package's losses, or a callable that returns a tensor.
        dims: the prefixes m, each from 1 to D.
        weights: c_m, one for each of dims; None: 1.
        normalize: divide each prefix by its norm, for losses that take features as they are
            (ClipLoss, SigLipLoss): a prefix of a unit vector is shorter.

    Shapes:
        Those of the loss. With ``reduction="none"`` the sum is taken row by row.

    Raises:
        ValueError: no dims or other than positive integers, weights that do not match them; in
            forward, a dim beyond that of an embedding, or no embedding.
    """

    @checked
    def __init__(
        self,
        loss: Callable[..., Tensor],
        dims: Iterable[int],
        weights: Iterable[float] | None = None,
        *,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.dims = tuple(dims)
        if not self.dims or not all(isinstance(m, int) and m > 0 for m in self.dims):
            raise ValueError(f"dims must be positive integers, got {list(self.dims)}")
        self.weights = (1.0,) * len(self.dims) if weights is None else tuple(weights)
        if len(self.weights) != len(self.dims):
            raise ValueError(f"{len(self.dims)} dims need as many weights, got {len(self.weights)}")
        self.normalize = normalize

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"dims={self.dims}, weights={self.weights}, normalize={self.normalize}"

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the sum for the arguments of the loss."""
        widths = [x.shape[-1] for x in (*args, *kwargs.values()) if _is_embedding(x)]
        if not widths or max(self.dims) > min(widths):
            raise ValueError(
                f"dims {self.dims} need embeddings of at least {max(self.dims)} numbers, "
                f"got {widths or 'none'}"
            )
        from sslfast.losses._prefixes import losses_of_prefixes  # it loads three losses

        total: Any = 0
        lengths = tuple(sorted(set(self.dims)))
        losses = losses_of_prefixes(self.loss, lengths, self.normalize, args, kwargs)
        if losses is not None:
            for m, weight in zip(self.dims, self.weights, strict=True):
                total = total + weight * losses[lengths.index(m)]
            return total
        for m, weight in zip(self.dims, self.weights, strict=True):
            cut_args = [self._cut(x, m) for x in args]
            cut_kwargs = {name: self._cut(x, m) for name, x in kwargs.items()}
            total = total + weight * self.loss(*cut_args, **cut_kwargs)
        return total

    def _cut(self, x: Any, m: int) -> Any:
        if not _is_embedding(x):
            return x
        return unit_rows(x[..., :m]) if self.normalize else x[..., :m]


def _is_embedding(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.dim() >= 2
