"""Decoupled contrastive losses, with lightly's constructors and forward."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sslfast._arguments import PositiveFloat, checked
from sslfast.kernels.exchange import check_exchange, gather_rows, name_of, world_size
from sslfast.kernels.similarity_softmax.ranks import global_ntxent_rows
from sslfast.kernels.unit_rows.op import unit_rows, wide_unit_rows
from sslfast.losses._inputs import check_embeddings, check_temperature, scale_of
from sslfast.losses.ntxent import ntxent


def negative_mises_fisher_weights(out0: Tensor, out1: Tensor, sigma: float = 0.5) -> Tensor:
    """Weights of positive pairs (Yeh et al. 2021, section 4): 2 - N softmax_i(<x_i, y_i> / sigma).

    Args:
        out0: unit embeddings of the first views [N, D].
        out1: those of the second views [N, D].
        sigma: how sharply near pairs lose weight; positive.

    Returns:
        [N], of mean 1, without a gradient.
    """
    similarity = (out0.detach() * out1.detach()).sum(1) / sigma
    return 2 - len(out0) * similarity.softmax(0)


class DCLLoss(nn.Module):
    """Decoupled contrastive loss (Yeh et al. 2021, arXiv:2110.06848, equation 6).

    Drop-in for lightly 1.6's class of this name. The mean over the 2N rows of lse_i - w_i p_i:
    NT-Xent whose denominator holds the negatives alone. Forward and backward take memory linear in
    N.

    Args:
        temperature: divides the cosine similarities; not 0.
        weight_fn: w, called with the unit embeddings of both views [N, D], and with them exchanged;
            returns the weights [N] of the positives. Gradients pass through it. None: 1.
        gather_distributed: negatives are the embeddings of all ranks, and weight_fn is given those
            of all ranks. Averaging gradients over ranks (DDP, FSDP) gives that of one process with
            the global batch.
        process_group: the ranks to gather from; None: all.
        exchange: "gather" brings the embeddings of all ranks here at once; "ring" one rank's at a
            time, for when they do not fit (a weight_fn still sees them all).

    Shapes:
        out0, out1: [N, D] of one floating dtype and device, normalised or not, N at least 2.
        Returns the mean in float32 (float64 for float64 inputs).

    Raises:
        ValueError: a temperature of 0; in forward, a single pair, shapes, dtypes or devices that do
            not fit.
        TypeError: in forward, embeddings that are no floating-point tensors.

    Differences from lightly 1.6, over several ranks: batches may differ in size, and weights that
    depend on the whole batch, as DCLWLoss's do, are those of the global batch, where lightly's are
    those of each rank's own.
    """

    @checked
    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        gather_distributed: bool = False,
        process_group: Any = None,
        exchange: str = "gather",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_exchange(exchange, gather_distributed)
        self.exchange = exchange
        self.temperature = temperature
        self.weight_fn = weight_fn
        self.gather_distributed = gather_distributed
        self.process_group = process_group

    @property
    def _gathers(self) -> bool:
        return self.gather_distributed and world_size(self.process_group) > 1

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"temperature={self.temperature}, gather_distributed={self.gather_distributed}"

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Return the mean loss of the embeddings [N, D] of two views."""
        out0, out1 = check_embeddings(out0=out0, out1=out1)
        if not self._gathers:
            loss = ntxent(out0, out1, self.temperature, decoupled=True)
            if self.weight_fn is None:
                return loss
        scale = scale_of(self.temperature, out0)
        factor: float | Tensor = 0.5 / len(out0)
        if self._gathers:
            z = unit_rows(torch.cat((out0, out1)))
            lse, positive, factor = global_ntxent_rows(z, scale, self.process_group, self.exchange)
            loss = (factor * (lse - positive).sum()).to(scale.dtype)
            if self.weight_fn is None:
                return loss
        x, y = (wide_unit_rows(out) for out in (out0, out1))
        # A pair's logit is counted once for each of its rows: now it counts as much as they weigh.
        logits = scale * (x * y).sum(1)
        return loss + factor * (logits * (2 - self._weights(x, y))).sum()

    def _weights(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum of the weights of both rows of a pair [N]."""
        assert self.weight_fn is not None
        if not self._gathers:
            return self.weight_fn(x, y) + self.weight_fn(y, x)
        pairs, places = gather_rows(torch.stack((x, y), 1), name_of(self.process_group))
        x, y = pairs.unbind(1)
        return (self.weight_fn(x, y) + self.weight_fn(y, x))[places]


class DCLWLoss(DCLLoss):
    """Weighted decoupled contrastive loss; drop-in for lightly 1.6's class of this name.

    DCLLoss with the weights 2 - N softmax_i(<x_i, y_i> / sigma) (Yeh et al. 2021, section 4), the
    negative von Mises-Fisher weighting.

    Args:
        temperature: divides the cosine similarities; not 0.
        sigma: divides those of the weights.
        gather_distributed, process_group, exchange: as in DCLLoss.

    Shapes and errors: as DCLLoss.
    """

    @checked
    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        sigma: PositiveFloat = 0.5,
        gather_distributed: bool = False,
        process_group: Any = None,
        exchange: str = "gather",
    ) -> None:
        weight_fn = partial(negative_mises_fisher_weights, sigma=sigma)
        super().__init__(temperature, weight_fn, gather_distributed, process_group, exchange)
