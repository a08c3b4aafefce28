"""Barlow Twins: the cross-correlation of two views' embeddings becomes the identity."""

from typing import Any

from torch import Tensor, nn

from sslfast._arguments import NonNegativeFloat, PositiveFloat, Width
from sslfast.data.batch import Batch
from sslfast.losses import BarlowTwinsLoss
from sslfast.methods.base import Context, Method, Reference
from sslfast.methods.registry import register
from sslfast.methods.views import spread
from sslfast.models import ProjectionHead


@register("barlow_twins")
class BarlowTwins(Method):
    """Barlow Twins (arXiv:2103.03230): sum_i (1 - C_ii)^2 + lambda sum_i,j C_ij^2 (equation 1).

    C is the cross-correlation of the batches of all ranks.

    Args:
        encoder: maps a view [B, C, H, W] to features [B, F].
        off_diagonal: lambda.
        hidden_dim: width of the projector's two hidden layers.
        out_dim: D, width of the embeddings: the wider the better in the paper, up to 16,384.
        bias_lr_scale: learning rate of biases and norms (of what takes no weight decay) over that
            of weights; the published code has 0.024, for LARS.
    """

    recipe = "byol"
    contrastive = True
    smallest_batch = 2
    reference = Reference(
        "Zbontar et al. 2021, arXiv:2103.03230",
        {
            **{"model": "resnet50", "batch_size": 2048, "epochs": 1000, "warmup_epochs": 10},
            **{"optimizer": "LARS", "lr": 1.6, "weight_decay": 1e-6},  # lr: 0.2 * 2048 / 256
            **{"bias_lr_scale": 0.024, "off_diagonal": 0.0051, "out_dim": 8192},
        },
    )

    def __init__(
        self,
        encoder: nn.Module,
        *,
        off_diagonal: NonNegativeFloat = 0.0051,
        hidden_dim: Width = 8192,
        out_dim: Width = 8192,
        bias_lr_scale: PositiveFloat = 1.0,
    ) -> None:
        super().__init__(encoder)
        features = int(encoder.num_features)  # type: ignore[arg-type]
        self.projector = ProjectionHead(features, [hidden_dim] * 2, out_dim, last_bias=False)
        self.bias_lr_scale = bias_lr_scale
        self.criterion = BarlowTwinsLoss(lambda_param=off_diagonal, gather_distributed=True)

    def encode(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor]:
        """Views 2 x [B, C, H, W] -> embeddings 2 x [B, out_dim]."""
        first, second = batch.views
        return self.projector(self.encoder(first)), self.projector(self.encoder(second))

    def loss(self, outputs: tuple[Tensor, Tensor], ctx: Context) -> dict[str, Tensor]:
        """The loss and its parts, and how far the embeddings spread."""
        return {**self.criterion.parts(*outputs), "spread": spread(outputs[0])}

    def param_groups(self) -> list[dict[str, Any]]:
        """As of every method, with a learning rate of their own for biases and norms."""
        groups = super().param_groups()
        for group in groups:
            if group.get("weight_decay") == 0.0:
                group["lr_scale"] = self.bias_lr_scale
        return groups
