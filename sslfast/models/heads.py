"""The MLP heads (projectors, expanders, predictors) between an encoder and its loss."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast._arguments import Depth, PositiveFloat, Width, checked
from sslfast.kernels.unit_rows.op import unit_rows


class ProjectionHead(nn.Sequential):
    """An MLP: (linear, [batch norm], ReLU) for every hidden layer, then linear, [batch norm].

    One class makes the heads of the common methods (d = the encoder's ``num_features``):

    ==============================  ==========================================================
    SimCLR, arXiv:2002.05709        ``ProjectionHead(d, [d], 128, last_batch_norm=True)``
    SimCLR v2, arXiv:2006.10029     ``ProjectionHead(d, [d, d], 128, last_batch_norm=True)``
    MoCo v2, arXiv:2003.04297       ``ProjectionHead(d, [2048], 128, batch_norm=False)``
    MoCo v3, arXiv:2104.02057       ``ProjectionHead(d, [4096], 256, last_batch_norm=True,
                                    last_affine=False, last_bias=False)`` ([4096, 4096] for ViT)
    BYOL, arXiv:2006.07733          ``ProjectionHead(d, [4096], 256, last_bias=False)``; predictor
                                    the same with d = 256
    SimSiam, arXiv:2011.10566       ``ProjectionHead(d, [2048, 2048], 2048, last_batch_norm=True,
                                    last_affine=False)``; predictor
                                    ``ProjectionHead(2048, [512], 2048)``
    Barlow Twins, arXiv:2103.03230  ``ProjectionHead(d, [8192, 8192], 8192, last_bias=False)``
    VICReg, arXiv:2105.04906        ``ProjectionHead(d, [8192, 8192], 8192, bias=True,
                                    last_bias=False)``
    ==============================  ==========================================================

    These follow the authors' code, but for biases that a batch norm would remove again.

    Args:
        in_dim: width of the input [B, in_dim].
        hidden_dims: widths of the hidden layers, in order; empty makes a linear head.
        out_dim: width of the output [B, out_dim].
        batch_norm: batch norm after every hidden linear layer.
        last_batch_norm: batch norm after the last linear layer.
        last_affine: whether that last norm has a learned scale and shift.
        bias: bias of the hidden linear layers; None: only where no batch norm follows, which would
            remove it again.
        last_bias: bias of the last linear layer; None: as for ``bias``.

    Attributes:
        out_dim: width of the output.
        settings: the arguments, as plain values: a file of heads is read by them.

    Raises:
        ValueError: a width below 1.
    """

    @checked
    def __init__(
        self,
        in_dim: Width,
        hidden_dims: Sequence[Width] = (2048,),
        out_dim: Width = 128,
        *,
        batch_norm: bool = True,
        last_batch_norm: bool = False,
        last_affine: bool = True,
        bias: bool | None = None,
        last_bias: bool | None = None,
    ) -> None:
        widths = [in_dim, *hidden_dims, out_dim]
        bias = not batch_norm if bias is None else bias
        last_bias = not last_batch_norm if last_bias is None else last_bias

        layers: list[nn.Module] = []
        for fan_in, width in pairwise(widths[:-1]):
            layers.append(nn.Linear(fan_in, width, bias=bias))
            if batch_norm:
                layers.append(nn.BatchNorm1d(width))
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.Linear(widths[-2], out_dim, bias=last_bias))
        if last_batch_norm:
            layers.append(nn.BatchNorm1d(out_dim, affine=last_affine))
        super().__init__(*layers)
        self.out_dim: int = out_dim
        self.settings: dict[str, Any] = {
            **{"in_dim": in_dim, "hidden_dims": list(hidden_dims), "out_dim": out_dim},
            **{"batch_norm": batch_norm, "last_batch_norm": last_batch_norm},
            **{"last_affine": last_affine, "bias": bias, "last_bias": last_bias},
        }


class VarianceHead(ProjectionHead):
    """An MLP whose outputs [B, out_dim] are variances: softplus of a ProjectionHead's, and more.

    Args:
        in_dim: as of ProjectionHead, like what follows.
        hidden_dims: see there.
        out_dim: see there.
        floor: is added; no variance is smaller.
        **options: see there.

    Raises:
        ValueError: a width below 1, or a floor that is not positive.
    """

    @checked
    def __init__(
        self,
        in_dim: Width,
        hidden_dims: Sequence[Width] = (2048,),
        out_dim: Width = 128,
        *,
        floor: PositiveFloat = 1e-2,
        **options: Any,
    ) -> None:
        super().__init__(in_dim, hidden_dims, out_dim, **options)
        self.floor = floor
        self.settings["floor"] = floor

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, in_dim] -> variances [B, out_dim], in float32 at least."""
        raw = super().forward(x)
        return F.softplus(raw if raw.element_size() > 4 else raw.float()) + self.floor


class PrototypeHead(nn.Module):
    """An MLP to unit vectors, and prototypes to compare them with: DINO's head, and iBOT's.

    Its scores are cosines. It returns the unit vectors, for losses that need no scores in memory
    (``sslfast.functional.prototype_cross_entropy``). As published (Caron et al. 2021,
    arXiv:2104.14294, appendix C): linear layers with GELU between them, then a layer whose rows are
    normalised, without bias.

    Args:
        in_dim: width of the features.
        hidden_dim: width of the hidden layers.
        bottleneck_dim: width of the unit vectors.
        out_dim: K, the number of prototypes.
        num_layers: linear layers of the MLP.
        batch_norm: batch norm after every hidden linear layer (for convolutional networks).

    Attributes:
        weight: [K, bottleneck_dim], whose directions are the prototypes.
        settings: the arguments, as plain values.
    """

    @checked
    def __init__(
        self,
        in_dim: Width,
        hidden_dim: Width = 2048,
        bottleneck_dim: Width = 256,
        out_dim: Width = 65536,
        *,
        num_layers: Depth = 3,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            **{"in_dim": in_dim, "hidden_dim": hidden_dim, "bottleneck_dim": bottleneck_dim},
            **{"out_dim": out_dim, "num_layers": num_layers, "batch_norm": batch_norm},
        }
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), bottleneck_dim]
        layers: list[nn.Module] = []
        for fan_in, width in pairwise(widths[:-1]):
            layers.append(nn.Linear(fan_in, width))
            if batch_norm:
                layers.append(nn.BatchNorm1d(width))
            layers.append(nn.GELU())
        layers.append(nn.Linear(widths[-2], bottleneck_dim))
        self.mlp = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        bound = bottleneck_dim**-0.5
        self.weight = nn.Parameter(torch.empty(out_dim, bottleneck_dim).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, in_dim] -> unit vectors [B, bottleneck_dim]."""
        return unit_rows(self.mlp(x))

    def prototypes(self) -> Tensor:
        """Unit vectors [K, bottleneck_dim], with gradients to ``weight``."""
        return unit_rows(self.weight)
