"""Any loss over prefixes of the embedding dimension."""

import math
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

from torch import Tensor, nn

from sslfast._arguments import BadArgument, checked
from sslfast.kernels.unit_rows.op import unit_rows


class MatryoshkaLoss(nn.Module):
    """Weighted sum of a loss over prefixes of its embeddings: sum_m c_m L(x[:, :m], y[:, :m], ...).

    Matryoshka representation learning (Kusupati et al. 2022, arXiv:2205.13147, equation 1): the
    first m numbers of an embedding are an embedding themselves. Every floating-point argument of
    two or more dimensions is cut along its last one: both views, both towers, negative keys, and a
    weight matrix [V, D] of classes (the paper's MRL-E). Labels, scales and biases pass as they are.

    NTXentLoss, InfoNCE with in-batch keys and ClipLoss compute all prefixes in one sweep: the inner
    products of a prefix are partial sums of the longest one's, so that these take the products of
    the longest alone; over several ranks embeddings are gathered once. Other losses, and these with
    ids, around a ring or with hooks, run prefix after prefix. A memory bank has one width, and no
    prefixes.

    Args:
        loss: any of this package's losses, or a callable that returns a tensor.
        dims: the prefixes m, each from 1 to D.
        weights: c_m, one for each of dims; None: 1.
        normalize: divide each prefix by its norm, for losses that take features as they are
            (ClipLoss, SigLipLoss): a prefix of a unit vector is shorter.

    Shapes:
        Those of the loss. With ``reduction="none"`` the sum is taken row by row.

    Raises:
        ValueError: a loss with a memory bank, no dims or other than positive integers, weights that
            do not match them or are no finite numbers; in forward, a dim beyond that of an
            embedding, or no embedding.
        TypeError: the same, where dims or weights are no list.
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
        if getattr(loss, "memory_bank", None) is not None:
            raise ValueError(
                "a memory bank has embeddings of one width, and no prefixes: leave out the loss's "
                "memory_bank_size"
            )
        self.loss = loss
        self.dims = _listed("dims", "positive integers", dims, _is_length)
        if not self.dims:
            raise ValueError("dims must be positive integers, got []")
        if weights is None:
            weights = (1.0,) * len(self.dims)
        self.weights = _listed("weights", "finite numbers", weights, _is_weight)
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
        longest = [_prefix(x, lengths[-1]) for x in args]
        by_name = {name: _prefix(x, lengths[-1]) for name, x in kwargs.items()}
        losses = losses_of_prefixes(self.loss, lengths, self.normalize, longest, by_name)
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
        cut = _prefix(x, m)
        return unit_rows(cut) if self.normalize and _is_embedding(x) else cut


def _prefix(x: Any, m: int) -> Any:
    return x[..., :m] if _is_embedding(x) else x


def _listed(name: str, what: str, values: Any, fits: Callable[[Any], bool]) -> tuple[Any, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise BadArgument(name, f"must be a list of {what}, got {values!r}")
    found = tuple(values)
    if not all(fits(x) for x in found):
        raise BadArgument(name, f"must be {what}, got {list(found)}")
    return found


def _is_length(m: Any) -> bool:
    return isinstance(m, int) and not isinstance(m, bool) and m > 0


def _is_weight(x: Any) -> bool:
    if isinstance(x, Tensor):
        return x.numel() == 1 and bool(x.detach().isfinite())
    return isinstance(x, Real) and not isinstance(x, bool) and math.isfinite(x)


def _is_embedding(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.dim() >= 2
